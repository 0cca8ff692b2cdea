"""How many bytes of open runs there may be, about how many there are, and which lane may take more of them.

A part is kept for the interactive lane, so that its runs are admitted however many of the bulk lane are open, and a
smaller one for the bulk lane while its requests wait, so that it never starves. Must never: decide who gets room;
`Admission` does, and counts what it opens, as `Owner` counts what is open.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from anabranch.agent.state import Life, Run
from anabranch.fields import Lane, lane_of

KEPT: Final[dict[Lane, float]] = {"interactive": 1 / 4, "bulk": 1 / 16}
"""The part of the room that no other lane takes."""
RUN_BYTES: Final = 12_000
"""What an open run takes in memory beside its bodies, with three calls out, about: many small ones need room, too."""


@dataclass(slots=True)
class Room:
    """Bytes of open runs, and of those that are being opened: of a worker, or of a partition `within` the worker's.
    `freed` is set whenever some of it becomes free; `waiting` is how many requests wait for that, `bulk_waits` those of
    the bulk lane.
    """

    limit: int
    used: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    used_by_bulk: int = 0
    waiting: int = 0
    bulk_waits: int = 0
    within: Room | None = None

    def waits(self, lane: Lane, change: int) -> None:
        """So many requests more wait, or fewer."""
        self.waiting += change
        if lane == "bulk":
            self.bulk_waits += change

    def change(self, size: int, lane: Lane) -> None:
        """So many bytes more are held, or fewer, here and in what this is within."""
        room: Room | None = self
        while room is not None:
            room.used += size
            if lane == "bulk":
                room.used_by_bulk += size
            if size < 0:
                room.freed.set()
            room = room.within

    def takes(self, lane: Lane) -> bool:
        """Whether one more run of this lane may be opened."""
        if lane == "bulk":
            kept = KEPT["interactive"] * self.limit - (self.used - self.used_by_bulk)
        elif self.bulk_waits:
            kept = KEPT["bulk"] * self.limit - self.used_by_bulk
        else:
            return self.used < self.limit
        return self.used + max(0.0, kept) < self.limit


class Held:
    """What the open runs of one partition take of its `room`; `open_bytes` are those of their bodies alone."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._sizes: dict[Life, int] = {}
        self.open_bytes = 0

    @property
    def bytes(self) -> int:
        return self.open_bytes + RUN_BYTES * len(self._sizes)

    @property
    def runs(self) -> int:
        return len(self._sizes)

    def account(self, run: Run) -> None:
        """It may have grown, or ended."""
        life, sizes = (run.run_id, run.life), self._sizes
        before, beside = sizes.get(life), 0
        if run.ending is None:
            change = run.size - (before or 0)
            if before is None:
                beside = RUN_BYTES
            elif not change:
                return
            sizes[life] = run.size
        elif before is not None:
            del sizes[life]
            change, beside = -before, -RUN_BYTES
        else:
            return
        self.open_bytes += change
        self.room.change(change + beside, lane_of(run.life))

    def clear(self) -> None:
        """Give the room back."""
        for life, size in self._sizes.items():
            self.room.change(-(size + RUN_BYTES), lane_of(life[1]))
        self._sizes.clear()
        self.open_bytes = 0
