"""The owner of a partition: silent until the end, then what the fold wants, once, and nobody else suffers.

Responsible for: `agent/owner.py`, with an appender under the test's control.
Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk, Log, replies

from anabranch import log_events as e
from anabranch.agent import publishing
from anabranch.agent.admission.room import RUN_BYTES
from anabranch.agent.commit import Commit
from anabranch.agent.deadlines import Moment
from anabranch.agent.state import Nexts, Run
from anabranch.errors import BrokerError, TooLarge
from anabranch.topics import partition_of

AMO = b.planned(0, delivery="at_most_once", deadline_s=60.0)


# --- silence ----------------------------------------------------------------------


async def test_it_is_silent_up_to_the_end_that_was_captured() -> None:
    log = Log()
    log.write(
        b.requested(), b.calls(), b.requested("s", after=1, offset=1), b.noted("rejected", "x", after=2, offset=2)
    )
    desk = Desk(log).begin()
    for place in range(1, log.end):
        desk.read(place)
        assert (desk.owner.live, desk.sent.records, desk.jobs.due) == (False, [], [])
    desk.read()
    assert (desk.owner.live, desk.lives) == (True, 1)
    assert desk.called == [b.call_id()]
    assert [answer["run_id"] for answer in desk.answers] == ["x"]
    assert len(desk.jobs.due) == 1


async def test_an_empty_log_is_live_at_once_and_begins_with_the_first_request() -> None:
    desk = Desk()
    desk.owner.caught_up(desk.owner.begin(None, 0, 0, Nexts(7, 0)))
    assert desk.owner.live
    assert desk.owner.state.next_request == 7


async def test_after_a_rebalance_it_is_silent_again_and_does_nothing_twice() -> None:
    desk = Desk().begin().write(b.requested(), b.calls())
    desk.owner.suspend()
    desk.log.write(b.requested("s", after=1, offset=1))
    desk.owner.resume(desk.log.end)
    desk.read(2)
    assert not desk.owner.live
    desk.read()
    assert (desk.lives, len(desk.called), len(desk.jobs.due)) == (2, 1, 1)


async def test_what_is_read_twice_is_folded_once() -> None:
    desk = Desk().begin().write(b.requested(), b.discarded())
    desk.owner.fold(desk.log.records)
    assert b.run_of(desk.owner.state).discarded.input_tokens == 5


# --- model calls ----------------------------------------------------------------------


async def test_no_second_model_call_while_our_reply_is_unread() -> None:
    desk = Desk().begin().write(b.requested())
    replies(desk, b.calls())
    desk.write(b.noted("duplicate", after=1, offset=1))
    assert desk.jobs.due == []
    desk.land().read()
    assert desk.called == [b.call_id()]


async def test_a_reply_of_somebody_else_cancels_our_call() -> None:
    desk = Desk().begin().write(b.requested())
    (job,) = desk.jobs.due
    desk.write(b.calls(attempt="theirs"))
    assert desk.jobs.cancelled == [job]


async def test_a_call_that_waits_is_not_made_once_the_partition_is_gone() -> None:
    desk = Desk().begin().write(b.requested())
    (job,) = desk.jobs.due
    desk.owner.suspend()
    assert job.prepare() is None
    desk.owner.resume(desk.log.end)
    desk.owner.caught_up(desk.log.end)
    assert len(desk.jobs.due) == 2


async def test_a_run_whose_agent_is_gone_fails_alone() -> None:
    desk = Desk().begin().write(b.requested(opens=b.opening(revision="gone")))
    assert desk.jobs.due.pop().prepare() is None
    (event,) = desk.appended
    assert isinstance(event, e.ModelFailed)
    assert event.error.code == "internal"


async def test_a_reply_that_cannot_be_written_fails_its_run() -> None:
    desk = Desk().begin().write(b.requested())
    replies(desk, b.replied())
    await desk.sent.fail(TooLarge("too large"), NAMESPACE.log)
    assert isinstance(desk.appended[-1], e.ModelFailed)
    desk.log.take(desk.sent.to(NAMESPACE.log)[-1])
    desk.read()
    assert desk.answers[-1]["error"]["code"] == "internal"


async def test_a_life_that_is_replaced_wants_nothing_more() -> None:
    log = Log()
    desk = Desk(log).begin()
    log.write(b.requested(), b.replied(), b.requested(after=1, offset=1), b.replied(life="1"))
    desk.read()
    await desk.sent.ack()
    assert len(desk.answers) == 1
    assert desk.owner.commit(True) == Commit(4, 4, 2)


# --- publications ----------------------------------------------------------------------


async def test_an_effect_in_flight_is_not_done_again() -> None:
    desk = Desk().begin().write(b.requested(), b.calls())
    desk.write(b.discarded())
    assert desk.called == [b.call_id()]
    await desk.sent.ack()
    desk.write(b.discarded(attempt="again"))
    assert desk.called == [b.call_id()]


async def test_what_lies_below_done_is_not_published_again() -> None:
    log = Log()
    log.write(b.requested(), b.calls(), b.requested("s", after=1, offset=1), b.replied(run_id="s", life="1"))
    assert len(Desk(log).begin(Commit(0, 4, 0)).read().sent.records) == 0
    assert len(Desk(log).begin(Commit(0, 3, 0)).read().answers) == 1
    log.write(e.PartitionReleased(4))
    assert len(Desk(log).begin(Commit(0, 0, 0)).read().sent.records) == 0


async def test_a_lost_acknowledgement_counts_as_none() -> None:
    desk = Desk().begin().write(b.requested(), b.replied())
    desk.sent.sent[-1].cancel()
    await asyncio.sleep(0)
    assert desk.owner.commit(True) == Commit(0, 1, 0)


async def test_an_answer_that_is_too_large_is_sent_without_what_makes_it_large() -> None:
    desk = Desk().begin().write(b.requested(), b.replied())
    await desk.sent.fail(TooLarge("too large"))
    brief = desk.answers[-1]
    assert (brief["status"], brief["output"]) == ("completed", None)
    await desk.sent.ack()
    assert desk.owner._publisher._shortened == {}, "there may be many of them"


async def test_an_answer_that_cannot_be_made_holds_up_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(run: Run, *_: str) -> bytes:
        raise ValueError("a defect")

    with monkeypatch.context() as broken:
        broken.setattr(publishing, "answer", defect)
        broken.setattr(publishing, "brief_answer", defect)
        desk = Desk().begin().write(b.requested(), b.replied())
    desk.write(b.requested("s", after=1, offset=1), b.replied(run_id="s", life="1"))
    assert [told["run_id"] for told in desk.answers] == ["s"]


@pytest.mark.parametrize(
    ("plan", "error"),
    [(b.planned(), BrokerError("no such topic")), (b.planned(), TooLarge("x")), (AMO, TooLarge("never written"))],
)
async def test_a_call_that_cannot_be_published_is_an_error_result(plan: e.PlannedCall, error: Exception) -> None:
    desk = Desk().begin().write(b.requested(), b.calls(plan)).land().read()
    await desk.sent.fail(error, NAMESPACE.calls("q"))
    event = desk.appended[-1]
    assert isinstance(event, e.ToolReturned)
    assert event.outcome == "error"


@pytest.mark.parametrize("body", [b"rubbish", b"[]", b'{"content":[{"type":"tool_use"}]}', b'{"content":5}'])
async def test_a_reply_whose_body_is_rubbish_stops_its_own_run_only(body: bytes) -> None:
    desk = Desk().begin()
    desk.log.write(b.requested(), b.requested("s", after=1, offset=1), b.calls(body=body))
    desk.log.write(b.calls(b.planned(0, run_id="s"), run_id="s", life="1"))
    desk.read()
    assert desk.called == [b.call_id(run_id="s")]
    assert isinstance(desk.appended[-1], e.ToolReturned)


async def test_a_record_that_cannot_be_read_is_a_dead_letter_and_the_partition_goes_on() -> None:
    desk = Desk().begin()
    desk.log.write(b.requested(), b.calls())
    bad = desk.log.records[1]
    desk.log.records[1] = replace(bad, headers=[(n, b"{" if n == "ce_plan" else v) for n, v in bad.headers])
    desk.write(b.calls())
    assert len(desk.sent.to(NAMESPACE.dead_letters)) == 1
    assert desk.called == [b.call_id()]


async def test_a_copy_on_a_wrong_partition_is_a_dead_letter_and_opens_nothing() -> None:
    """Else it would be a run of its own there, and the request that is due next would be skipped."""
    strangers = [name for name in (f"r{n}" for n in range(20)) if partition_of(name, 4) != 0]
    desk = Desk(partitions=4).begin().write(b.requested(strangers[0]))
    assert (desk.owner.state.runs, desk.owner.state.next_request, desk.jobs.due) == ({}, 0, [])
    assert len(desk.sent.to(NAMESPACE.dead_letters)) == 1


async def test_an_unknown_event_parks_its_run() -> None:
    desk = Desk().begin().write(b.requested())
    (job,) = desk.jobs.due
    later = replace(b.record(b.run_expired(), 1), headers=[("ce_type", b"x"), ("ce_runid", b"r"), ("ce_life", b"0")])
    desk.log.records.append(later)
    desk.read()
    assert desk.jobs.cancelled == [job]
    assert desk.owner.commit(True) == Commit(0, 2, 0)


@pytest.mark.parametrize(
    "of", [[], [("ce_runid", b"r"), ("ce_life", b"7")], [("ce_runid", b"else"), ("ce_life", b"0")]]
)
async def test_an_unknown_event_of_no_open_run_parks_none(
    of: list[tuple[str, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk().begin().write(b.requested())
    desk.log.records.append(replace(b.record(b.run_expired(), 1), headers=[("ce_type", b"x"), *of]))
    desk.read()
    assert desk.jobs.cancelled == []
    assert "event type 'x' is not known: of no open run" in caplog.text


async def test_what_cannot_be_placed_is_told_without_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    Desk(partitions=4).begin().write(e.RunCancelled("evil\x1b[31m", None, "x"))
    assert "run 'evil\\x1b[31m' belongs to partition" in caplog.text


# --- at most once ----------------------------------------------------------------------


async def test_an_at_most_once_call_is_published_when_our_token_has_won() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(AMO))
    desk.write(b.discarded())
    (event,) = desk.appended
    assert isinstance(event, e.CallDispatched)
    assert desk.called == []
    desk.land().read()
    assert desk.called == [b.call_id()]
    await desk.sent.fail(BrokerError("lost"), NAMESPACE.calls("q"))
    desk.write(b.discarded(attempt="again"))
    assert desk.called == [b.call_id()]


async def test_an_at_most_once_call_that_another_dispatched_first_is_not_published() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(AMO))
    desk.log.write(b.dispatched("theirs"))
    desk.land().read()
    assert desk.called == []


async def test_a_successor_does_not_publish_an_at_most_once_call() -> None:
    first = Desk().begin().write(b.requested(), b.calls(AMO)).land().read()
    second = Desk(first.log)
    assert second.begin(Commit(0, 0, 0)).read().called == []


# --- bytes, timers ----------------------------------------------------------------------


async def test_the_bytes_of_open_runs_are_counted_and_given_back() -> None:
    desk = Desk().begin().write(b.requested())
    request = len(desk.log.records[0].value or b"")
    assert desk.owner.held.open_bytes == request
    assert desk.owner.held.bytes == desk.station.room.used == request + RUN_BYTES
    desk.write(b.calls(), b.returned())
    assert desk.owner.held.open_bytes == sum(len(record.value or b"") for record in desk.log.records)
    desk.write(b.replied(turn=2))
    assert desk.owner.held.bytes == desk.station.room.used == 0
    assert desk.station.room.freed.is_set()


async def test_a_partition_that_does_not_come_back_gives_its_room_back() -> None:
    desk = Desk().begin().write(b.requested())
    desk.owner.drop()
    assert desk.station.room.used == 0


async def test_a_deadline_is_told_to_the_log_and_the_fold_decides() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(b.planned(0, deadline_s=5.0)))
    desk.owner._ring(Moment("call", "r", "0", b.call_id()))
    desk.owner._ring(Moment("run", "r", "0"))
    desk.owner._ring(Moment("run", "r", "another life"))
    assert [type(event) for event in desk.appended] == [e.CallExpired, e.RunExpired]
    desk.land().read()
    assert b.run_of(desk.owner.state).open
    desk.owner.suspend()
    desk.owner._ring(Moment("run", "r", "0"))
    assert len(desk.appended) == 2


async def test_a_deadline_is_told_once_while_the_broker_does_not_answer_and_again_if_its_clock_says_no() -> None:
    desk = Desk().begin().write(b.requested())
    for seconds in range(1, 600):
        desk.clock.now = b.DEADLINE + seconds
        desk.ring()
    assert [type(event) for event in desk.appended] == [e.RunExpired]
    await desk.sent.ack()
    desk.clock.now += 1
    desk.ring()
    assert [type(event) for event in desk.appended] == [e.RunExpired] * 2


# --- a session that seemed lost, and was not --------------------------------------------------------------


async def test_a_deadline_that_came_while_the_session_was_in_doubt_is_told_later() -> None:
    desk = Desk().begin().write(b.requested())
    desk.alive, desk.clock.now = False, b.DEADLINE + 1
    desk.ring()
    assert desk.appended == []
    desk.alive, desk.clock.now = True, b.DEADLINE + 5
    desk.ring()
    assert [type(event) for event in desk.appended] == [e.RunExpired]


async def test_a_model_call_that_was_not_begun_in_doubt_is_begun_later() -> None:
    desk = Desk().begin().write(b.requested())
    desk.alive = False
    assert desk.jobs.due.pop().prepare() is None
    desk.alive, desk.clock.now = True, desk.clock.now + 5
    desk.ring()
    (job,) = desk.jobs.due
    assert job.prepare() is not None


async def test_a_clock_that_is_set_back_meanwhile_draws_out_no_second_look() -> None:
    desk = Desk().begin().write(b.requested())
    desk.alive = False
    assert desk.jobs.due.pop().prepare() is None
    desk.alive, desk.clock.now, desk.clock.set_back = True, desk.clock.now - 600, 600 + 5
    desk.ring()
    assert [job.prepare() is not None for job in desk.jobs.due] == [True]


async def test_a_clock_that_is_set_back_when_a_deadline_has_come_does_not_draw_out_when_it_is_told_again() -> None:
    desk = Desk().begin().write(b.requested())
    desk.clock.now = b.DEADLINE + 1
    desk.ring()
    await desk.sent.ack()
    desk.clock.now, desk.clock.set_back = desk.clock.now - 600, 600 + 2
    desk.ring()
    assert [type(event) for event in desk.appended] == [e.RunExpired] * 2
