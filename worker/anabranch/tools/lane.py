"""One partition of a queue: how far it is done, what was taken in, and the serial keys that others go on with.

It says what may be committed and when intake has to pause; it executes nothing, and knows no broker. The worker
has a lane for each partition that is its own, from one assignment to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from anabranch.kafka.seam import Committed
from anabranch.tools import marks
from anabranch.tools.marks import Marks, ShareMark
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Job

WAITING: Final = 4000
"""How many calls of one partition are taken in; beyond it the partition pauses."""
METADATA: Final = 4000
"""Bytes of a commit's metadata that Kafka surely takes."""


@dataclass(slots=True)
class Lane:
    """See the module. `held` is until when a key is another's; it and `paused_at` are epoch seconds.

    `jobs` are those of this assignment, by offset; `shares` are those of limits. `stands` once a commit of this
    assignment is confirmed: what former owners have said counts no more.
    """

    progress: Progress
    held: dict[str, int] = field(default_factory=dict)
    shares: Callable[[], tuple[ShareMark, ...]] = tuple
    stands: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    paused_at: float | None = None
    _crowded: bool = False

    @property
    def waiting_since(self) -> float | None:
        """When the oldest call was published that waits for a place; None if none does.

        What is not fetched yet is younger than what is here. If all of that runs, and the partition is paused, what
        is behind has waited since then, as far as anybody here knows.
        """
        waiting = (job.since for job in self.jobs.values() if not job.begun and not job.behind_its_key)
        return min(waiting, default=self.paused_at)

    @property
    def waiting(self) -> int:
        """How many calls were taken in and have not begun."""
        return sum(not job.begun for job in self.jobs.values())

    def commit(self, now: float) -> Committed | None:
        """What may be committed; None if it would be more than Kafka takes."""
        low = self.progress.low
        found = self.progress.marks
        held = tuple((key, until) for key, until in self.held.items() if until > now)
        metadata = marks.write(low, Marks(found.finished, found.begun, held, self.shares()))
        self._crowded = len(metadata) > marks.PAUSE
        return Committed(low, metadata) if len(metadata) <= METADATA else None

    @property
    def full(self) -> bool:
        return self._crowded or len(self.jobs) >= WAITING

    @property
    def has_room(self) -> bool:
        """Enough to go on after a pause."""
        return not self._crowded and len(self.jobs) <= WAITING // 2

    def hold(self, key: str, until: int, now: float) -> bool:
        """Name the key in the commits from now on; False, and nothing changed, if there is no room for it."""
        before = self.held.get(key)
        self.held[key] = until
        if self.commit(now) is not None:
            return True
        del self.held[key]
        if before is not None:
            self.held[key] = before
        return False

    def drop_waiting(self) -> None:
        """What has not begun will be read again, by whoever has the partition then."""
        waiting = {offset: job for offset, job in self.jobs.items() if not job.begun}
        self.jobs = {offset: job for offset, job in self.jobs.items() if job.begun}
        self.progress.give_back(waiting.keys())
        for job in waiting.values():
            job.drop()

    def forget(self, job: Job) -> None:
        """It is over, or will be read again."""
        if self.jobs.get(job.offset) is job:
            del self.jobs[job.offset]
