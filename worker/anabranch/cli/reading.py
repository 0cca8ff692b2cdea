"""Reads all of a topic for a command, and says on a terminal how far it is, if that takes its time.

A log of a week takes minutes. Must never: say a word where stderr is no terminal, or fold what it reads. Called by
`picture/logs.py`, and by the commands `usage` and `dlq`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from anabranch.cli import output
from anabranch.codec import Record
from anabranch.kafka.seam import Broker, Place, Reader

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

POLL_S: Final = 0.5
QUIET_S: Final = 1.0
"""What takes no longer needs no word."""


async def whole(broker: Broker, topic: str) -> AsyncIterator[Record]:
    """Each record that is in the topic now. Raises `BrokerError`."""
    places = [Place(topic, number) for number in range(await broker.partitions(topic))]
    async with broker.reader(places, "begin") as reader:
        ends = await reader.ends()
        with HowFar(topic, reader, ends, output.stderr()) as far:
            while any(reader.position(place) < ends[place] for place in places):
                for record in await reader.read(POLL_S):
                    yield record
                far.tell()


class Newest(Generic[T]):
    """Keeps the newest `limit` of what it is given; `left_out` are the others."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._kept: list[tuple[float, str, int, T]] = []

    def take(self, at: float, what: T, name: str = "") -> None:
        """Of two at the same time the one counts as newer whose name is behind the other's, or that is given later."""
        self._taken += 1
        heapq.heappush(self._kept, (at, name, self._taken, what))
        if len(self._kept) > self._limit:
            heapq.heappop(self._kept)

    @property
    def left_out(self) -> int:
        return self._taken - len(self._kept)

    def first_to_last(self) -> list[T]:
        return [what for *_, what in sorted(self._kept, key=lambda entry: entry[:3])]


class HowFar:
    """The part of a topic that is read. What is on the screen is gone when the context ends."""

    def __init__(
        self, topic: str, reader: Reader, ends: Mapping[Place, int], console: Console, quiet_s: float = QUIET_S
    ) -> None:
        self._topic, self._reader, self._ends = topic, reader, ends
        self._begins = {place: reader.position(place) for place in ends}
        self._from = time.monotonic() + quiet_s
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> HowFar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self) -> None:
        if self._status is not None and time.monotonic() >= self._from:
            self._status.update(f"reading {self._topic}: {self._percent()} %")
            self._status.start()

    def _percent(self) -> int:
        read = sum(min(self._reader.position(place), end) - self._begins[place] for place, end in self._ends.items())
        return 100 * read // max(1, sum(end - self._begins[place] for place, end in self._ends.items()))
