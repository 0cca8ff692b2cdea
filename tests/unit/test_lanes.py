"""The two lanes of requests: one sequence in the log, one room, and cancels that come before their request is taken up.

Responsible for: what `fold.py`, `commit.py`, `cleaning.py`, `room.py` and `admission.py` do about lanes.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.wait import until

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import cleaning
from anabranch.agent.admission.admission import Admission
from anabranch.agent.admission.room import Room
from anabranch.agent.commit import Commit, read_commit
from anabranch.agent.state import Nexts, Partition
from anabranch.codec import decode, encode
from anabranch.config import AgentSettings
from anabranch.errors import WireError
from anabranch.fields import LANES, Lane
from anabranch.kafka.seam import Committed
from anabranch.topics import BULK_REQUESTS, REQUESTS, partition_of


def fresh() -> Partition:
    return Partition(next_request=0, next_bulk=0)


def in_bulk(run_id: str = "x", *, offset: int = 0, after: int = 0, after_bulk: int = 0) -> e.RunRequested:
    opens = b.opening(request=b.request(run_id=run_id))
    return b.requested(run_id, after=after, offset=offset, lane="bulk", after_bulk=after_bulk, opens=opens)


# --- the fold ----------------------------------------------------------------------------------------------------


def test_each_lane_moves_its_own_next_request() -> None:
    state = b.folded(
        b.requested(offset=3, after_bulk=0), in_bulk(offset=7, after=4),
        b.noted("moved", "y", after=4, after_bulk=8, offset=4), state=fresh(),
    )  # fmt: skip
    assert (state.nexts, state.link, state.bulk_link) == (Nexts(5, 8), 2, 1)
    assert {run.run_id: run.life for run in state.runs.values()} == {"r": "3", "x": "bulk.7"}


@pytest.mark.parametrize(
    "event",
    [in_bulk(after=0), in_bulk(after=1, after_bulk=1), b.requested("x", offset=1, after=1, after_bulk=1)],
    ids=["bulk, behind in the other", "bulk, ahead in its own", "interactive, ahead in the other"],
)
def test_an_event_counts_only_where_both_lanes_are_as_it_presumes(event: e.Event) -> None:
    state = b.folded(b.requested(after_bulk=0), event, state=fresh())
    assert (state.nexts, list(state.runs)) == (Nexts(1, 0), ["r"])


def test_what_was_written_before_there_were_lanes_presumes_nothing_of_the_other() -> None:
    state = b.folded(in_bulk(), b.requested(), state=fresh())
    assert (state.nexts, list(state.runs)) == (Nexts(1, 1), ["x", "r"])


def test_the_first_event_that_names_them_tells_where_both_lanes_are() -> None:
    state = b.folded(in_bulk(after=5, offset=9, after_bulk=8), state=Partition())
    assert (state.nexts, state.told) == (Nexts(5, 10), Nexts(5, 8))


def test_a_request_for_a_run_that_came_by_the_other_lane_joins_it() -> None:
    reply_to = m.ReplyTo(3)
    joins = b.noted("duplicate", "x", offset=4, after=0, after_bulk=1, reply_to=reply_to)
    run = b.folded(in_bulk(), joins, state=fresh()).runs["x"]
    assert [address.reply_to for address in run.addresses] == [None, reply_to]


def test_a_reader_that_knows_no_lanes_cannot_take_a_bulk_request_for_another() -> None:
    """It reads `ce_requestoffset` as a whole number, and finds none: the record is a dead letter to it."""
    headers = dict(encode(in_bulk(offset=7), "log", 0, "w").headers)
    assert (headers["ce_requestoffset"], headers["ce_life"]) == (b"bulk.7", b"bulk.7")
    assert dict(encode(b.requested(offset=7), "log", 0, "w").headers).keys() == headers.keys() - {"ce_afterbulk"}


@pytest.mark.parametrize("event", [in_bulk(offset=7, after=2), b.requested(after_bulk=9), b.cancelled(4, 5)])
def test_an_event_that_speaks_of_lanes_is_read_as_it_was_written(event: e.Event) -> None:
    read = decode(b.record(event, 0))
    assert replace(read, size=0) == event if isinstance(read, e.RunRequested) else read == event


def test_a_bulk_event_without_its_place_cannot_be_read() -> None:
    sent = encode(in_bulk(), "log", 0, "w")
    bare = sent._replace(headers=tuple(pair for pair in sent.headers if pair[0] != "ce_afterbulk"))
    with pytest.raises(WireError, match="ce_afterbulk"):
        decode(b.as_read(bare, 0))


# --- cancels -------------------------------------------------------------------------------------------------------


def test_a_run_that_was_cancelled_before_its_request_is_taken_up_never_begins() -> None:
    state = b.folded(b.cancelled(9, 5, run_id="x"), in_bulk(offset=4), state=fresh())
    run = state.runs["x"]
    assert run.ending is not None
    assert (run.ending.status, run.ending.error) == (
        "cancelled",
        m.RunError("cancelled", "enough"),
    )
    assert not run.owed


def test_a_cancel_is_not_of_requests_that_come_after_it() -> None:
    state = b.folded(b.cancelled(9, 5, run_id="x"), in_bulk(offset=5), state=fresh())
    assert state.runs["x"].open
    assert b.folded(b.cancelled(9, 5, run_id="x"), state=state).runs["x"].open
    assert not b.folded(b.cancelled(9, 6, run_id="x"), state=state).runs["x"].open


def test_a_cancel_is_forgotten_once_no_request_can_lie_before_it() -> None:
    state = b.folded(b.cancelled(2, 1, run_id="x"), b.cancelled(1, 1, run_id="y"), state=fresh())
    assert list(state.cancels) == ["x", "y"]
    b.folded(b.noted("cancelled", "x", offset=2, after_bulk=0), state=state)
    assert list(state.cancels) == ["x", "y"]
    b.folded(b.noted("cancelled", "y", lane="bulk", offset=1, after=3, after_bulk=0), state=state)
    assert state.cancels == {}
    assert b.folded(b.cancelled(3, 2, run_id="x"), state=state).cancels == {}


@pytest.mark.parametrize(("behind", "code", "is_open"), [(3, "moved", True), (2, "cancelled", False)])
async def test_a_cancel_taken_up_late_is_not_of_a_run_that_the_other_lane_asked_for_anew(
    behind: int, code: str, is_open: bool
) -> None:
    """It lies at 2 and, in the bulk lane, at 5, and is remembered that long if it names the offsets behind these."""
    desk = Desk().begin().write(b.cancelled(behind, behind + 3, run_id="x"), in_bulk(offset=6))
    async with admitting(desk) as admission:
        admission.feed([asked(0, "a"), asked(1, "b"), asked(2, "x", agent=None, input=None, cancel=True)])
        await until(lambda: len(desk.appended) == 3)
    desk.land().read()
    noted = desk.appended[-1]
    assert isinstance(noted, e.RequestNoted)
    assert (noted.code, desk.owner.state.runs["x"].open) == (code, is_open)


async def test_a_cancel_that_names_one_lane_ends_what_the_other_has_opened() -> None:
    desk = Desk().begin().write(b.cancelled(1, None, run_id="x"), in_bulk(offset=6))
    async with admitting(desk) as admission:
        admission.feed([asked(0, "x", agent=None, input=None, cancel=True)])
        await until(lambda: bool(desk.appended))
    assert not desk.land().read().owner.state.runs["x"].open


async def test_a_cancel_that_waits_holds_low_until_it_is_said_again() -> None:
    desk = Desk(settings=AgentSettings(clean_bytes=500)).begin()
    desk.write(b.cancelled(0, 5, run_id="x"), *(b.noted("moved", f"n{n}", after=n, offset=n) for n in range(9)))
    assert (desk.commit().low, desk.commit().next_request) == (0, 0)
    desk.owner.clean(1e9)
    assert desk.appended == [b.cancelled(0, 5, run_id="x")]
    desk.land().read()
    assert (desk.commit().low, desk.commit().next_request) == (10, 9)
    successor = Desk(desk.log).begin(desk.commit()).write(in_bulk(offset=4, after=9))
    run = successor.owner.state.runs["x"]
    assert run.ending is not None
    assert run.ending.status == "cancelled"


async def test_a_cancel_whose_requests_have_all_been_taken_up_holds_nothing_though_one_before_it_waits() -> None:
    desk = Desk(settings=AgentSettings(clean_bytes=500)).begin()
    desk.write(b.cancelled(0, 5, run_id="x"), b.cancelled(1, 0, run_id="y"))
    desk.write(*(b.noted("moved", f"n{n}", after=n, offset=n) for n in range(8)))
    assert list(desk.owner.state.cancels) == ["x", "y"]
    desk.owner.clean(1e9)
    assert desk.appended == [b.cancelled(0, 5, run_id="x")]
    desk.land().read()
    assert list(desk.owner.state.cancels) == ["y", "x"]
    assert desk.commit().low == 10


# --- commit, snapshot ---------------------------------------------------------------------------------------------


def test_a_commit_stands_with_both_topics() -> None:
    commit = Commit(10, 9, 3, 7, 8)
    assert (commit.write(), commit.write_bulk()) == (Committed(10, "1 9 3"), Committed(8, "1 10 7"))
    assert read_commit(commit.write(), commit.write_bulk()) == commit


def test_what_stands_with_the_bulk_lane_counts_only_if_it_is_of_the_same_low() -> None:
    """Somebody who knows no lanes has committed since: the log has to tell."""
    known = read_commit(Committed(10, "1 9 3"), Committed(8, "1 4 7"))
    assert known == Commit(10, 9, 3, -1, 8)
    assert known.nexts == Nexts(3, None)


async def test_low_is_committed_with_where_both_lanes_were() -> None:
    desk = (
        Desk().begin().write(b.requested(after_bulk=0), in_bulk(after=1), in_bulk("y", offset=1, after=1, after_bulk=1))
    )
    desk.write(b.replied())
    await desk.sent.ack()
    assert desk.commit() == Commit(1, 4, 1, 0, 2)
    successor = Desk(desk.log).begin(desk.commit()).read()
    assert successor.owner.state.nexts == desk.owner.state.nexts == Nexts(1, 2)


async def test_without_metadata_low_stays_with_the_last_event_of_each_lane() -> None:
    desk = Desk().begin().write(in_bulk(), b.replied(run_id="x", life="bulk.0"), b.noted("moved", after_bulk=1))
    await desk.sent.ack()
    commit = desk.owner.commit(metadata_kept=False)
    assert commit is not None
    assert commit.low == 0


def test_a_snapshot_says_where_both_lanes_are() -> None:
    whole = b.folded(b.requested(after_bulk=0), in_bulk(after=1), state=fresh())
    said = list(cleaning.snapshots(whole, whole.runs.values(), "w"))
    later = b.folded(*said, state=Partition(began=2, position=2))
    assert later.nexts == Nexts(1, 1)
    assert later.runs["x"].nexts_as_of_first == Nexts(1, 1)


# --- room ----------------------------------------------------------------------------------------------------------


def filled(room: Room, lane: Lane) -> int:
    """How many bytes one lane takes, until it may not any more."""
    before = room.used
    while room.takes(lane):
        room.change(1, lane)
    return room.used - before


def test_a_quarter_of_the_room_is_kept_for_the_interactive_lane() -> None:
    room = Room(1600)
    assert filled(room, "bulk") == 1200
    assert filled(room, "interactive") == 400


def test_the_bulk_lane_gets_its_part_of_a_room_that_is_full_of_others() -> None:
    room = Room(1600)
    assert filled(room, "interactive") == 1600
    room.bulk_waits = 1
    room.change(-100, "interactive")
    assert not room.takes("interactive")
    assert filled(room, "bulk") == 100
    room.bulk_waits = 0
    room.change(-1, "interactive")
    assert room.takes("interactive")


# --- admission ---------------------------------------------------------------------------------------------------


class Watched(Admission):
    """Counts how often it has started over."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk.owner, desk.station, self._count)
        self.started_over = 0

    def _count(self) -> None:
        self.started_over += 1


