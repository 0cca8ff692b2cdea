"""What an appender has to send: a lane for each topic, in it a line for each partition, and their order.

A line has one batch under way at a time; what comes meanwhile waits, and goes together. It sends nothing:
`kafka/appender.py` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

from anabranch.codec import Outgoing
from anabranch.kafka.produce.producing import Batch
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
    items: list[Item] = field(default_factory=list)  # of the batch
    batch: Batch | None = None
    sent_at: float = 0.0  # by the loop's clock

    def fill(self, batch: Batch, items: list[Item]) -> None:
        """Fill `batch` with what waits, as far as it goes, and `items` with what is in it. None may be under way."""
        assert not self.items, f"partition {self.partition} has a batch under way"
        self.batch, self.items = batch, items
        while self.waiting and not (items and (items[0].alone or self.waiting[0].alone)):
            if not batch.append(self.waiting[0].record):
                break
            items.append(item := self.waiting.popleft())
            batch.once |= item.once

    def end(self) -> None:
        """The batch is over."""
        self.items, self.batch = [], None

    def none_written(self) -> None:
        """The broker has refused the batch: whatever may be sent only once has not been spent by it."""
        self.batch = None

    def rewind(self) -> list[Item]:
        """What is not acknowledged goes again, first and in order. Returns what must not: sent once, for only once."""
        is_out = self.batch is not None and self.batch.is_out
        spent = [item for item in self.items if item.once and is_out]
        self.waiting.extendleft(item for item in reversed(self.items) if not (item.once and is_out))
        self.end()
        return spent

    def take_waiting(self) -> list[Item]:
        taken = list(self.waiting)
        self.waiting.clear()
        return taken


@dataclass(slots=True, eq=False)
class Lane:
    """One topic. `ready` are the lines that may be sent; `partitions` is how many it has, once that is known."""

    topic: str
    partitions: int | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    ready: dict[int, Line] = field(default_factory=dict)
    unplaced: deque[Item] = field(default_factory=deque)  # until it is known how many partitions there are
    counted_at: float = 0.0
    is_looked_up: bool = False  # somebody is finding out how many there are

    def push(self, item: Item) -> bool:
        """Whether there is something to do now: else it waits for its line's batch."""
        partition = item.record.partition
        if partition is None and self.partitions is not None:
            partition = partition_of(item.record.key or b"", self.partitions)
        if partition is None:
            self.unplaced.append(item)
            return True
        line = self.lines.get(partition)
        if line is None:
            line = self.lines[partition] = Line(partition)
        line.waiting.append(item)
        return self.has_more(line)

    def has_more(self, line: Line) -> bool:
        """Whether a batch of it may go, as far as it alone is concerned."""
        if line.waiting and not line.items:
            self.ready[line.partition] = line
            return True
        return False

    def take_ready(self) -> list[Line]:
        """Lines of which a batch may go; the others stay, for partitions that are not known."""
        return self._take(range(self.partitions or 0))

    def take_beyond(self) -> list[Line]:
        """Lines that are ready, of partitions that the topic does not have."""
        return self._take([number for number in self.ready if number not in range(self.partitions or 0)])

    def _take(self, partitions: Container[int]) -> list[Line]:
        taken = [line for number, line in self.ready.items() if number in partitions]
        for line in taken:
            del self.ready[line.partition]
        return taken

    @property
    def lacks(self) -> bool:
        """Whether something waits for the partitions to be looked up."""
        return bool(self.ready or self.unplaced)

    def take_waiting(self) -> list[Item]:
        """All that waits, which nobody will send."""
        taken = [*self.unplaced, *(item for line in self.lines.values() for item in line.take_waiting())]
        self.unplaced.clear()
        self.ready.clear()
        return taken

    def place(self, partitions: int) -> None:
        """So many partitions there are: what has waited for that finds its place."""
        self.partitions = partitions
        unplaced, self.unplaced = self.unplaced, deque()
        for item in unplaced:
            self.push(item)

    def rewind(self) -> list[Item]:
        """All of its lines are; returns what may not be sent again."""
        self.partitions, self.is_looked_up = None, False  # whoever comes next asks again
        spent = [item for line in self.lines.values() for item in line.rewind()]
        self.ready = {number: line for number, line in self.lines.items() if line.waiting}
        return spent

    def take_all(self) -> list[Item]:
        """What is under way and what waits: nobody will ever know."""
        under_way = [item for line in self.lines.values() for item in line.items]
        for line in self.lines.values():
            line.end()
        return under_way + self.take_waiting()
