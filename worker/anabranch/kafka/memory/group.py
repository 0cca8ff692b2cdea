"""The double's group coordinator: Kafka's classic eager protocol, as a `Listener` sees it.

Responsible for: who is a member, generations, the range assignment, and the commits of one group.
Must never: call a listener, or wait: members come to it, and it answers their joins with futures.
Called by: `read.MemorySubscription`, and `MemoryBroker` for the tests that expel a member.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Final, NamedTuple, Protocol

from anabranch.kafka.memory.log import MemoryLog
from anabranch.kafka.seam import Committed, Place
from anabranch.values import frozen

METADATA_BYTES: Final = 4096
"""The broker's `offset.metadata.max.bytes`."""


@frozen()
class Timing:
    """How patient the cluster and its clients are, in seconds.

    A member hears of a rebalance, or of its expulsion, `heartbeat_s` after it began; is expelled if it has not
    come back within `rebalance_s`, or has been cut off for `session_s`; and gives a commit up after `request_s`.
    """

    heartbeat_s: float = 0.01
    rebalance_s: float = 10.0
    session_s: float = 10.0
    request_s: float = 5.0


class Member(Protocol):
    """What the coordinator knows of a member."""

    @property
    def topics(self) -> Sequence[str]: ...

    def learn(self) -> None:
        """A heartbeat's answer says that there is something to `join` for."""
        ...


class Seated(NamedTuple):
    """What a join is answered with."""

    generation: int
    places: frozenset[Place]


@dataclass(slots=True)
class _Seat:
    member: Member
    joined: asyncio.Future[Seated | None] | None = None


class Group:
    """One consumer group."""

    def __init__(self, log: MemoryLog, timing: Timing, metadata: bool, random: Random | None) -> None:
        self._log, self._timing, self._metadata, self._random = log, timing, metadata, random
        self._seats: dict[str, _Seat] = {}
        self._numbers = count()
        self._deadline: asyncio.TimerHandle | None = None
        self.generation = 0
        self.commits: dict[Place, Committed] = {}

    @property
    def is_rebalancing(self) -> bool:
        return self._deadline is not None

    @property
    def members(self) -> list[Member]:
        return [seat.member for seat in self._seats.values()]

    def has(self, name: str) -> bool:
        return name in self._seats

    def awaits(self, name: str) -> bool:
        """Whether the member called `name` has to join, again or as a new one."""
        seat = self._seats.get(name)
        return seat is None or (self.is_rebalancing and seat.joined is None)

    def join(self, name: str, member: Member) -> tuple[str, asyncio.Future[Seated | None]]:
        """Join as `name`, or under a new name if that is not a member's.

        Returns the name and the answer, which comes when all members have joined; it is None if the member
        has been expelled while it waited.
        """
        if name not in self._seats:
            name = self._new_name()
            self._seats[name] = _Seat(member)
        joined: asyncio.Future[Seated | None] = asyncio.get_running_loop().create_future()
        self._seats[name].joined = joined
        self.rebalance()
        return name, joined

    def rebalance(self) -> None:
        """Make all members join anew: they are told with their next heartbeat."""
        if not self.is_rebalancing:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._timing.rebalance_s, self._give_up)
            for seat in self._seats.values():
                if seat.joined is None:
                    self._tell(seat.member)
        self._finish_if_complete()

    def leave(self, name: str) -> None:
        if self._seats.pop(name, None) is not None:
            self.rebalance()

    def expel(self, member: Member) -> None:
        """Take a member out that does not know it yet, if it is one."""
        for name in [name for name, seat in self._seats.items() if seat.member is member]:
            seat = self._seats.pop(name)
            if seat.joined is not None and not seat.joined.done():
                seat.joined.set_result(None)
            self._tell(member)
            self.rebalance()

    def commit(self, name: str, generation: int, offsets: Mapping[Place, Committed]) -> bool:
        """Keep `offsets`, unless they come from a former generation or from no member. Kafka does not ask
        whose places they are."""
        if not self.has(name) or generation != self.generation:
            return False
        if any(len(commit.metadata.encode()) > METADATA_BYTES for commit in offsets.values()):
            return False
        kept = {place: commit if self._metadata else replace(commit, metadata="") for place, commit in offsets.items()}
        self.commits.update(kept)
        return True

    def _new_name(self) -> str:
        # Kafka's names end in random characters, and the range assignment sorts by them.
        prefix = f"{self._random.getrandbits(32):08x}-" if self._random else ""
        return f"{prefix}{next(self._numbers):06}"

    def _tell(self, member: Member) -> None:
        asyncio.get_running_loop().call_later(self._timing.heartbeat_s, member.learn)

    def _give_up(self) -> None:
        """Go on without those who have not joined in time."""
        for name in [name for name, seat in self._seats.items() if seat.joined is None]:
            self._tell(self._seats.pop(name).member)
        self._finish_if_complete()

    def _finish_if_complete(self) -> None:
        if self._deadline is None or any(seat.joined is None for seat in self._seats.values()):
            return
        self._deadline.cancel()
        self._deadline = None
        self.generation += 1
        topics = {name: seat.member.topics for name, seat in self._seats.items()}
        sizes = {name: len(topic.partitions) for name, topic in self._log.topics.items()}
        shares = range_assignment(topics, sizes)
        for name, seat in self._seats.items():
            if seat.joined is not None and not seat.joined.done():
                seat.joined.set_result(Seated(self.generation, shares[name]))
            seat.joined = None


def range_assignment(members: Mapping[str, Iterable[str]], sizes: Mapping[str, int]) -> dict[str, frozenset[Place]]:
    """Kafka's range assignor: the places of each member, given its topics and the topics' partition counts.

    Two topics of one size that all members read are divided alike. Topics without a size do not exist.
    """
    shares: dict[str, set[Place]] = {name: set() for name in members}
    topics = {name: set(wanted) for name, wanted in members.items()}
    for topic in sorted(set().union(*topics.values())):
        readers = sorted(name for name in members if topic in topics[name])
        each, over = divmod(sizes.get(topic, 0), len(readers))
        first = 0
        for index, name in enumerate(readers):
            last = first + each + (index < over)
            shares[name].update(Place(topic, number) for number in range(first, last))
            first = last
    return {name: frozenset(places) for name, places in shares.items()}
