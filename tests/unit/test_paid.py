"""What was paid for and is not used is told to the log, whatever became of it: cancelled, too late, twice, unusable.

Responsible for: what `agent/model/outcomes.py`, `calling.py` and the fold make of usage that no reply of a run
accounts for. Against a server that counts what it charges: `tests/integration/test_paid.py`.
Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.thinking import DONE, only, thought
from tests.support.thinking import Desk as Table
from tests.support.virtual import now
from tests.unit.test_handing_over import prepared

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import fold
from anabranch.agent.deadlines import Moment
from anabranch.agent.model.outcomes import usage_in
from anabranch.agent.model.seam import Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.reply.reply import Reply
from anabranch.errors import TooLarge
from anabranch.prices import Price

PAID = m.Usage(7, 2, cost_usd=0.25)


class Speaks:
    """Says what the prompt costs after a second, what the reply does after a minute, and then stops or fails."""

    def __init__(self, end: Exception | None = None) -> None:
        self._end = end

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        await asyncio.sleep(1)
        on_event({"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}})
        await asyncio.sleep(59)
        on_event({"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 40}})
        await asyncio.sleep(60)
        if self._end is not None:
            raise self._end
        return DONE


def cancelled_after(seconds: float, why: str = "the run has ended") -> Any:
    async def arrange(table: Table) -> None:
        job = table.submit()
        await asyncio.sleep(seconds)
        table.thinker.cancel(job, why)
        await table.thinker.idle()
        assert now() == seconds

    return thought(Speaks(), arrange, {"m": Price(1.0, 1.0)})  # type: ignore[arg-type]


# --- cancelled while the model speaks ------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "output"), [(2, 1), (70, 40)])
def test_what_a_cancelled_call_had_used_is_told(seconds: int, output: int) -> None:
    event = only(cancelled_after(seconds))
    assert isinstance(event, e.ModelDiscarded)
    assert (event.attempt, event.reason) == ("id1", "the run has ended")
    assert event.usage == m.Usage(10, output, cost_usd=(10 + output) / 1e6)
    assert event.tried == (e.Tried("m", 0.0, seconds, "ended", "the run has ended"),)


def test_of_a_call_that_had_used_nothing_nothing_is_told() -> None:
    assert cancelled_after(0.5).events == []


def test_a_worker_that_stops_tells_what_its_calls_have_used() -> None:
    async def arrange(table: Table) -> None:
        table.submit("r")
        table.submit("s")
        await asyncio.sleep(5)
        table.thinker.stop()
        table.thinker.cancel_all("its worker stopped")
        await table.thinker.idle()

    table = thought(Speaks(), arrange)  # type: ignore[arg-type]
    assert {(event.run_id, event.reason) for event in table.events} == {  # type: ignore[union-attr]
        ("r", "its worker stopped"), ("s", "its worker stopped"),
    }  # fmt: skip


def test_what_an_attempt_has_used_is_told_once() -> None:
    """It is cancelled while it waits for the next one."""
    broken = Transient("cut", broken=True, usage={"input_tokens": 10}, retry_after=500.0)

    async def arrange(table: Table) -> None:
        job = table.submit()
        await asyncio.sleep(300)
        assert table.thinker.spent(job) is None
        table.thinker.cancel(job)
        await table.thinker.idle()

    table = thought(Speaks(broken), arrange)  # type: ignore[arg-type]
    assert [(type(event), event.usage.input_tokens) for event in table.events] == [(e.ModelDiscarded, 10)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"type": "message_start", "message": {"usage": {"input_tokens": 1, "x": None}}}, {"input_tokens": 1}),
        ({"type": "message_delta", "usage": {"output_tokens": 2}}, {"output_tokens": 2}),
        ({"type": "message_delta", "usage": None}, {}),
        ({"type": "message_start", "message": None}, {}),
        ({"type": "content_block_delta"}, {}),
        ({}, {}),
    ],
)
def test_what_an_event_says_of_the_usage(event: dict[str, Any], said: dict[str, Any]) -> None:
    assert usage_in(event) == said


# --- every attempt is named ------------------------------------------------------------------------------------------


class Fails:
    """One error after another, each a second after it was asked; then it replies."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        await asyncio.sleep(1)
        if self._errors:
            raise self._errors.pop(0)
        return DONE


def named(*errors: Exception, **fields: Any) -> list[tuple[str, list[str | None]]]:
    """Which event names which attempts."""
    table = thought(Fails(*errors), lambda table: table.submit(**fields))  # type: ignore[arg-type]
    return [(type(event).__name__, [each.failure for each in event.tried]) for event in table.events]  # type: ignore[union-attr]


BUSY = [Transient("529: busy", kind="overload"), Transient("429", kind="rate_limit", retry_after=2.0)]
CUT = Transient("cut", broken=True, usage={"input_tokens": 3})


def test_a_reply_at_the_first_try_names_no_attempts() -> None:
    assert named() == [("ModelReplied", [])]


def test_attempts_that_cost_nothing_are_named_by_the_reply() -> None:
    assert named(*BUSY) == [("ModelReplied", ["overload", "rate_limit", None])]


def test_an_attempt_that_cost_something_names_those_before_it() -> None:
    assert named(*BUSY, CUT, *BUSY) == [
        ("ModelDiscarded", ["overload", "rate_limit", "broken"]),
        ("ModelReplied", ["overload", "rate_limit", None]),
    ]


def test_the_end_of_a_run_names_them_too() -> None:
    assert named(*BUSY, Hopeless("model_rejected", "400")) == [("ModelFailed", ["overload", "rate_limit", "rejected"])]


