"""What the agent worker commits for a partition, and how it stands in the group's offsets.

`Owner` says what, `AgentWorker` commits and reads it. A commit of another version counts as one without metadata.
"""

from __future__ import annotations

from dataclasses import dataclass

from anabranch.kafka.seam import Committed


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a fold has to begin, and what it then must know; `next_request` -1: the log has to tell."""

    low: int
    done: int
    next_request: int

    def write(self) -> Committed:
        return Committed(self.low, f"1 {self.done} {self.next_request}")


def read_commit(committed: Committed | None) -> Commit | None:
    """Without metadata, `next_request` is what the first event that names one says."""
    if committed is None:
        return None
    parts = committed.metadata.split()
    if len(parts) == 3 and parts[0] == "1" and parts[1].isdecimal() and parts[2].isdecimal():
        return Commit(committed.offset, int(parts[1]), int(parts[2]))
    return Commit(committed.offset, 0, -1)
