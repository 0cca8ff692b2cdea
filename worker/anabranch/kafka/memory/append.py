"""The double's `Appender`: what is sent lands in order, perhaps late, perhaps twice.

Responsible for: the queue of each partition, what is written again when its acknowledgement is lost, and who is told.
Must never: let a record overtake another of its partition, or lose one that was given while its process lives.
Called by: whoever asked `MemoryBroker.appender` for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka.memory.link import Link
from anabranch.kafka.memory.log import MemoryLog, Partition
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked, Sent
from anabranch.tasks import happens
from anabranch.values import frozen


@frozen()
class _Item:
    record: Outgoing
    sent_ms: int
    sent: Sent
    once: bool = False


@dataclass(slots=True)
class _Line:
    """What waits for one partition; one request is under way at a time, and takes what waits then."""

    partition: Partition
    waiting: deque[_Item] = field(default_factory=deque)
    under_way: asyncio.TimerHandle | None = None


class MemoryAppender:
    """See `Appender`. Everything happens in timers of the loop: there is no task to own."""

    def __init__(self, log: MemoryLog, link: Link) -> None:
        self._log, self._link = log, link
        self._lines: dict[Place, _Line] = {}
        self.outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        sent = Sent()
        try:
            line = self._line(record)
        except (TooLarge, BrokerError) as error:
            sent.fail(error)
            return sent
        line.waiting.append(_Item(record, self._log.now_ms(), sent, once))
        self.outstanding += 1
        self._idle.clear()
        self._send(line)
        return sent

    async def flush(self, timeout_s: float) -> int:
        await happens(self._idle, timeout_s)
        return self.outstanding

    def send_on(self) -> None:
        """The link is whole again: send what waits."""
        for line in self._lines.values():
            self._send(line)

    def close(self) -> None:
        """Forget what has not been acknowledged, as a process does that ends. Its futures are cancelled."""
        self._closed = True
        for line in self._lines.values():
            if line.under_way is not None:
                line.under_way.cancel()
            for item in line.waiting:
                item.sent.cancel()

    def _line(self, record: Outgoing) -> _Line:
        if self._closed:
            raise BrokerError(f"the appender is closed; a record for {record.topic} came too late")
        partition = self._log.route(record)
        if (line := self._lines.get(partition.place)) is None:
            line = self._lines[partition.place] = _Line(partition)
        return line

    def _send(self, line: _Line) -> None:
        if line.waiting and line.under_way is None and self._link.is_whole and not self._closed:
            line.under_way = self._link.later(lambda: self._arrive(line))

    def _arrive(self, line: _Line) -> None:
        """The request has reached the broker, unless the link was cut meanwhile."""
        line.under_way = None
        if not self._link.is_whole:
            return
        batch = list(islice(line.waiting, self._link.faults.most()))
        written = [self._log.write(line.partition, item.record, item.sent_ms) for item in batch]
        line.under_way = self._link.later(lambda: self._answer(line, batch, written))

    def _answer(self, line: _Line, batch: Sequence[_Item], written: Sequence[Acked]) -> None:
        """The answer is back. If it got lost, the batch is still the head of what waits, and goes again."""
        line.under_way = None
        faults = self._link.faults
        if self._link.is_whole and not faults.lost_ack():
            for item, acked in zip(batch, written, strict=True):
                line.waiting.popleft()
                self._settle()
                item.sent.succeed(Acked(None) if faults.blind_ack() else acked)
        else:
            self._give_up_on(line, [item for item in batch if item.once])
        self._send(line)

    def _give_up_on(self, line: _Line, unknown: Sequence[_Item]) -> None:
        """What may be sent only once is not sent again; whether it was written stays open."""
        for item in unknown:
            line.waiting.remove(item)
            self._settle()
            item.sent.fail(BrokerError(f"a record for {item.record.topic} may have been written"))

    def _settle(self) -> None:
        self.outstanding -= 1
        if not self.outstanding:
            self._idle.set()
