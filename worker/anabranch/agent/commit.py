"""What the agent worker commits for a partition, and how it stands in the group's offsets.

With the log's partition stand *low*, *done* and the interactive lane's `next_request`, as they always did; with the
bulk lane's partition its own, and the *low* that it is as of: so a worker of before reads what it knows. With the
interactive lane's partition stands who signs (`Signer.mark`).

`Reach` says what, `Commits` commits it, `AgentWorker` reads it. A commit of another version counts as one without
metadata.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from anabranch.agent.state import Nexts
from anabranch.kafka.seam import Committed, Place
from anabranch.values import frozen

log = logging.getLogger(__name__)

Offsets = Mapping[Place, int]


@frozen()
class Commit:
    """Where a fold has to begin, and what it then must know; `next_request` or `next_bulk` -1: the log has to tell.

    `bulk_reached` is how far the bulk lane surely was, if not even the log tells.
    """

    low: int
    done: int
    next_request: int
    next_bulk: int = 0
    bulk_reached: int = 0

    @property
    def nexts(self) -> Nexts:
        """What is told, as of *low*."""
        return Nexts(*(None if known < 0 else known for known in (self.next_request, self.next_bulk)))

    def write(self) -> Committed:
        return Committed(self.low, f"1 {self.done} {self.next_request}")

    def write_bulk(self) -> Committed:
        return Committed(self.bulk_reached, f"1 {self.low} {self.next_bulk}")


def taken_over(
    log_place: Place,
    lanes: Sequence[Place],
    committed: Mapping[Place, Committed | None],
    begins: Offsets,
    ends: Offsets,
) -> tuple[Commit | None, Nexts]:
    """What counts of the commit that a partition is taken over with, if there is one, and the oldest requests that may
    not have been taken up. `lanes` are the interactive and the bulk requests.
    """
    of_log, of_requests, of_bulk = (committed.get(place) for place in (log_place, *lanes))
    known = read_commit(of_log, of_bulk)
    if known is not None:
        known = trusted(known, log_place, lanes, begins, ends)
    told = of_requests, of_ours(of_log, of_bulk)
    return known, Nexts(*(oldest(begins[at], ends[at], each) for at, each in zip(lanes, told, strict=True)))


def of_ours(committed: Committed | None, bulk: Committed | None) -> Committed | None:
    """What stands with the bulk lane, unless it alone has no metadata: then somebody else has set it, and it counts for
    nothing.
    """
    is_ours = bulk is None or committed is None or _numbers(bulk) is not None or _numbers(committed) is None
    return bulk if is_ours else None


def read_commit(committed: Committed | None, bulk: Committed | None = None) -> Commit | None:
    """Without metadata, `next_request` is what the first event that names one says; so is `next_bulk` if what stands
    with the bulk lane is of another low: somebody who knows no lanes has committed since.
    """
    if committed is None:
        return None
    done, next_request = _numbers(committed) or (0, -1)
    next_bulk, reached = -1, 0
    if (bulk := of_ours(committed, bulk)) is not None:
        low, next_bulk = _numbers(bulk) or (-1, -1)
        next_bulk, reached = next_bulk if low == committed.offset else -1, bulk.offset
    return Commit(committed.offset, done, next_request, next_bulk, reached)


def trusted(commit: Commit, log_place: Place, lanes: Sequence[Place], begins: Offsets, ends: Offsets) -> Commit:
    """What counts of a commit if topics are shorter than it says, which nothing but a loss of records makes them."""
    (requests, bulk), end = lanes, ends[log_place]
    if commit.low <= end:
        for place, reached in (requests, commit.next_request), (bulk, max(commit.next_bulk, commit.bulk_reached)):
            if reached > ends[place]:
                log.error(
                    "%s/%d ends at %d, and requests up to %d were taken up: what comes below that is not. Was it "
                    "deleted and created anew? Then do the same with %s",
                    *place, ends[place], reached, log_place.topic, extra=place._asdict(),
                )  # fmt: skip
        low = begins[log_place] - 1 if _lacks_bulk(commit) and ends[bulk] else commit.low  # the whole log tells
        return replace(commit, low=low, done=min(commit.done, end))
    log.error(
        "%s/%d ends at %d, and was folded beyond %d: what is gone is forgotten, runs included. Was it deleted and "
        "created anew, or did a replica become leader that lacked some?",
        *log_place, end, commit.low, extra=log_place._asdict(),
    )  # fmt: skip
    next_request = commit.next_request if commit.next_request <= ends[requests] else -1  # else it was created anew too
    next_bulk, reached = (at if at <= ends[bulk] else 0 for at in (commit.next_bulk, commit.bulk_reached))
    return Commit(begins[log_place] - 1, 0, next_request, next_bulk, reached)


def _lacks_bulk(commit: Commit) -> bool:
    """Whether one lane alone is known: the other's offset was lost, set by somebody else, or never there."""
    return commit.next_request >= 0 and commit.next_bulk < 0 and not commit.bulk_reached


def oldest(begin: int, end: int, committed: Committed | None) -> int:
    """The oldest request that may not have been taken up, if the log does not tell: nobody pays twice for one that was
    lost with what it has led to.
    """
    return begin if committed is None or committed.offset > end else max(begin, committed.offset)


def _numbers(committed: Committed) -> tuple[int, int] | None:
    """Those behind the version, which is 1."""
    parts = committed.metadata.split()
    if len(parts) == 3 and parts[0] == "1" and parts[1].isdecimal() and parts[2].isdecimal():
        return int(parts[1]), int(parts[2])
    return None
