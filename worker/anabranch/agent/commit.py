"""What the agent worker commits for a partition, and how it stands in the group's offsets.

With the log's partition stand *low*, *done* and the interactive lane's `next_request`, as they always did; with the
bulk lane's partition its own, and the *low* that it is as of: so a worker of before reads what it knows.

`Reach` says what, `AgentWorker` commits and reads it. A commit of another version counts as one without metadata.
"""

from __future__ import annotations

from anabranch.agent.state import Nexts
from anabranch.kafka.seam import Committed
from anabranch.values import frozen


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


def read_commit(committed: Committed | None, bulk: Committed | None = None) -> Commit | None:
    """Without metadata, `next_request` is what the first event that names one says; so is `next_bulk` if what stands
    with the bulk lane is of another low: somebody who knows no lanes has committed since.
    """
    if committed is None:
        return None
    _, done, next_request = _numbers(committed) or (1, 0, -1)
    next_bulk, reached = -1, 0
    if bulk is not None:
        _, low, next_bulk = _numbers(bulk) or (1, -1, -1)
        next_bulk, reached = next_bulk if low == committed.offset else -1, bulk.offset
    return Commit(committed.offset, done, next_request, next_bulk, reached)


def _numbers(committed: Committed) -> tuple[int, int, int] | None:
    parts = committed.metadata.split()
    if len(parts) == 3 and parts[0] == "1" and parts[1].isdecimal() and parts[2].isdecimal():
        return 1, int(parts[1]), int(parts[2])
    return None
