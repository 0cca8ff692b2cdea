"""How many bytes of calls one tool worker takes in, over all of its partitions.

Half of the room is for whoever comes first; of the other half each partition has its own part, so that calls that wait
long in one partition (for a limit, for a key) leave room for those of all others. It counts, and pauses nothing:
`calls.py` does, by what `full` and `has_room` say of a lane.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from anabranch.kafka.seam import Place
from anabranch.tools.serving import Job

CALL_BYTES: Final = 8_000
"""What a call that waits takes beside its body, about."""
BODY_TIMES: Final = 2
"""How often its body is there: as it was read, and as arguments."""


class Intake:
    """See the module. `limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[Job, int] = {}
        self._used = 0
        self._of: dict[Place, int] = {}

    @property
    def count(self) -> int:
        """How many calls there are, those included that run."""
        return len(self._jobs)

    @property
    def used(self) -> int:
        return self._used

    def take(self, job: Job) -> None:
        weight = self._jobs[job] = CALL_BYTES + BODY_TIMES * len(job.record.value or b"")
        self._used += weight
        self._of[job.place] = self._of.get(job.place, 0) + weight

    def free(self, job: Job) -> bool:
        """Whether there is now room for all partitions, and was not before."""
        weight = self._jobs.pop(job, None)
        if weight is None:
            return False
        had_room = self._has_room_for_all
        self._used -= weight
        self._of[job.place] -= weight
        return not had_room and self._has_room_for_all

    def keep_only(self, jobs: Iterable[Job]) -> None:
        """All others were dropped: those in the line of a limit have no task whose end would tell."""
        kept = [job for job in jobs if job in self._jobs]
        self._jobs, self._used, self._of = {}, 0, {}
        for job in kept:
            self.take(job)

    @property
    def _has_room_for_all(self) -> bool:
        return 4 * self._used <= self._limit

    def full(self, place: Place, partitions: int) -> bool:
        """Whether this one of so many partitions has to pause."""
        return 2 * self._used >= self._limit and self._of.get(place, 0) >= self._own(partitions)

    def has_room(self, place: Place, partitions: int) -> bool:
        """Enough to go on after a pause."""
        return self._has_room_for_all or 2 * self._of.get(place, 0) <= self._own(partitions)

    def _own(self, partitions: int) -> float:
        return self._limit / 2 / max(1, partitions)
