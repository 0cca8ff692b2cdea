"""The double's `Subscription` and `Reader`.

Responsible for: being a member (hearing of rebalances, calling the listener in the order that Kafka does), positions,
pauses, and delivering. Like aiokafka it joins before `subscribe` returns, delivers nothing while a rebalance is
under way, and does not call `revoked` when it is closed.
Must never: deliver of a place that has not been sought since the last assignment.
Called by: whoever asked `MemoryBroker` for one; `learn` by the group's coordinator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

from anabranch.codec import Record
from anabranch.kafka.memory.group import Group, Seated
from anabranch.kafka.memory.link import Link
from anabranch.kafka.memory.log import MemoryLog, Partition
from anabranch.kafka.seam import Committed, Listener, Place, Start

BATCH: Final = 500
"""How many records are delivered at once."""
BATCHES: Final = (1, 2, 5, 20, BATCH)
"""The sizes that chance has to choose from: mostly small ones, so that much can happen in between."""


@dataclass(slots=True)
class _Cursor:
    """Where we are in a place that is ours. Before the first `seek` there is no position."""

    partition: Partition
    position: int | None = None
    reported: int | None = None
    paused: bool = False

    @property
    def next(self) -> int | None:
        """What is delivered next: retention may have taken what lies at the position."""
        return None if self.position is None else max(self.position, self.partition.begin)

    @property
    def has_more(self) -> bool:
        return not self.paused and (following := self.next) is not None and following < self.partition.end

    @property
    def is_news(self) -> bool:
        return (following := self.next) is not None and self.reported != following <= self.partition.end


class _Turns:
    """Whose turn it is: one after the other, or at random if the cluster has a generator."""

    def __init__(self, random: Random | None) -> None:
        self._random, self._last = random, Place("", 0)

    def choose(self, ready: Sequence[Place]) -> tuple[Place, int]:
        """A place of `ready`, which is sorted, and how many records to take from it at most."""
        if self._random is not None:
            return self._random.choice(ready), self._random.choice(BATCHES)
        self._last = next((place for place in ready if place > self._last), ready[0])
        return self._last, BATCH

    def leaves_out(self) -> bool:
        """Whether what is known already is not delivered: a fetch may have been under way."""
        return self._random is None or self._random.random() < 0.5


class MemorySubscription:
    """See `Subscription`. `attended` is its membership, `run` its reading."""

    def __init__(
        self, log: MemoryLog, link: Link, group: Group, topics: Sequence[str], listener: Listener,
        random: Random | None,
    ) -> None:  # fmt: skip
        self._log, self._link, self.group, self._listener = log, link, group, listener
        self.topics = tuple(topics)
        self._turns = _Turns(random)
        self._name, self._generation = "", -1
        self._places: frozenset[Place] = frozenset()
        self._cursors: dict[Place, _Cursor] = {}
        self._stopped = self.closed = False
        self._failure: BaseException | None = None
        self._commits = asyncio.Lock()
        self._news, self._wake, self._seated = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def alive(self) -> bool:
        """Nobody freezes in here: who is expelled finds out as any zombie does."""
        return True

    # --- membership -------------------------------------------------------------------------------------------

    def learn(self) -> None:
        if self._link.is_whole:
            self._news.set()

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Be a member, from the first assignment on. What the listener raises ends `run`."""
        membership = asyncio.create_task(self._attend(), name=f"membership of {', '.join(self.topics)}")
        membership.add_done_callback(self._ended)
        try:
            await self._seated.wait()
            yield
        finally:
            membership.cancel()
            await asyncio.wait([membership])

    def _ended(self, membership: asyncio.Task[None]) -> None:
        if not membership.cancelled():
            self._failure = membership.exception()
            self._seated.set()
            self._wake.set()

    async def _attend(self) -> None:
        """Join, and join again whenever the group asks for it."""
        while True:
            while not self.group.awaits(self._name):
                self._news.clear()
                await self._news.wait()
            await self._give_back()
            await self._join()

    def close(self) -> None:
        """Leave the group, which hears of it unless the link is cut: then it finds out by itself."""
        self.closed = True
        self.stop()
        self._forget()
        if self._link.is_whole:
            self.group.leave(self._name)

    def reconnect(self) -> None:
        """The link is whole again."""
        if self.closed:
            self.group.leave(self._name)
        self._news.set()
        self._wake.set()

    async def _give_back(self) -> None:
        places, self._places = self._places, frozenset()
        self._forget()
        lost = not self.group.has(self._name)
        if lost:
            self._generation = -1
        if places:
            await self._listener.revoked(places, lost)

    async def _join(self) -> None:
        await self._link.pass_over()
        name, answer = self.group.join(self._name, self)
        if name != self._name:
            self._name, self._generation = name, -1
        seated = await answer
        await self._link.pass_over()
        if seated is not None:
            self._sit(seated)

    def _sit(self, seated: Seated) -> None:
        self._generation, self._places = seated
        for partition in self._log.partitions(self._places):
            self._cursors[partition.place] = _Cursor(partition)
            partition.watch(self._fetch)
        self._seated.set()
        self._listener.assigned(self._places)

    def _forget(self) -> None:
        for cursor in self._cursors.values():
            cursor.partition.unwatch(self._fetch)
        self._cursors.clear()

    # --- reading ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self._stopped:
            if self._failure is not None:
                raise self._failure
            self._report()
            if self._link.is_whole and self._deliver():
                await asyncio.sleep(0)  # so that whoever was told can act before the next records
            else:
                await self._wake.wait()
                self._wake.clear()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def seek(self, place: Place, offset: int) -> None:
        if (cursor := self._cursors.get(place)) is not None:
            cursor.position, cursor.reported, cursor.paused = max(offset, cursor.partition.begin), None, False
            self._wake.set()

    def pause(self, place: Place) -> None:
        if (cursor := self._cursors.get(place)) is not None:
            cursor.paused = True

    def resume(self, place: Place) -> None:
        if (cursor := self._cursors.get(place)) is not None:
            cursor.paused = False
            self._wake.set()

    def _fetch(self) -> None:
        self._link.later(self._wake.set)

    def _deliver(self) -> bool:
        """Deliver records of one place; whether there were any."""
        ready = [place for place, cursor in self._cursors.items() if cursor.has_more]
        if not ready:
            return False
        place, most = self._turns.choose(ready)
        cursor = self._cursors[place]
        if (known := self._listener.known(place)) > (cursor.next or 0) and self._turns.leaves_out():
            cursor.position = min(known, cursor.partition.end)
            if not cursor.has_more:
                return True
        records = cursor.partition.read(cursor.next or 0, most)
        cursor.position = records[-1].offset + 1  # before the listener, which may seek
        self._listener.records(place, records)
        return True

    def _report(self) -> None:
        """Tell the positions of the places that have been read as far as they go."""
        for place, cursor in list(self._cursors.items()):
            following = cursor.next
            if cursor.is_news and not cursor.has_more and following is not None and place in self._cursors:
                cursor.reported = following
                self._listener.position(place, following)

    # --- offsets ----------------------------------------------------------------------------------------------

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        wanted = sorted(set(places))
        await self._link.pass_over()
        return {place: self.group.commits[place] for place in wanted if place in self.group.commits}

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        name, generation, kept = self._name, self._generation, dict(offsets)
        async with self._commits:  # a member's commits take effect in the order in which it made them
            if not await self._link.passes():
                return False
            if not self.group.commit(name, generation, kept):
                self.learn()
                return False
            return not self._link.faults.lost_commit()

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        return {partition.place: partition.end for partition in await self._partitions(places)}

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        return {partition.place: partition.begin for partition in await self._partitions(places)}

    async def partitions(self, topic: str) -> int:
        return len(self._log.topic(topic).partitions)

    async def _partitions(self, places: Iterable[Place]) -> list[Partition]:
        found = self._log.partitions(places)
        await self._link.pass_over()
        return found


