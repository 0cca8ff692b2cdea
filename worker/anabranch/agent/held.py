"""What the open runs of one partition take in memory, about, and the room that is left for more.

Responsible for: the count, in the partition's own room and in that of the whole worker. Must never: decide who gets
room; `Admission` does. Called by: `owner.py`, `admission.py`, `sampling.py`.
"""

from __future__ import annotations

from typing import Final

from anabranch import messages as m
from anabranch.agent.room import Room
from anabranch.agent.state import Run

RUN_BYTES: Final = 12_000
"""What an open run takes in memory beside its bodies, with three calls out, about: many small ones need room, too."""


class Held:
    """See the module. `open_bytes` are those of the bodies alone."""

    def __init__(self, own: Room, workers: Room) -> None:
        self.room, self._workers = own, workers
        self._sizes: dict[tuple[str, str], int] = {}
        self.open_bytes = 0

    @property
    def bytes(self) -> int:
        return self.open_bytes + RUN_BYTES * len(self._sizes)

    @property
    def runs(self) -> int:
        return len(self._sizes)

    def account(self, run: Run) -> None:
        """It may have grown, or ended."""
        life = (run.run_id, run.life)
        before, lane = self._sizes.get(life), m.lane_of(run.life)
        if run.open and before != run.size:
            self._sizes[life] = run.size
            self._resize(run.size - (before or 0), RUN_BYTES if before is None else 0, lane)
        elif not run.open and before is not None:
            del self._sizes[life]
            self._resize(-before, -RUN_BYTES, lane)

    def _resize(self, change: int, beside: int, lane: m.Lane) -> None:
        self.open_bytes += change
        self.change(change + beside, lane)

    def change(self, size: int, lane: m.Lane) -> None:
        """So many bytes more are held, or fewer."""
        self.room.change(size, lane)
        self._workers.change(size, lane)

    def clear(self) -> None:
        """Give the room back."""
        for life, size in self._sizes.items():
            self.change(-(size + RUN_BYTES), m.lane_of(life[1]))
        self._sizes.clear()
        self.open_bytes = 0
