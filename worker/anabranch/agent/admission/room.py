"""How many bytes of open runs there may be, and which lane may take more of them.

A part is kept for the interactive lane, so that its runs are admitted however many of the bulk lane are open, and a
smaller one for the bulk lane while its requests wait, so that it never starves. `Owner` and `Admission` count in it; it
decides nothing about a run.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from anabranch.fields import Lane

KEPT: Final[dict[Lane, float]] = {"interactive": 1 / 4, "bulk": 1 / 16}
"""The part of the room that no other lane takes."""


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
