"""Giving a partition up and taking it over: model calls in flight are told of, waited for, and not repeated.

Responsible for: `agent/model/calling.py`, and what `Owner` does with hand-offs.
Must never: run a broker or a model. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import Desk, Log
from tests.support.virtual import virtually

from anabranch import log_events as e
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.state import HandOff

OTHER = "another"


def prepared(desk: Desk) -> tuple[Job, Request]:
    """The one model call that is due, started."""
    (job,) = desk.jobs.due
    request = job.prepare()
    assert request is not None
    desk.jobs.begun.add(job)
    return job, request


def kinds(desk: Desk) -> list[str]:
    return [type(event).__name__ for event in desk.appended]


def give_up(desk: Desk, for_s: float = 60.0) -> None:
    desk.owner.give_up()
    desk.owner.hand_off(for_s)
    desk.owner.suspend()


def in_flight(log: Log | None = None) -> Desk:
    desk = Desk(log).begin()
    return desk.write(b.requested()) if log is None else desk.read()


async def test_a_call_in_flight_is_handed_off_with_how_far_the_publications_are() -> None:
    desk = in_flight()
    prepared(desk)
    give_up(desk, 60.0)
    assert desk.appended == [e.ModelHandedOff("r", b.LIFE, 1, "w", 60.0), e.PartitionReleased(1)]
    assert desk.jobs.cancelled == []


async def test_a_call_that_has_not_begun_is_dropped_and_not_handed_off() -> None:
    desk = in_flight()
    give_up(desk)
    assert kinds(desk) == ["PartitionReleased"]
    assert len(desk.jobs.cancelled) == 1


async def test_a_reply_that_is_not_acknowledged_yet_is_handed_off_too() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    job.append(b.replied())
    give_up(desk)
    assert kinds(desk) == ["ModelReplied", "ModelHandedOff", "PartitionReleased"]


async def test_a_reply_that_is_acknowledged_is_not() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    job.append(b.replied())
    await desk.sent.ack()
    give_up(desk)
    assert kinds(desk) == ["ModelReplied", "PartitionReleased"]


async def test_a_call_that_is_abandoned_at_the_end_is_waited_for_no_longer() -> None:
    desk = in_flight()
    prepared(desk)
    give_up(desk, 60.0)
    desk.owner._calls.abandon()
    assert desk.appended[-1] == e.ModelHandedOff("r", b.LIFE, 1, "w", 0.0)
    assert kinds(desk) == ["ModelHandedOff", "PartitionReleased", "ModelHandedOff"]


async def test_nothing_is_said_at_the_end_of_a_call_that_was_answered_or_never_handed_off() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    give_up(desk)
    job.append(b.replied())
    desk.owner._calls.abandon()
    assert kinds(desk) == ["ModelHandedOff", "PartitionReleased", "ModelReplied"]

    desk = in_flight()
    prepared(desk)
    desk.owner._calls.abandon()
    assert kinds(desk) == []


async def test_a_successor_waits_for_a_call_that_was_handed_off() -> None:
    desk = Desk().begin().write(b.requested())
    desk.jobs.due.clear()
    later = in_flight(desk.log)
    assert len(later.jobs.due) == 1, "without a hand-off it is made at once"
    desk.log.write(b.model_handed_off(worker=OTHER))
    assert in_flight(desk.log).jobs.due == []


async def test_a_reply_of_the_giver_counts_and_no_call_is_made() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker=OTHER))
    desk.begin().read()
    desk.write(b.replied())
    assert desk.jobs.due == []
    assert len(desk.answers) == 1


async def test_when_the_time_is_up_it_reads_on_to_the_end_before_it_calls() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker=OTHER))
    desk.begin().read()
    (key,) = rung(desk)
    desk.owner.read_on(key, end=desk.log.end + 1)
    assert desk.jobs.due == [], "something lies before the end that is not read yet"
    desk.write(e.PartitionReleased(0))
    assert len(desk.jobs.due) == 1


async def test_a_reply_before_that_end_spares_the_call() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker=OTHER))
    desk.begin().read()
    (key,) = rung(desk)
    desk.owner.read_on(key, end=desk.log.end + 1)
    desk.write(b.replied())
    assert desk.jobs.due == []


async def test_the_time_of_a_call_that_was_answered_comes_to_nothing() -> None:
    """Its run may be open for hours; nothing of it was lost."""
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker=OTHER))
    desk.begin().read()
    desk.write(b.calls())
    assert rung(desk) == []


async def test_what_the_giver_says_last_counts() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker=OTHER))
    desk.begin().read()
    desk.write(e.ModelHandedOff("r", b.LIFE, 1, OTHER, 0.0))
    assert desk.jobs.due == [], "its reply may stand in the log, up to its end"
    (key,) = rung(desk)
    desk.owner.read_on(key, end=desk.log.end)
    assert len(desk.jobs.due) == 1


@pytest.mark.parametrize(
    ("known", "handed_off"), [([], b.model_handed_off(worker=OTHER)), ([b.calls()], b.calls_handed_off(worker=OTHER))]
)
async def test_its_time_does_not_begin_anew_with_each_owner(known: list[e.Event], handed_off: e.Event) -> None:
    first = Desk()
    first.log.write(b.requested(), *known, at=1.0)
    first.log.write(handed_off, at=5.0)
    first.log.write(e.PartitionReleased(0), at=25.0)
    desk = Desk(first.log).begin().read()
    (when,) = [when for moment, when in desk.armed.items() if moment.what in ("model", "lost")]
    assert when == desk.clock.now + 10.0, "of its 30 s, by the broker's clock, 20 have passed"


@pytest.mark.parametrize(
    ("known", "handed_off"), [([], b.model_handed_off(worker=OTHER)), ([b.calls()], b.calls_handed_off(worker=OTHER))]
)
async def test_a_clock_that_is_set_back_draws_out_no_hand_off(known: list[e.Event], handed_off: e.Event) -> None:
    desk = Desk().begin().write(b.requested(), *known, handed_off)
    desk.clock.now, desk.clock.set_back = desk.clock.now - 600, 600 + 31
    desk.ring()
    lost = [event for event in desk.appended if isinstance(event, e.CallLost)]
    assert len(desk.time_up) + len(lost) == 1, "its 30 s are over, whatever the clock of the wall says"


def test_a_snapshot_of_before_does_not_say_since_when_a_call_is_handed_off() -> None:
    assert (HandOff(OTHER, 1, 30.0).left_s(1e9), HandOff(OTHER, 1, 30.0, 5.0).left_s(1e9)) == (30.0, 0.0)


async def test_a_hand_off_of_ones_own_is_not_waited_for() -> None:
    desk = Desk()
    desk.log.write(b.requested(), b.model_handed_off(worker="w"))
    desk.begin().read()
    assert len(desk.jobs.due) == 1


async def test_a_partition_that_comes_back_goes_on_with_its_call() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    give_up(desk)
    desk.land()
    desk.owner.resume(desk.log.end)
    desk.read()
    assert desk.jobs.due == [job], "it was submitted once"
    job.append(b.replied())
    desk.land().read()
    assert len(desk.answers) == 1


async def test_a_call_that_is_still_in_flight_is_not_made_again_by_a_new_fold() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    give_up(desk)
    desk.land().begin().read()
    assert desk.jobs.due == [job]


async def test_while_it_is_given_up_nothing_new_is_begun() -> None:
    desk = in_flight()
    job, _ = prepared(desk)
    desk.owner.give_up()
    desk.write(b.calls(b.planned(0)))
    assert desk.called == [b.call_id(0)], "what is folded is still published"
    desk.write(b.returned())
    assert desk.jobs.due == [job], "the next model call is the successor's"


def test_the_last_hand_off_says_how_long_a_call_may_go_on() -> None:
    async def run() -> None:
        desk = in_flight()
        job, _ = prepared(desk)
        give_up(desk, 60.0)
        desk.owner.resume(desk.log.end)
        desk.owner.caught_up(desk.log.end)
        await asyncio.sleep(50)
        give_up(desk, 60.0)
        await asyncio.sleep(50)
        assert desk.jobs.cancelled == []
        await asyncio.sleep(5)
        assert desk.jobs.cancelled == [job]

    virtually(run)


def rung(desk: Desk) -> list[Any]:
    """The hand-offs whose time comes up when the clock moves far on."""
    desk.clock.now += 1e6
    desk.ring()
    return desk.time_up
