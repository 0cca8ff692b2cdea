"""What an appender has to send: a lane for each topic, in it a line for each partition, and their order.

A line has one batch under way at a time; what comes meanwhile waits, and goes together. It sends nothing and knows
no producer: `appender.py` does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from anabranch.codec import Outgoing
from anabranch.kafka.sent import Sent
from anabranch.topics import partition_of


@dataclass(slots=True, eq=False)
class Item:
    record: Outgoing
    sent: Sent
    once: bool
    alone: bool = False  # to be sent in a batch of its own


@dataclass(slots=True, eq=False)
class Line:
    """The records of one partition: those that wait, and the batch that is under way. There is one at a time."""

    partition: int
    waiting: deque[Item] = field(default_factory=deque)
    batch: list[Item] = field(default_factory=list)
    is_out: bool = False  # whether a broker may have written the batch
    sent_at: float = 0.0  # by the loop's clock

    def next_batch(self, batch: Any) -> list[Item]:
        """Fill `batch` with what waits, as far as it goes; returns what is in it. None may be under way."""
        assert not self.batch, f"partition {self.partition} has a batch under way"
        items: list[Item] = []
        self.batch, self.is_out = items, False
        while self.waiting and not (items and (items[0].alone or self.waiting[0].alone)):
            r = self.waiting[0].record
            if batch.append(timestamp=None, key=r.key, value=r.value, headers=list(r.headers)) is None:
                break
            items.append(self.waiting.popleft())
        return items

    def rewind(self) -> list[Item]:
        """What is not acknowledged goes again, first and in order. Returns what must not: sent once, for only once."""
        spent = [item for item in self.batch if item.once and self.is_out]
        self.waiting.extendleft(item for item in reversed(self.batch) if not (item.once and self.is_out))
        self.batch = []
        return spent


@dataclass(slots=True, eq=False)
class Lane:
    """One topic. `ready` are the lines that may be sent; `partitions` is how many it has, once that is known."""

    topic: str
    partitions: int | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    ready: dict[int, Line] = field(default_factory=dict)
    unplaced: deque[Item] = field(default_factory=deque)  # until it is known how many partitions there are
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent_at: float = 0.0
    counted_at: float = 0.0

    def push(self, item: Item) -> None:
        partition = item.record.partition
        if partition is None and self.partitions is not None:
            partition = partition_of(item.record.key or b"", self.partitions)
        if partition is None:
            self.unplaced.append(item)
        else:
            line = self.lines.get(partition)
            if line is None:
                line = self.lines[partition] = Line(partition)
            line.waiting.append(item)
            if not line.batch:
                self.ready[partition] = line
        self.wake.set()

    def see_to(self, line: Line) -> None:
        """Its batch is over: what has come meanwhile may go."""
        if line.waiting:
            self.ready[line.partition] = line
            self.wake.set()

    def take_waiting(self) -> list[Item]:
        """All that waits, which nobody will send."""
        taken = [*self.unplaced, *(item for line in self.lines.values() for item in line.waiting)]
        self.unplaced.clear()
        self.ready.clear()
        for line in self.lines.values():
            line.waiting.clear()
        return taken

    def place(self, partitions: int) -> None:
        """So many partitions there are: what has waited for that finds its place."""
        self.partitions = partitions
        unplaced, self.unplaced = self.unplaced, deque()
        for item in unplaced:
            self.push(item)

    def rewind(self) -> list[Item]:
        """All of its lines are; returns what may not be sent again."""
        self.partitions = None  # whoever comes next asks again
        spent = [item for line in self.lines.values() for item in line.rewind()]
        self.ready = {number: line for number, line in self.lines.items() if line.waiting}
        self.wake.set()
        return spent

    def take_all(self) -> list[Item]:
        """What is under way and what waits: nobody will ever know."""
        under_way = [item for line in self.lines.values() for item in line.batch]
        for line in self.lines.values():
            line.batch = []
        return under_way + self.take_waiting()
