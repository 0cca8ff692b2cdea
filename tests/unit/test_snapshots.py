"""Snapshots and cleaning: a run said again is the run, it counts only when nothing lies between, and low moves on.

Responsible for: `agent/snapshot.py`, `agent/cleaning.py`, and the fold's rule for `run.snapshot`.
Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import Desk

from anabranch import messages as m
from anabranch.agent import cleaning, fold, snapshot
from anabranch.agent.cleaning import LogSize
from anabranch.agent.owner import Commit
from anabranch.agent.state import Partition, Run
from anabranch.errors import WireError

BIG = "x" * 700_000
SMALL, STEP = 4_000_000, 50_000


def folded(*events: m.Event | None, state: Partition | None = None) -> Partition:
    state = state or Partition()
    for event in events:
        fold.apply(state, event, state.position, float(state.position))
    return state


def in_mid_run() -> Partition:
    return folded(b.requested(), b.calls(b.planned(0), b.planned(1)), b.returned())


def said_again(state: Partition, run_id: str = "r", **changes: Any) -> list[m.Event]:
    found: list[m.Event] = list(cleaning.snapshots(state, [state.runs[run_id]], changes.pop("author", "w1")))
    return found


def test_a_run_is_read_as_it_was_written() -> None:
    run = in_mid_run().runs["r"]
    assert snapshot.read(snapshot.write(run)) == run


def test_replies_and_results_come_back_byte_for_byte() -> None:
    body = ('{"n": 1.10, "s": "\\u00e9é"}' + BIG).encode() + b"\xff\xfe"
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=body))
    parts = snapshot.write(state.runs["r"])
    assert len(parts) > 1
    assert all(len(part) <= snapshot.PART for part in parts)
    assert snapshot.read(parts) == state.runs["r"]


def test_no_part_is_larger_than_it_may_be_whatever_is_in_it() -> None:
    body = b'\x01"\\' * 5_000
    state = folded(b.requested(), b.calls(b.planned(0)), b.returned(body=body))
    parts = snapshot.write(state.runs["r"], 4096)
    assert len(parts) > 15
    assert all(len(part) <= 4096 for part in parts)
    assert snapshot.read(parts) == state.runs["r"]


@pytest.mark.parametrize("part", [b"", b"{}", b'{"pieces":[[0,"{}"]]}', b'{"pieces":[[3,"x"]]}', b"[1]"])
def test_what_is_no_snapshot_is_refused(part: bytes) -> None:
    with pytest.raises(WireError):
        snapshot.read([part])


def test_a_fold_that_begins_at_the_snapshot_knows_the_run() -> None:
    whole = in_mid_run()
    as_of, events = whole.position, said_again(whole)
    folded(*events, state=whole)
    later = folded(*events, state=Partition(began=as_of, position=as_of, next_request=1))
    assert later.runs == whole.runs
    assert later.runs["r"].first == as_of
    assert later.runs["r"].next_as_of_first == 1


def test_it_goes_on_from_the_snapshot_as_from_the_events() -> None:
    whole = in_mid_run()
    as_of, events = whole.position, said_again(whole)
    rest: list[m.Event] = [b.returned(1), b.replied(turn=2)]
    folded(*events, *rest, state=whole)
    later = folded(*events, *rest, state=Partition(began=as_of, position=as_of, next_request=1))
    assert later.runs == whole.runs
    assert not whole.runs["r"].open


@pytest.mark.parametrize("between", [b.returned(1), m.CallsHandedOff("w", 1.0, (b.planned(1).call_id,)), b.cancelled()])
def test_an_event_of_the_run_in_between_makes_it_void(between: m.Event) -> None:
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
    assert len(desk.sent.to("t.agent.log")) == len([e for e in desk.appended if isinstance(e, m.RunSnapshot)])


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