@asynccontextmanager
async def admitting(desk: Desk) -> AsyncIterator[Watched]:
    """Takes up the requests of both lanes."""
    admission = Watched(desk)
    tasks = [asyncio.create_task(admission.run(lane)) for lane in LANES]
    try:
        yield admission
        assert not any(task.done() for task in tasks), "admission has died"
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def asked(offset: int, run_id: str, lane: Lane = "interactive", **fields: Any) -> b.Read:
    body = {"agent": "a", "input": "hello", "run_id": run_id, **fields}
    return b.raw_request(body, offset, topic=BULK_REQUESTS if lane == "bulk" else REQUESTS)


async def test_the_events_of_both_lanes_are_one_sequence() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([asked(0, "a"), asked(3, "b")])
        await until(lambda: len(desk.appended) == 2)
        admission.feed([asked(5, "c", "bulk")], "bulk")
        await until(lambda: len(desk.appended) == 3)
        admission.feed([asked(4, "d")])
        await until(lambda: len(desk.appended) == 4)
    state = desk.land().read().owner.state
    assert [(run.run_id, run.life) for run in state.runs.values()] == [
        ("a", "0"),
        ("b", "3"),
        ("c", "bulk.5"),
        ("d", "4"),
    ]


async def test_a_run_that_the_other_lane_is_about_to_open_is_joined() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([asked(0, "a", "bulk")], "bulk")
        await until(lambda: len(desk.appended) == 1)
        admission.feed([asked(0, "a", reply_to={"partition": 2})])
        await until(lambda: len(desk.appended) == 2)
    (run,) = desk.land().read().owner.state.runs.values()
    assert (run.life, [address.reply_to for address in run.addresses]) == ("bulk.0", [None, m.ReplyTo(2)])


