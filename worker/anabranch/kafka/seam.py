"""The two seams between the roles and a broker: `Appender` writes, `Subscription` reads as a group member.

`Broker` hands them out, with a plain `Reader` for those who read without a group, and with what is asked of
an admin. Kafka implements them in this folder, and `memory/` holds their double; roles, client
and commands know nothing else of a broker. Offsets are ints, times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

from anabranch.codec import Outgoing, Record
from anabranch.kafka.sent import Sent
from anabranch.topics import TopicSpec
from anabranch.values import frozen


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@frozen()
class Committed:
    """A committed offset with its metadata (empty on a broker that keeps none)."""

    offset: int
    metadata: str


@frozen()
class Lack:
    """One deviation of a topic from its spec: one line, with the value, what is wanted, and what mends it.

    `dangerous`: with it records could be lost, or the protocol does not hold.
    """

    topic: str
    message: str
    dangerous: bool


class Appender(Protocol):
    """Writes records. Those to one partition land in the order in which they were given."""

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        """Send `record`, again and again until the broker has it; what is returned ends when it has.

        It fails only for what no repetition cures: `TooLarge`, or `BrokerError` for a topic that does not
        exist or is forbidden. A record may be written twice; with `once` it is sent a single time, and a
        `BrokerError` leaves open whether it was written.
        """
        ...

    @property
    def outstanding(self) -> int:
        """How many records are not acknowledged."""
        ...

    async def flush(self, timeout_s: float) -> int:
        """Wait until all is acknowledged; returns how many records are not, after `timeout_s`."""
        ...


class Listener(Protocol):
    """What a subscription calls. Only `revoked` may take its time, and the group waits for it."""

    @property
    def ahead_bytes(self) -> int:
        """How much of each place that is not paused may be fetched ahead; a record that is larger comes alone."""
        ...

    def assigned(self, places: frozenset[Place]) -> None:
        """These, and no others, are ours now, kept ones too. Nothing is read of a place before `seek`.

        The first time may come before `subscribe` has been entered. Pauses are forgotten.
        """
        ...

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        """All that were ours are taken. `lost`: the session is over, and nothing may be committed.

        Nothing is delivered while it runs. It is not called when nothing was ours, nor at the end.
        """
        ...

    def records(self, place: Place, records: Sequence[Record]) -> None:
        """Records of a place, in order, from the position on."""
        ...

    def position(self, place: Place, offset: int) -> None:
        """Everything below `offset` has been delivered."""
        ...

    def known(self, place: Place) -> int:
        """What lies below this offset need not be delivered, for it is known already; it may be, all the same."""
        ...

    @property
    def is_answering(self) -> bool:
        """Whether we are writing records that would be read back if we read on at once."""
        ...

    @property
    def is_sated(self) -> bool:
        """Whether there is enough to do for a while: what else was fetched is delivered at leisure then."""
        ...


class Subscription(Protocol):
    """Membership in a consumer group."""

    async def run(self) -> None:
        """Read and deliver until `stop`. Raises if the group cannot be read, or a place has lost what was read."""
        ...

    def stop(self) -> None: ...

    @property
    def alive(self) -> bool:
        """False when the session may have been lost: nothing may be started then."""
        ...

    def seek(self, place: Place, offset: int) -> None:
        """Begin, or go on, at `offset`, paused or not; the place must not end before it. Of a place that is not ours:
        nothing happens.
        """
        ...

    def pause(self, place: Place) -> None: ...

    def resume(self, place: Place) -> None: ...

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        """What is committed; places without a commit are left out."""
        ...

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        """Commit within this generation; False if it was not confirmed."""
        ...

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """The offset that the next record of each place will get."""
        ...

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        """The oldest offset that each place still has."""
        ...

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has: somebody may have added some. Raises `TopicsError` if it is gone."""
        ...


class Reader(Protocol):
    """Reads given partitions without a group."""

    async def read(self, timeout_s: float) -> Sequence[Record]:
        """The next records, or none after `timeout_s`."""
        ...

    async def ends(self) -> dict[Place, int]: ...

    def position(self, place: Place) -> int: ...


Start = Literal["begin", "end"] | float | Mapping[Place, int]
"""Where a reader begins: at the oldest record, after the newest one, at a time in epoch seconds, or at offsets."""


class Broker(Protocol):
    """One Kafka cluster, or its double."""

    def appender(self) -> AbstractAsyncContextManager[Appender]: ...

    def subscribe(
        self, topics: Sequence[str], group: str, listener: Listener, newer: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Subscription]:
        """Become a member. Of `newer` topics nothing is assigned while a member of an earlier version does not know
        them: what we took of them would mean nothing to it, once it had our partitions.
        """
        ...

    def reader(self, places: Sequence[Place], start: Start) -> AbstractAsyncContextManager[Reader]: ...

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has. Raises `TopicsError` if there is no such topic."""
        ...

    async def lacks(self, specs: Sequence[TopicSpec]) -> list[Lack]:
        """What differs from `specs`."""
        ...

    async def apply(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create and alter topics so that they are as in `specs`; returns what was done."""
        ...
