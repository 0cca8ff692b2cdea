"""What the roles count, and when: each event once, by whoever is there for it, and waits apart from work.

Responsible for: `agent/telemetry/tally.py`, `agent/telemetry/sampling.py`, and what thinker, tool worker and appender
add to their meters.
Must never: look at how it is shown (tests/unit/test_metrics). Called by: pytest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.support import builders as b
from tests.support.bench import PLACE, ToolBench, call
from tests.support.desk import Desk, Log
from tests.support.thinking import DONE, Script, thought
from tests.support.wait import until
from tests.unit.test_handing_over import give_up, prepared

from anabranch import App, Limit, RateLimited, Retryable
from anabranch.agent.admission.admission import Admission
from anabranch.agent.model.seam import Hopeless, Transient
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.agent.telemetry.sampling import sample
from anabranch.codec import cloud_event
from anabranch.config import AgentSettings
from anabranch.kafka.membership import Membership
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Place
from anabranch.meters import Counter, Histogram
from anabranch.prices import Price
from anabranch.tasks import Group


def counts(counter: Counter) -> dict[tuple[str, ...], float]:
    """What was counted at all."""
    return {key: value for key, value in counter.copied().items() if value}


def times(histogram: Histogram) -> dict[tuple[str, ...], tuple[int, float]]:
    """How often, and how much altogether."""
    return {key: (sum(map(int, each)), total) for key, (each, total) in histogram.copied().items() if any(each)}


# --- what the log says ------------------------------------------------------------------------------------------------


async def test_a_run_counts_when_it_opens_and_when_it_ends() -> None:
    desk = Desk().begin()
    desk.write(b.requested(opens=b.opening(requested_at=1.0)), at=3.0)
    meters = desk.station.meters
    assert counts(meters.runs_admitted) == {("a",): 1}
    assert times(meters.run_queued) == {("a",): (1, 2.0)}
    assert counts(meters.runs_ended) == {}
    desk.write(b.replied(), at=8.0)
    assert counts(meters.runs_ended) == {("a", "completed", ""): 1}
    assert times(meters.run_duration) == {("a", "completed"): (1, 5.0)}


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (b.failed(code="model_unavailable"), "failed", "model_unavailable"),
        (b.failed(code="made up by somebody"), "failed", "other"),
        (b.replied("stopped"), "failed", "max_tokens"),
        (b.cancelled(), "cancelled", "cancelled"),
        (b.run_expired(), "expired", "deadline"),
    ],
)
async def test_a_run_that_does_not_complete_counts_with_its_code(event: object, status: str, code: str) -> None:
    desk = Desk().begin().write(b.requested())
    desk.write(event, at=b.DEADLINE + 1)  # type: ignore[arg-type]  # any of the events
    assert counts(desk.station.meters.runs_ended) == {("a", status, code): 1}


async def test_an_event_that_changes_nothing_counts_nothing() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(), b.returned(), b.replied(turn=2))
    meters = desk.station.meters
    before = [meter.copied() for meter in meters.all()]
    desk.write(b.requested(), b.calls(), b.returned(), b.replied(turn=2), b.cancelled(), b.failed())
    assert [meter.copied() for meter in meters.all()] == before


async def test_an_agent_that_nobody_here_knows_is_another() -> None:
    desk = Desk().begin()
    desk.write(b.requested(opens=b.opening(request=b.request(agent="gone"))))
    assert counts(desk.station.meters.runs_admitted) == {("other",): 1}


async def test_what_was_folded_in_silence_was_counted_by_others() -> None:
    log = Log()
    log.write(b.requested(), b.calls(), b.returned())
    desk = Desk(log).begin()
    desk.read()
    meters = desk.station.meters
    assert (counts(meters.runs_admitted), counts(meters.calls_answered)) == ({}, {})
    desk.write(b.replied(turn=2))
    assert counts(meters.runs_ended) == {("a", "completed", ""): 1}


async def test_what_a_kept_partition_missed_counts() -> None:
    desk = Desk().begin().write(b.requested())
    give_up(desk)
    desk.log.write(b.replied())
    desk.owner.resume(desk.log.end)
    desk.read()
    assert counts(desk.station.meters.runs_ended) == {("a", "completed", ""): 1}


async def test_calls_count_by_what_they_came_to() -> None:
    plan = [b.planned(0), b.planned(1), b.planned(2, deadline_s=5.0), b.planned(3, queue=None, rejected="unknown tool")]
    desk = Desk().begin().write(b.requested(), b.calls(*plan), at=1.0)
    meters = desk.station.meters
    assert counts(meters.calls_published) == {("q",): 3}
    desk.write(b.returned(0), at=2.0).write(b.returned(1, "error"), at=3.0).write(b.call_expired(2), at=9.0)
    desk.write(b.returned(0), b.returned(2))
    answered = {("q", "ok"): 1, ("q", "error"): 1, ("q", "expired"): 1, ("", "rejected"): 1}
    assert counts(meters.calls_answered) == answered
    assert times(meters.call_turnaround) == {("q",): (3, 1.0 + 2.0 + 8.0)}


async def test_a_call_that_was_lost_at_most_once_is_answered_with_unknown() -> None:
    amo = b.planned(0, delivery="at_most_once", deadline_s=60.0)
    desk = Desk().begin().write(b.requested(), b.calls(amo), b.calls_handed_off())
    desk.write(b.lost(desk.log.end - 1))
    meters = desk.station.meters
    assert counts(meters.calls_answered) == {("q", "unknown"): 1}
    assert counts(meters.hand_offs) == {("call", "waited"): 1, ("call", "lost"): 1}


async def test_requests_that_open_no_run_count_by_their_note() -> None:
    desk = Desk().begin().write(b.noted("rejected"), b.noted("moved", "s", after=1, offset=1))
    assert counts(desk.station.meters.requests_noted) == {("rejected",): 1, ("moved",): 1}


async def test_a_record_that_is_no_event_is_a_dead_letter() -> None:
    desk = Desk().begin()
    desk.log.take(cloud_event(b.LOG, "model.replied", "x", "r", b"", partition=0))
    desk.read()
    assert counts(desk.station.meters.dead_letters) == {("unreadable",): 1}


# --- hand-offs --------------------------------------------------------------------------------------------------------


async def test_a_hand_off_counts_at_the_giver_and_once_at_who_waits() -> None:
    giver = Desk().begin().write(b.requested())
    prepared(giver)
    give_up(giver)
    assert counts(giver.station.meters.hand_offs) == {("model", "given"): 1}
    taker = Desk()
    taker.log.write(b.requested(), b.model_handed_off(worker="another"))
    taker.begin().read()
    taker.write(b.discarded())  # the run is acted on again
    assert counts(taker.station.meters.hand_offs) == {("model", "waited"): 1}


# --- gauges of an agent worker ----------------------------------------------------------------------------------------


def sampled(desk: Desk) -> AgentMeters:
    admission = Admission(desk.owner, desk.station)
    station = replace(desk.station, thinker=Thinker(Script(), AgentSettings(), {}, desk.station.clockwork, {}))
    sample(station, frozenset({Place(b.LOG, 0)}), [desk.owner], [admission])
    return station.meters


async def test_open_runs_and_the_age_of_what_a_commit_needs() -> None:
    desk = Desk().begin().write(b.requested(size=500), at=4.0)
    desk.commit()
    desk.clock.now = 10.0
    meters = sampled(desk)
    assert meters.runs_open.copied() == {(): 1}
    assert meters.open_bytes.copied()[()] == desk.station.room.used > 500
    assert meters.low_age.copied() == {(): 6.0}
    assert meters.partitions.copied() == {(b.LOG,): 1}


async def test_the_age_is_of_what_stands_committed_and_not_of_what_would_be() -> None:
    desk = Desk().begin().write(b.requested(), at=4.0)
    desk.commit()
    desk.write(b.replied(), at=5.0)
    await desk.sent.ack()
    desk.clock.now = 10.0
    assert sampled(desk).low_age.copied() == {(): 6.0}
    desk.commit()
    assert sampled(desk).low_age.copied() == {(): 0.0}, "nothing is open any more"


async def test_a_parked_run_counts_as_open_and_parked() -> None:
    desk = Desk().begin().write(b.requested())
    desk.log.take(cloud_event(b.LOG, "run.of_the_future", "x", "r", b"{}", [("ce_runid", "r"), ("ce_life", "0")], 0))
    meters = sampled(desk.read())
    assert (meters.runs_open.copied(), meters.runs_parked.copied()) == ({(): 1}, {(): 1})


# --- model calls ------------------------------------------------------------------------------------------------------


def test_attempts_tokens_and_cost_count_by_model_and_cost_by_agent() -> None:
    refused = Transient("429", retry_after=2.0, slow_down=True)
    broken = Transient("cut off", broken=True, usage={"input_tokens": 7})
    desk = thought(Script(refused, broken, DONE), lambda desk: desk.submit(), {"m": Price(2.0, 10.0)})
    meters = desk.thinker._meters
    assert counts(meters.model_calls) == {("m", "refused"): 1, ("m", "error"): 1, ("m", "ok"): 1}
    assert counts(meters.model_retries) == {("m", "rate_limit"): 1, ("m", "broken"): 1}
    assert counts(meters.tokens) == {("m", "input"): 10}
    assert counts(meters.discarded) == {("m", "input"): 7}
    assert meters.cost.copied()["m",] == pytest.approx(17 * 2.0 / 1e6)
    assert meters.agent_cost.copied()["a",] == pytest.approx(17 * 2.0 / 1e6)


def test_a_model_without_a_price_has_no_cost() -> None:
    desk = thought(Script(), lambda desk: desk.submit())
    assert desk.thinker._meters.cost.copied() == {}


def test_a_hopeless_call_is_rejected_and_not_tried_again() -> None:
    desk = thought(Script(Hopeless("model_rejected", "400")), lambda desk: desk.submit())
    meters = desk.thinker._meters
    assert (counts(meters.model_calls), counts(meters.model_retries)) == ({("m", "rejected"): 1}, {})


def test_waiting_for_a_place_is_told_apart_from_the_call() -> None:
    settings = AgentSettings(model_concurrency=1)
    desk = thought(Script(5.0, 5.0), lambda desk: [desk.submit("r"), desk.submit("s")], settings=settings)
    meters = desk.thinker._meters
    (calls, took), (waits, waited) = times(meters.model_duration)["m",], times(meters.model_wait)["m",]
    assert (calls, waits) == (2, 2)
    assert took == pytest.approx(10.0)
    assert waited == pytest.approx(5.0)


# --- tool calls -------------------------------------------------------------------------------------------------------


def tools() -> App:
    app, tried = App("t"), list[int]()

    @app.tool(queue="q", retries=2)
    async def flaky() -> str:
        """Fail once."""
        tried.append(1)
        if len(tried) == 1:
            raise Retryable("again")
        return "ok"

    @app.tool(queue="q")
    async def bad() -> str:
        """Fail."""
        raise ValueError("no")

    @app.tool(queue="q", limit=Limit("api", "50/s"))
    async def paced(n: int) -> str:
        """Be paused once."""
        if n == 0 and tried[-1:] != [0]:
            tried.append(0)
            raise RateLimited("slow down", after=0.01)
        return "ok"

    return app


async def test_tool_calls_count_by_what_they_came_to() -> None:
    async with ToolBench(tools()).running() as bench:
        await bench.assign()
        late = call(3, "bad")
        bench.deliver(call(0, "flaky"), call(1, "bad"), call(2, "nobody-has-this"))
        await until(lambda: len(bench.sent.returned) == 3, what="all have results")
        bench.clock.now = 2e6
        bench.deliver(late)
        meters = bench.worker._bench.meters
        await until(lambda: counts(meters.calls).get(("bad", "skipped")), what="the late one is skipped")
    assert counts(meters.calls) == {
        ("flaky", "ok"): 1, ("bad", "error"): 1, ("other", "error"): 1, ("bad", "skipped"): 1,
    }  # fmt: skip
    assert counts(meters.retries) == {("flaky",): 1}
    assert {key: count for key, (count, _) in times(meters.duration).items()} == {("flaky",): 1, ("bad",): 1}


async def test_the_wait_of_a_call_begins_with_its_publication_and_ends_with_its_start() -> None:
    app, began, may_end = App("t"), asyncio.Event(), asyncio.Event()

    @app.tool(queue="q")
    async def slow() -> str:
        """Wait."""
        began.set()
        await may_end.wait()
        return "ok"

    async with ToolBench(app).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "slow", at_ms=96_000))  # it is 100 s
        await began.wait()
        bench.clock.now = 160.0
        may_end.set()
        await until(lambda: bench.sent.returned, what="it has a result")
        meters = bench.worker._bench.meters
        await until(lambda: times(meters.wait), what="it is measured")
    assert times(meters.wait) == {(): (1, 4.0)}
    assert 0 < times(meters.duration)["slow",][1] < 60, "real time, whatever the clock of the test says"


async def test_the_starts_of_a_limit_and_what_of_it_is_ours() -> None:
    async with ToolBench(tools()).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "paced", {"n": 0}), call(1, "paced", {"n": 1}))
        await until(lambda: len(bench.sent.returned) == 2, what="both have results")
        bench.worker.sample()
        meters = bench.worker._bench.meters
        assert meters.limit_rate.copied() == {("api",): 50.0}
        assert meters.limit_waiting.copied() == {("api",): 0}
        await bench.revoke()
        bench.worker.sample()
        assert meters.limit_rate.copied() == {("api",): 0.0}
    assert counts(meters.limit_started) == {("api",): 3}, "the one that was paused started twice"


async def test_what_runs_and_what_waits_in_a_tool_worker() -> None:
    app, may_end = App("t"), asyncio.Event()

    @app.tool(queue="q", concurrency=2)
    async def slow() -> str:
        """Wait."""
        await may_end.wait()
        return "ok"

    async with ToolBench(app).running() as bench:
        await bench.assign()
        bench.deliver(*(call(offset, "slow", at_ms=90_000) for offset in range(5)))
        await until(lambda: bench.worker.running == 2, what="two run")
        bench.worker.sample()
        meters = bench.worker._bench.meters
        assert bench.worker.oldest_waiting_s == 10.0
        assert meters.oldest_waiting.copied() == {(): 10.0}
        assert meters.waiting.copied() == {(): 3}
        assert meters.slots_used.copied() == {(): 2}
        assert meters.partitions.copied() == {(PLACE.topic,): 1}
        assert meters.taken_bytes.copied()[()] > 0
        may_end.set()
        await until(lambda: len(bench.sent.returned) == 5, what="all have results")


async def test_a_bad_record_in_a_queue_is_a_dead_letter() -> None:
    async with ToolBench(tools()).running() as bench:
        await bench.assign()
        bench.deliver(replace(call(0, "bad"), value=b"rubbish"))
        meters = bench.worker._bench.meters
        await until(lambda: counts(meters.dead_letters), what="it is buried")
    assert counts(meters.dead_letters) == {("unreadable",): 1}


# --- the group --------------------------------------------------------------------------------------------------------


class Member:
    """Takes over at once, or fails as often as it is told to."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()

    async def take_over(self, places: frozenset[Place]) -> None:
        await self.may.wait()

    async def give_up(self, for_s: float) -> None: ...

    def let_go(self) -> None: ...


async def test_a_member_is_settled_from_its_take_over_to_its_revoke() -> None:
    member, meters = Member(), RoleMeters()
    membership = Membership(member, 1.0, meters)
    async with Group(lambda error: None) as tasks:
        membership.enter(tasks)
        membership.attach(object())  # type: ignore[arg-type]  # nobody asks it anything
        await asyncio.sleep(0)
        assert not membership.is_settled, "the group has assigned nothing yet"
        member.may.clear()
        membership.assigned(frozenset({PLACE}))
        await asyncio.sleep(0)
        assert not membership.is_settled
        member.may.set()
        await until(lambda: membership.is_settled, what="it has taken over")
        assert membership.places == {PLACE}
        await membership.revoked(lost=False)
        assert not membership.is_settled
        membership.assigned(frozenset())
        await until(lambda: membership.is_settled, what="to have nothing to do is settled, too")
        await membership.revoked(lost=True)
        assert not membership.is_settled
    assert (counts(meters.rebalances), counts(meters.sessions_lost)) == ({(): 2}, {(): 1})
