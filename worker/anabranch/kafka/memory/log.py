"""The records of the double in memory: topics, their settings, and what lies in their partitions.

Responsible for: offsets, timestamps, which partition a record belongs to, and which records are refused.
Must never: wait, fail at random, or know of groups; that is what `link.py` and `group.py` are for.
Called by: the rest of the double. Tests look at what lies where through `MemoryBroker`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from anabranch.codec import Headers, Outgoing
from anabranch.errors import BrokerError, TooLarge, TopicsError
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked
from anabranch.topics import TopicSpec, partition_of
from anabranch.values import frozen

DEFAULT_RECORD_BYTES: Final = 1_048_588
"""Kafka's own default of `max.message.bytes`."""


@frozen()
class MemoryRecord:
    """A record as read. `timestamp` is milliseconds, the producer's or, with `LogAppendTime`, ours."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Partition:
    """The records of one place, from `begin` to before `end`, without gaps."""

    def __init__(self, place: Place) -> None:
        self.place, self.begin = place, 0
        self._records: list[MemoryRecord] = []
        # A dict, because a set would call its watchers in an order of its own in each process.
        self._watchers: dict[Callable[[], None], None] = {}

    @property
    def end(self) -> int:
        return self.begin + len(self._records)

    def append(self, record: Outgoing, timestamp_ms: int) -> int:
        """Write `record`, tell the watchers, and return its offset."""
        offset, (topic, partition) = self.end, self.place
        self._records.append(
            MemoryRecord(topic, partition, offset, timestamp_ms, record.key, record.value, record.headers)
        )
        for watcher in list(self._watchers):
            watcher()
        return offset

    def read(self, offset: int, most: int) -> Sequence[MemoryRecord]:
        """At most `most` records from `offset` on, or from the oldest one on if `offset` is gone."""
        index = max(offset - self.begin, 0)
        return self._records[index : index + most]

    def since(self, timestamp_ms: float) -> int:
        """The offset of the first record that is not older than `timestamp_ms`, else the end."""
        return self.begin + bisect_left(self._records, timestamp_ms, key=lambda record: record.timestamp)

    def trim(self, offset: int) -> None:
        """Forget what lies below `offset`, as retention does."""
        gone = min(max(offset - self.begin, 0), len(self._records))
        del self._records[:gone]
        self.begin += gone

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` after each record, until `unwatch`."""
        self._watchers[watcher] = None

    def unwatch(self, watcher: Callable[[], None]) -> None:
        self._watchers.pop(watcher, None)


@dataclass(slots=True)
class Topic:
    """A topic with its settings, names and values as Kafka spells them."""

    name: str
    partitions: list[Partition]
    settings: dict[str, str]

    @property
    def largest(self) -> int:
        return int(self.settings.get("max.message.bytes", DEFAULT_RECORD_BYTES))

    @property
    def stamps(self) -> bool:
        return self.settings.get("message.timestamp.type") == "LogAppendTime"

    def grow(self, partitions: int) -> None:
        for number in range(len(self.partitions), partitions):
            self.partitions.append(Partition(Place(self.name, number)))


class MemoryLog:
    """Every topic of the cluster. `clock` gives epoch seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turn = count()
        self.topics: dict[str, Topic] = {}

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def create(self, spec: TopicSpec) -> None:
        topic = Topic(spec.name, [], dict(spec.settings))
        topic.grow(spec.partitions)
        self.topics[spec.name] = topic

    def topic(self, name: str) -> Topic:
        if name not in self.topics:
            raise TopicsError(f"there is no topic {name!r}; create it with `anabranch topics apply`")
        return self.topics[name]

    def partition(self, place: Place) -> Partition:
        """Raises `TopicsError` for a topic that is not there and `BrokerError` for a partition that it lacks."""
        partitions = self.topic(place.topic).partitions
        if not 0 <= place.partition < len(partitions):
            raise BrokerError(f"{place.topic} has no partition {place.partition}; it has {len(partitions)}")
        return partitions[place.partition]

    def partitions(self, places: Iterable[Place]) -> list[Partition]:
        return [self.partition(place) for place in sorted(set(places))]

    def route(self, record: Outgoing) -> Partition:
        """Where `record` belongs. Raises `TooLarge`, and `BrokerError` for a place that does not exist."""
        topic = self.topic(record.topic)
        if record.size > topic.largest:
            raise TooLarge(
                f"a record of {record.size} bytes does not fit into {topic.name}, which takes {topic.largest}; "
                "send less, or raise the topic's max.message.bytes"
            )
        if record.partition is not None:
            return self.partition(Place(topic.name, record.partition))
        size = len(topic.partitions)
        return topic.partitions[next(self._turn) % size if record.key is None else partition_of(record.key, size)]

    def write(self, partition: Partition, record: Outgoing, sent_ms: int) -> Acked:
        """Append `record`, sent at `sent_ms`, and say where it lies."""
        at_ms = self.now_ms() if self.topic(record.topic).stamps else None
        return Acked(partition.append(record, sent_ms if at_ms is None else at_ms), at_ms)
