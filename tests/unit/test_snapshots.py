"""Snapshots and cleaning: a run said again is the run, it counts only when nothing lies between, and low moves on.

Responsible for: `agent/snapshot.py`, `agent/cleaning.py`, and `agent/collecting.py`, the fold's rule for them.
Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import Desk

from anabranch import log_events as e
from anabranch.agent import cleaning, fold, snapshot
from anabranch.agent.cleaning import LogSize
from anabranch.agent.commit import Commit
from anabranch.agent.state import Partition, Run
from anabranch.errors import WireError

BIG = "x" * 700_000
SMALL, STEP = 4_000_000, 50_000


def folded(*events: e.Event | None, state: Partition | None = None) -> Partition:
    state = state or Partition()
    for event in events:
        fold.apply(state, event, state.position, float(state.position))
    return state


def in_mid_run() -> Partition:
    return folded(b.requested(), b.calls(b.planned(0), b.planned(1)), b.returned())


def said_again(state: Partition, run_id: str = "r", **changes: Any) -> list[e.RunSnapshot]:
    return list(cleaning.snapshots(state, [state.runs[run_id]], changes.pop("author", "w1")))


def read_again(run: Run, parts: list[bytes], **changes: Any) -> Run:
    last = e.RunSnapshot(run.run_id, run.life, 0, 0, len(parts), len(parts), "w1", b"", **changes)
    return snapshot.read(last, parts)


def test_a_run_is_read_as_it_was_written() -> None:
    run = in_mid_run().runs["r"]
    assert read_again(run, snapshot.write(run)) == run


def test_replies_and_results_come_back_byte_for_byte() -> None:
    body = ('{"n": 1.10, "s": "\\u00e9é"}' + BIG).encode() + b"\xff\xfe"
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=body))
    parts = snapshot.write(state.runs["r"])
    assert len(parts) > 1
    assert all(len(part) <= snapshot.PART for part in parts)
    assert read_again(state.runs["r"], parts) == state.runs["r"]


def test_no_part_is_larger_than_it_may_be_whatever_is_in_it() -> None:
    body = b'\x01"\\' * 5_000
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=body))
    parts = snapshot.write(state.runs["r"], 4096)
    assert len(parts) > 15
    assert all(len(part) <= 4096 for part in parts)
    assert read_again(state.runs["r"], parts) == state.runs["r"]


NO_SNAPSHOTS = [b"", b"{}", b'{"pieces":[[0,"{}"]]}', b'{"pieces":[[3,"x"]]}', b'{"pieces":[[0,1]]}', b"[1]"]


@pytest.mark.parametrize("part", NO_SNAPSHOTS)
def test_what_is_no_snapshot_is_refused(part: bytes) -> None:
    with pytest.raises(WireError, match="of run r as of 0 cannot be read"):
        read_again(in_mid_run().runs["r"], [part])


def test_a_snapshot_of_a_later_version_is_refused_whatever_is_in_it() -> None:
    run = in_mid_run().runs["r"]
    with pytest.raises(WireError, match="of a version that is not known here"):
        read_again(run, snapshot.write(run), schema="run.snapshot/2")


def test_a_snapshot_that_speaks_of_another_run_is_refused() -> None:
    run = in_mid_run().runs["r"]
    with pytest.raises(WireError, match="speaks of another"):
        read_again(replace(run, run_id="s"), snapshot.write(run))


def test_a_fold_that_begins_at_the_snapshot_knows_the_run() -> None:
    whole = in_mid_run()
    as_of, events = whole.position, said_again(whole)
    folded(*events, state=whole)
    later = folded(*events, state=Partition(began=as_of, position=as_of, next_request=1))
    assert later.runs == whole.runs
    assert later.runs["r"].first == as_of
    assert later.runs["r"].next_as_of_first == 1


def test_without_a_commit_the_snapshot_says_which_request_is_next() -> None:
    """Of a log whose older events are gone: nothing in it may be admitted again."""
    whole = in_mid_run()
    as_of, events = whole.position, said_again(whole)
    later = folded(*events, state=Partition(began=as_of, position=as_of))
    assert later.next_request == whole.next_request == 1


def test_it_goes_on_from_the_snapshot_as_from_the_events() -> None:
    whole = in_mid_run()
    as_of, events = whole.position, said_again(whole)
    rest: list[e.Event] = [b.returned(1), b.replied(turn=2)]
    folded(*events, *rest, state=whole)
    later = folded(*events, *rest, state=Partition(began=as_of, position=as_of, next_request=1))
    assert later.runs == whole.runs
    assert not whole.runs["r"].open


@pytest.mark.parametrize("between", [b.returned(1), e.CallsHandedOff("w", 1.0, (b.planned(1).call_id,)), b.cancelled()])
def test_an_event_of_the_run_in_between_makes_it_void(between: e.Event) -> None:
    state = in_mid_run()
    first, events = state.runs["r"].first, said_again(state)
    folded(between, *events, state=state)
    assert state.runs["r"].first == first
    fresh = Partition(began=3, position=3, next_request=1)
    assert "r" not in folded(between, *events, state=fresh).runs


def test_parts_count_only_when_the_last_is_in_and_twice_is_once() -> None:
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=BIG.encode()))
    as_of, events = state.position, said_again(state)
    assert len(events) == 2
    folded(events[0], state=state)
    assert state.runs["r"].first == 0
    folded(events[0], events[1], state=state)
    assert state.runs["r"].first == as_of


def test_parts_of_two_authors_do_not_mix() -> None:
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=BIG.encode()))
    mine, theirs = said_again(state), said_again(state, author="w2")
    folded(mine[0], theirs[0], mine[1], state=state)
    assert state.runs["r"].first == 0


def test_a_snapshot_from_before_this_fold_began_is_void() -> None:
    events = said_again(in_mid_run())
    state = folded(*events, state=Partition(began=10, position=10, next_request=1))
    assert state.runs == {}


def test_a_closed_run_does_not_come_back() -> None:
    state = in_mid_run()
    events = said_again(state)
    folded(b.cancelled(), *events, state=state)
    assert not state.runs["r"].open


# --- snapshots that cannot be read ---------------------------------------------------------------------


def test_one_that_cannot_be_read_is_void_where_the_older_events_are_known() -> None:
    state = in_mid_run()
    (event,) = said_again(state)
    before = replace(state.runs["r"])
    folded(replace(event, body=b"{}"), state=state)
    assert state.runs["r"] == before
    assert "it is void" in state.defects[0]


def test_where_the_older_events_are_gone_it_parks_its_run() -> None:
    (event,) = said_again(in_mid_run())
    state = Partition(began=3, position=3, next_request=1)
    folded(replace(event, body=b"{}"), b.returned(1), b.cancelled(), state=state)
    run = state.runs["r"]
    assert run.open
    assert "cannot be read" in (run.parked or "")
    assert (run.first, run.next_as_of_first) == (3, 1)
    assert run.turns == []


async def test_a_run_that_is_parked_by_its_snapshot_holds_low_and_costs_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = in_mid_run()
    (event,) = said_again(whole)
    desk = Desk()
    desk.log.write(b.requested(), b.calls(b.planned(0), b.planned(1)), b.returned())
    desk.log.write(replace(event, body=b"{}"))
    desk.begin(Commit(3, 3, 1)).read()
    desk.write(b.requested("s", after=1, offset=1), b.replied(run_id="s", life="1"))
    await desk.sent.ack()
    assert [answer["run_id"] for answer in desk.answers] == ["s"]
    assert desk.owner.commit(True) == Commit(3, desk.log.end, 1)
    assert "run r is parked" in caplog.text
    assert desk.called == []
    desk.owner.clean(age_s=0.0)
    assert not any(isinstance(appended, e.RunSnapshot) for appended in desk.appended)


async def test_who_can_read_the_snapshot_goes_on_with_the_run() -> None:
    """A later version takes over: low was held where it finds all that it needs."""
    whole = in_mid_run()
    (event,) = said_again(whole)
    parked = folded(replace(event, schema="run.snapshot/2"), state=Partition(began=3, position=3, next_request=1))
    low, after = parked.runs["r"].first, parked.runs["r"].next_as_of_first
    later = folded(event, b.returned(1), state=Partition(began=low, position=low, next_request=after))
    assert later.runs["r"].parked is None
    assert later.runs["r"].turn == 2


def test_a_parked_run_has_no_deadline_of_its_own() -> None:
    (event,) = said_again(in_mid_run())
    state = folded(replace(event, body=b""), state=Partition(began=3, position=3, next_request=1))
    assert state.runs["r"].opening.deadline == math.inf


# --- cleaning ------------------------------------------------------------------------------------------------


def test_cleaning_is_due_when_dead_bytes_outweigh_live_ones() -> None:
    assert not cleaning.is_due(SMALL, 0, SMALL, SMALL)
    assert cleaning.is_due(SMALL + 1, 0, SMALL, SMALL)
    assert not cleaning.is_due(10 * SMALL, 5 * SMALL, 10 * SMALL, SMALL)
    assert cleaning.is_due(10 * SMALL + 1, 5 * SMALL, 5 * SMALL + 1, SMALL)
    assert not cleaning.is_due(10 * SMALL + 1, 5 * SMALL, 5 * SMALL, SMALL)


def test_the_log_is_measured_to_within_a_step() -> None:
    size = LogSize(STEP)
    for offset in range(1000):
        size.add(offset, 1000)
    for offset in (0, 10, 500, 999):
        assert abs(size.since(offset) - (1000 - offset) * 1000) <= STEP + 1000
    size.forget_before(900)
    assert abs(size.since(950) - 50_000) <= STEP + 1000


async def test_an_owner_cleans_and_low_moves_past_the_dead_events() -> None:
    desk = Desk().begin()
    desk.write(b.requested("old"))
    for number in range(1, 12):
        name, life = f"r{number}", str(number)
        desk.write(b.requested(name, after=number, offset=number))
        desk.write(b.replied(run_id=name, life=life, body=b.message([b.text(BIG)])))
        await desk.sent.ack()
    before = desk.owner.commit(True)
    assert before is not None
    assert before.low == 0
    end = desk.log.end
    desk.owner.clean(age_s=1e9)
    desk.land().read()
    after = desk.owner.commit(True)
    assert after is not None
    assert after.low == end
    successor = Desk(desk.log).begin(Commit(after.low, after.done, after.next_request)).read()
    assert successor.owner.state.runs["old"] == desk.owner.state.runs["old"]
    assert len(desk.sent.to("t.agent.log")) == len([each for each in desk.appended if isinstance(each, e.RunSnapshot)])


async def test_a_run_that_grows_old_is_said_again_in_time() -> None:
    desk = Desk().begin()
    desk.write(b.requested(), at=10.0)
    desk.clock.now = 10.0 + 99
    desk.owner.clean(age_s=100)
    assert desk.appended == []
    desk.clock.now = 10.0 + 101
    desk.owner.clean(age_s=100)
    desk.land().read()
    run: Run = desk.owner.state.runs["r"]
    assert run.first == 1


async def test_what_is_said_again_is_said_once_while_the_broker_does_not_answer() -> None:
    desk = Desk().begin()
    desk.write(b.requested(), at=10.0)
    desk.clock.now = 10.0 + 101
    for _ in range(600):
        desk.owner.clean(age_s=100)
    assert [type(event) for event in desk.appended] == [e.RunSnapshot]
    await desk.sent.ack()
    desk.owner.clean(age_s=100)
    assert len(desk.appended) == 2, "nobody has read the first one"