async def test_when_others_have_taken_requests_up_it_starts_over_where_the_fold_is() -> None:
    """A zombie's events came first, in another order of the lanes: none of ours will count."""
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([asked(0, "a")])
        await until(lambda: len(desk.appended) == 1)
        admission.feed([asked(0, "b", "bulk"), asked(1, "c", "bulk")], "bulk")
        await until(lambda: len(desk.appended) == 3)
        desk.log.write(in_bulk("b"))
        desk.read()
        admission.folded()
        assert admission.started_over == 1
        assert (admission.position("interactive"), admission.position("bulk")) == (0, 1)
        assert desk.station.room.used == desk.owner.held.bytes
        desk.land().read()
        admission.folded()
        assert list(desk.owner.state.runs) == ["b"]
        admission.feed([asked(0, "a")])
        admission.feed([asked(1, "c", "bulk")], "bulk")
        await until(lambda: len(desk.appended) == 5)
        desk.land().read()
    assert list(desk.owner.state.runs) == ["b", "a", "c"]
    assert desk.owner.state.nexts == Nexts(1, 2)


async def test_a_backlog_of_bulk_runs_in_the_room_holds_up_no_interactive_one() -> None:
    desk = Desk(settings=AgentSettings(max_open_bytes=40_000)).begin()
    async with admitting(desk) as admission:
        admission.feed([asked(n, f"b{n}", "bulk") for n in range(9)], "bulk")
        await until(lambda: len(desk.appended) == 3, what="the bulk lane's part of the room is full")
        admission.feed([asked(0, "now")])
        await until(lambda: len(desk.appended) == 4)
        assert desk.appended[-1].run_id == "now"  # type: ignore[union-attr]
        desk.land().read()
        admission.folded()
        assert len(desk.appended) == 4
        for number in range(3):
            desk.write(b.replied(run_id=f"b{number}", life=f"bulk.{number}"))
        await until(lambda: len(desk.appended) > 4, what="the bulk lane goes on")


async def test_a_request_on_the_wrong_partition_is_moved_in_its_lane() -> None:
    name = next(n for n in map(str, range(99)) if partition_of(n, 8) == 5)
    desk = Desk(partitions=8).begin()
    async with admitting(desk) as admission:
        admission.feed([asked(0, name, "bulk")], "bulk")
        await until(lambda: desk.sent.to(NAMESPACE.bulk_requests))
        await desk.sent.ack(NAMESPACE.bulk_requests)
        await until(lambda: desk.appended)
    (moved,) = desk.sent.to(NAMESPACE.bulk_requests)
    (event,) = desk.appended
    assert moved.topic.endswith(BULK_REQUESTS)
    assert isinstance(event, e.RequestNoted)
    assert (moved.partition, event.code, event.lane) == (5, "moved", "bulk")