class MemoryReader:
    """See `Reader`."""

    def __init__(self, partitions: Iterable[Partition], link: Link, start: Start, random: Random | None) -> None:
        self._partitions = {partition.place: partition for partition in partitions}
        self._link, self._turns = link, _Turns(random)
        self._positions = {place: _begin(partition, start) for place, partition in self._partitions.items()}
        self._wake = asyncio.Event()
        for partition in self._partitions.values():
            partition.watch(self._fetch)

    def close(self) -> None:
        for partition in self._partitions.values():
            partition.unwatch(self._fetch)

    def reconnect(self) -> None:
        """The link is whole again."""
        self._wake.set()

    async def read(self, timeout_s: float) -> Sequence[Record]:
        try:
            async with asyncio.timeout(timeout_s):
                while not (ready := self._ready()):
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return []
        place, most = self._turns.choose(ready)
        records = self._partitions[place].read(self._positions[place], most)
        self._positions[place] = records[-1].offset + 1
        return records

    async def ends(self) -> dict[Place, int]:
        await self._link.pass_over()
        return {place: partition.end for place, partition in self._partitions.items()}

    def position(self, place: Place) -> int:
        return self._positions[place]

    def _fetch(self) -> None:
        self._link.later(self._wake.set)

    def _ready(self) -> list[Place]:
        if not self._link.is_whole:
            return []
        places = self._partitions.items()
        return [place for place, partition in places if max(self._positions[place], partition.begin) < partition.end]


def _begin(partition: Partition, start: Start) -> int:
    if isinstance(start, Mapping):
        return start[partition.place]
    if start == "begin":
        return partition.begin
    if start == "end":
        return partition.end
    return partition.since(start * 1000)
