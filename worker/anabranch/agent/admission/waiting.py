"""The requests of one lane that are held ready until they are taken up.

Responsible for: how many there are, when the partition is to pause and to go on, and since when the oldest waits. Must
never: look into a request. Called by: `admission.py`, of which each has one for each lane.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from anabranch.codec import Record
from anabranch.fields import Lane

BUFFER: Final = 500
"""How many requests of a lane are held ready; beyond it the partition pauses."""
BUFFER_BYTES: Final = 1024 * 1024
"""How many bytes of them: they may be large."""


@dataclass(slots=True)
class Waiting:
    """The requests of a lane that are held ready."""

    lane: Lane
    records: deque[Record] = field(default_factory=deque)
    bytes: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    taking: Record | None = None
    paused: bool = False  # whether no more is read until it is hungry

    @property
    def waiting_since(self) -> float:
        """Since when the oldest request that is here waits, in epoch seconds; `inf` if none does."""
        first = self.taking or (self.records[0] if self.records else None)
        return first.timestamp / 1000 if first is not None else math.inf

    @property
    def full(self) -> bool:
        return len(self.records) >= BUFFER or self.bytes >= BUFFER_BYTES

    @property
    def hungry(self) -> bool:
        return len(self.records) <= BUFFER // 2 and self.bytes <= BUFFER_BYTES // 2

    def feed(self, records: Sequence[Record]) -> bool:
        """Returns whether there were too many before: one delivery that is taken up at once is no reason to pause."""
        if is_too_much := self.full:
            self.paused = True
        self.records.extend(records)
        for record in records:
            self.bytes += len(record.value or b"")
        self.wake.set()
        return is_too_much

    async def first(self) -> None:
        """Wait for one."""
        while not self.records:
            self.wake.clear()
            await self.wake.wait()

    def take(self) -> Record:
        record = self.records.popleft()
        self.bytes -= len(record.value or b"")
        return record

    def clear(self) -> None:
        self.records.clear()
        self.bytes, self.taking, self.paused = 0, None, False
