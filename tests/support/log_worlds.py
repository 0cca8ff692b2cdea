"""Where the conformance suite runs: a cluster, the double or Kafka, and members that write down what they hear.

Responsible for: making brokers and topics, expelling a member, and running a subscription around a test.
Must never: assert anything of the seam; that is what the suite does.
Called by: `tests.support.log_conformance`, `tests.support.group_conformance`, and the tests that run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from aiokafka.protocol.group import LeaveGroupRequest

from anabranch.codec import Outgoing, Record
from anabranch.config import KafkaSettings
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.memory.cluster import MemoryBroker, MemorySubscription
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.pump import KafkaSubscription
from anabranch.kafka.seam import Broker, Place, Subscription
from anabranch.kafka.sent import Acked
from anabranch.topics import TopicSpec
from tests.support.wait import until

SOON_S = 15.0
"""How long the suite waits for what must happen: two heartbeats of Kafka and a slow machine."""


class World(Protocol):
    """A cluster, and what a test needs beyond the seam."""

    namespace: str

    def broker(self) -> Broker:
        """A process's view of the cluster, a new one each time."""
        ...

    async def expel(self, subscription: Subscription) -> None:
        """End the session of `subscription` on the broker's side, without its knowledge."""
        ...


class MemoryWorld:
    """The double."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._first = MemoryBroker()

    def broker(self) -> Broker:
        return self._first.another()

    async def expel(self, subscription: Subscription) -> None:
        assert isinstance(subscription, MemorySubscription)
        self._first.expel(subscription)


class KafkaWorld:
    """A real Kafka."""

    def __init__(self, bootstrap: str, namespace: str) -> None:
        self.namespace = namespace
        self.meters = RoleMeters()
        self._settings = KafkaSettings(bootstrap=bootstrap, session_timeout_s=6.0)

    def broker(self) -> Broker:
        return KafkaBroker(self._settings, self.meters)

    async def expel(self, subscription: Subscription) -> None:
        assert isinstance(subscription, KafkaSubscription)
        coordinator = subscription._consumer._coordinator
        await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))


class Member:
    """A listener that writes down what it hears, in `events` too: `assigned`, `revoked`, `records`, in order.

    `begin` are the offsets that it seeks with each assignment: of these places, or of none. `on_revoked` is awaited
    before `revoked` returns. `knows` are the offsets below which nothing needs to be delivered.
    """

    def __init__(self, name: str = "a", begin: dict[Place, int] | None = None) -> None:
        self.name, self.begin = name, begin or {}
        self.places: frozenset[Place] = frozenset()
        self.assignments: list[frozenset[Place]] = []
        self.revocations: list[tuple[frozenset[Place], bool]] = []
        self.got: dict[Place, list[Record]] = {}
        self.positions: dict[Place, int] = {}
        self.ahead_bytes = 2 * 1024 * 1024
        self.knows: dict[Place, int] = {}
        self.on_revoked: Callable[[], Awaitable[None]] | None = None
        self._subscription: Subscription | None = None

    @property
    def subscription(self) -> Subscription:
        assert self._subscription is not None, "not subscribed yet"
        return self._subscription

    def subscribed(self, subscription: Subscription) -> None:
        """The first assignment may have come before anybody had the subscription."""
        self._subscription = subscription
        self._seek()

    def offsets(self, place: Place) -> list[int]:
        return [record.offset for record in self.got.get(place, [])]

    def _seek(self) -> None:
        if self._subscription is not None:
            for place in sorted(self.places & self.begin.keys()):
                self._subscription.seek(place, self.begin[place])

    def assigned(self, places: frozenset[Place]) -> None:
        self.places = places
        self.assignments.append(places)
        self._seek()

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        self.revocations.append((places, lost))
        if self.on_revoked is not None:
            await self.on_revoked()
        self.places = frozenset()

    def records(self, place: Place, records: Sequence[Record]) -> None:
        self.got.setdefault(place, []).extend(records)

    def position(self, place: Place, offset: int) -> None:
        self.positions[place] = offset

    def known(self, place: Place) -> int:
        return self.knows.get(place, 0)

    @property
    def is_answering(self) -> bool:
        return False

    @property
    def is_sated(self) -> bool:
        return False


@asynccontextmanager
async def joined(
    world: World, member: Member, topics: Sequence[str], group: str, newer: Sequence[str] = ()
) -> AsyncIterator[Subscription]:
    """`member` in `group`, reading, until the end of the block; then it has stopped and left."""
    async with world.broker().subscribe(topics, group, member, newer) as subscription:
        member.subscribed(subscription)
        running = asyncio.create_task(subscription.run())
        try:
            yield subscription
        finally:
            subscription.stop()
            await asyncio.wait_for(running, SOON_S)


async def topic(world: World, name: str, partitions: int = 1, **settings: str) -> str:
    """Create `<namespace>.<name>`; settings with underscores for dots. Returns its name."""
    full = f"{world.namespace}.{name}"
    named = {key.replace("_", "."): value for key, value in settings.items()}
    await world.broker().apply([TopicSpec(full, partitions, {"cleanup.policy": "delete", **named})])
    return full


async def write(world: World, place: Place, values: Iterable[bytes]) -> list[int]:
    """Append `values` to `place`; returns their offsets."""
    async with world.broker().appender() as appender:
        futures = [appender.append(record_for(place, value)) for value in values]
        return [offset_of(acked) for acked in await asyncio.gather(*futures)]


def record_for(place: Place, value: bytes | None) -> Outgoing:
    return Outgoing(place.topic, b"key", value, partition=place.partition)


def offset_of(acked: Acked) -> int:
    assert acked.offset is not None
    return acked.offset


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(first, first + count)]


async def read_all(world: World, places: Sequence[Place], count: int) -> dict[Place, list[Record]]:
    """The first `count` records of `places` together, by place."""
    found: dict[Place, list[Record]] = {place: [] for place in places}

    async with world.broker().reader(places, "begin") as reader:

        async def enough() -> bool:
            for record in await reader.read(0.2):
                found[Place(record.topic, record.partition)].append(record)
            return sum(len(records) for records in found.values()) >= count

        await until(enough, SOON_S, f"{count} records")
    return found
