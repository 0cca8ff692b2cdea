"""Commits of a log, or of requests, that have become shorter than they say: what of them still counts.

Responsible for: what `agent/commit.py` reads and trusts. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support import builders as b
from tests.support.desk import Desk

from anabranch import log_events as e
from anabranch.agent.commit import Commit, of_ours, oldest, read_commit, trusted
from anabranch.kafka.seam import Committed, Place

LOG, REQUESTS, BULK = Place("agent.log", 3), Place("agent.requests", 3), Place("agent.requests.bulk", 3)
COMMIT = Commit(low=100, done=120, next_request=50, next_bulk=7, bulk_reached=9)


def what_counts(
    log_begin: int, log_end: int, requests_end: int = 60, bulk_end: int = 10, commit: Commit = COMMIT
) -> Commit:
    ends = {LOG: log_end, REQUESTS: requests_end, BULK: bulk_end}
    return trusted(commit, LOG, (REQUESTS, BULK), {LOG: log_begin}, ends)


def test_a_commit_of_what_is_there_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert what_counts(90, 120, 50) == COMMIT
    assert what_counts(130, 140) == COMMIT, "the owner sees to what retention has eaten"
    assert not caplog.records


def test_nothing_counts_as_published_that_is_yet_to_be_written() -> None:
    assert what_counts(90, 110) == Commit(100, 110, 50, 7, 9)


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (5, 99)])
def test_of_a_log_that_ends_before_it_the_requests_alone_count(
    begin: int, end: int, caplog: pytest.LogCaptureFixture
) -> None:
    known = what_counts(begin, end)
    assert (known.low < begin, known.done) == (True, 0), "the log is folded from its beginning, and is to tell itself"
    assert (known.next_request, known.next_bulk, known.bulk_reached) == (50, 7, 9), "if it does not"
    assert f"agent.log/3 ends at {end}, and was folded beyond 100" in caplog.text


def test_requests_that_are_fewer_than_were_taken_up_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assert what_counts(90, 130, 49, 8) == COMMIT
    assert "agent.requests/3 ends at 49, and requests up to 50 were taken up" in caplog.text
    assert "agent.requests.bulk/3 ends at 8, and requests up to 9 were taken up" in caplog.text


@pytest.mark.parametrize("bulk", [None, Committed(10, ""), Committed(10, "set by a tool")])
def test_where_the_bulk_lane_was_is_read_from_the_log_if_its_commit_is_lost_or_not_ours(
    bulk: Committed | None,
) -> None:
    known = read_commit(COMMIT.write(), bulk)
    assert known is not None
    found = what_counts(90, 130, commit=known)
    assert (found.low < 90, found.done, found.bulk_reached) == (True, 120, 0)
    assert what_counts(90, 130, bulk_end=0, commit=known) == known, "nobody has asked by it yet"
    assert oldest(5, 10, of_ours(COMMIT.write(), bulk)) == 5, "if the log is empty"


def test_a_broker_that_keeps_no_metadata_says_how_far_both_lanes_were() -> None:
    known = read_commit(Committed(100, ""), Committed(9, ""))
    assert known == Commit(100, 0, -1, -1, 9)
    assert what_counts(90, 130, commit=known) == known


def test_if_all_were_created_anew_nothing_counts() -> None:
    """The commit was written in between, by somebody who still had the old ones."""
    known = what_counts(0, 3, 2, 1)
    assert (known.nexts.interactive, known.next_bulk, known.bulk_reached) == (None, 0, 0)
    assert oldest(0, 2, Committed(50, "")) == 0


def test_without_a_log_no_request_is_taken_up_that_was_before() -> None:
    assert oldest(5, 60, None) == 5
    assert oldest(5, 60, Committed(40, "")) == 40
    assert oldest(50, 60, Committed(40, "")) == 50


async def test_whoever_gave_a_partition_up_cannot_have_published_what_came_later() -> None:
    """Its word may stand in a log that was created anew while it still had the old one."""
    desk = Desk().begin(Commit(0, 0, 0))
    desk.write(e.PartitionReleased(120))
    desk.write(b.requested())
    assert desk.owner.state.done == 0