def test_while_it_goes_on_they_are_named_soon_and_then_once_a_minute() -> None:
    found = named(*[Transient("500", kind="server", retry_after=20.0)] * 20)
    assert found[0] == ("ModelDiscarded", ["server"] * 2), "21 s after the first one"
    assert [kind for kind, _ in found[1:]] == ["ModelDiscarded"] * 6 + ["ModelReplied"]
    assert sum(failures.count("server") for _, failures in found) == 20
    assert {len(failures) for _, failures in found[1:-1]} <= {3, 4}


def test_what_is_not_tried_again_is_named_by_the_end_of_the_run_alone() -> None:
    late = Transient("529: busy", kind="overload", retry_after=30.0)
    assert named(late, Hopeless("model_rejected", "400")) == [("ModelFailed", ["overload", "rejected"])]


# --- two replies of one turn -----------------------------------------------------------------------------------------


def late(attempt: str = "late", **fields: Any) -> e.ModelReplied:
    return replace(b.replied("final", attempt=attempt, usage=PAID), **fields)


def discards(desk: Desk) -> list[e.ModelDiscarded]:
    return [event for event in desk.appended if isinstance(event, e.ModelDiscarded)]


async def test_the_reply_that_comes_second_counts_as_discarded() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(), late(model="other"))
    (paid,) = discards(desk)
    assert (paid.attempt, paid.usage, paid.model) == ("late", PAID, "other")
    desk.land().read()
    assert b.run_of(desk.owner.state).discarded == PAID
    assert len(discards(desk)) == 1


async def test_a_copy_of_the_reply_that_counts_costs_nothing() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(), b.calls())
    assert discards(desk) == []


async def test_a_copy_of_the_reply_that_comes_second_costs_no_more() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(), late(), late())
    desk.land().read()
    assert b.run_of(desk.owner.state).discarded == PAID


async def test_who_takes_over_tells_of_it_if_nobody_has() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.calls(), late("a"), late("b"), b.discarded(attempt="b", usage=PAID))
    desk.begin().read()
    assert [paid.attempt for paid in discards(desk)] == ["a"]


async def test_after_the_end_of_a_run_nothing_is_told_of_it() -> None:
    desk = Desk().begin().write(b.requested(), b.replied(), late())
    assert discards(desk) == []


async def test_a_reply_that_cannot_be_written_is_paid_for_all_the_same() -> None:
    desk = Desk().begin().write(b.requested())
    job, _ = prepared(desk)
    job.append(replace(b.replied(), usage=PAID))
    await desk.sent.fail(TooLarge("too large"), NAMESPACE.log)
    assert [type(event) for event in desk.appended] == [e.ModelReplied, e.ModelDiscarded, e.ModelFailed]
    assert discards(desk)[0].usage == PAID


# --- a deadline that comes while the model speaks --------------------------------------------------------------------


async def test_a_deadline_says_what_the_call_under_way_has_used() -> None:
    desk = Desk().begin().write(b.requested())
    job, _ = prepared(desk)
    tried = (e.Tried("other", 1.0, 2.0, "ended", "late"),)
    desk.jobs.used[job] = e.ModelDiscarded("r", b.LIFE, 1, "att", PAID, "late", "other", tried)
    desk.owner._ring(Moment("run", "r", "0"))
    (expired,) = desk.appended
    assert expired == e.RunExpired("r", "0", "the run's deadline has passed", "att", PAID, "other", tried)
    assert desk.jobs.cancelled == [], "by the broker's clock it may not have come"
    desk.land(at=b.DEADLINE + 1).read()
    assert desk.jobs.cancelled == [job]
    assert desk.answers[-1]["status"] == "expired"
    assert desk.answers[-1]["usage"]["discarded"] == {
        "input_tokens": 7, "output_tokens": 2, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
        "cost_usd": 0.25,
    }  # fmt: skip


async def test_a_deadline_without_a_call_says_nothing_of_any() -> None:
    desk = Desk().begin().write(b.requested())
    desk.owner._ring(Moment("run", "r", "0"))
    await desk.sent.ack()
    prepared(desk)
    desk.owner._ring(Moment("run", "r", "0"))
    assert desk.appended == [e.RunExpired("r", "0", "the run's deadline has passed")] * 2


def test_a_deadline_that_has_not_come_by_the_brokers_clock_costs_nothing() -> None:
    state = b.folded(b.requested())
    early = e.RunExpired("r", b.LIFE, "", "att", PAID)
    fold.apply(state, early, 1, b.DEADLINE)
    assert b.run_of(state).discarded == m.Usage()
    fold.apply(state, early, 2, b.DEADLINE + 1)
    assert b.run_of(state).discarded == PAID


def test_an_attempt_that_was_told_of_before_is_not_paid_again_by_the_deadline() -> None:
    state = b.folded(b.requested(), b.discarded(attempt="att", usage=PAID))
    fold.apply(state, e.RunExpired("r", b.LIFE, "", "att", PAID), 2, b.DEADLINE + 1)
    assert b.run_of(state).discarded == PAID


def test_the_thinker_knows_what_a_call_has_used_so_far() -> None:
    async def arrange(table: Table) -> None:
        job = table.submit()
        await asyncio.sleep(0.5)
        assert table.thinker.spent(job) is None
        await asyncio.sleep(1)
        spent = table.thinker.spent(job)
        assert spent is not None
        assert (spent.attempt, spent.usage.input_tokens, spent.tried[-1].took_s) == ("id1", 10, 1.5)
        await table.thinker.idle()
        assert table.thinker.spent(job) is None

    assert isinstance(only(thought(Speaks(), arrange)), e.ModelReplied)  # type: ignore[arg-type]
