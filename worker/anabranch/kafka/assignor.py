"""Who gets which partitions: co-partitioned and sticky, so that a rebalance moves as few as possible.

Range is the only assignor of aiokafka's that gives partition 7 of every topic to one member, and it moves
about 40 % of all partitions when a member joins. This one moves what balance demands and nothing else: each
member tells in its join what it had, and keeps it up to its fair share. `share` is pure; the class around it
is made anew for each consumer, for aiokafka calls it by its class, and its state is the consumer's.

A topic that members of an earlier version do not know is given to nobody while there is such a member: whatever is done
about it means nothing to them, and a partition may be theirs at the next rebalance. A leader sees in the members'
subscriptions whether all know it, and says so with each assignment; a leader of an earlier version gives it to whoever
asks and says nothing, and then what it gave does not count. (Kafka's own way, a second group protocol, is closed:
aiokafka joins once for each assignor that it has, and so starts the next rebalance with every join.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

NAME: Final = "anabranch-sticky"

Owned = tuple[int, frozenset[int]]
"""The round of an assignment, and the partitions that it gave: a later round's claim is the better one."""


def share(numbers: Iterable[int], members: Mapping[str, Owned]) -> dict[str, list[int]]:
    """Divide partition `numbers` evenly among `members`, of whom each keeps what it had up to its share."""
    claimed = _claims(set(numbers), members)
    ordered = sorted(members, key=lambda member: (-len(claimed[member]), member))
    few, more = divmod(len(set(numbers)), len(ordered))
    sizes = {member: few + (place < more) for place, member in enumerate(ordered)}
    given = {member: sorted(claimed[member])[: sizes[member]] for member in ordered}
    free = sorted(set(numbers) - {number for kept in given.values() for number in kept})
    for member in ordered:
        room = sizes[member] - len(given[member])
        given[member], free = sorted([*given[member], *free[:room]]), free[room:]
    return given


def _claims(numbers: set[int], members: Mapping[str, Owned]) -> dict[str, set[int]]:
    """What each had, where two claim the same the later round's; and no partition that is no more."""
    best: dict[int, tuple[int, str]] = {}
    for member, (round_, owned) in members.items():
        for number in owned & numbers:
            best[number] = max(best.get(number, (-1, "")), (round_, member))
    claimed: dict[str, set[int]] = {member: set() for member in members}
    for number, (_, member) in best.items():
        claimed[member].add(number)
    return claimed


@dataclass(slots=True)
class Memory:
    """What a consumer was given last, and which of its `newer` topics the leader has said that all members know."""

    round: int = 0
    owned: frozenset[int] = frozenset()
    known: frozenset[str] = frozenset()


def make_assignor(memory: Memory, newer: Collection[str] = ()) -> type[AbstractPartitionAssignor]:
    """The assignor of one consumer, which keeps `memory`. `newer` are the topics that not all members may know."""

    class StickyAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka has no types
        """What it keeps is the memory of one consumer."""

        name = NAME
        version = 0

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            told = orjson.dumps({"round": memory.round, "owned": sorted(memory.owned)})
            return ConsumerProtocolMemberMetadata(cls.version, sorted(set(topics)), told)

        @classmethod
        def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, ConsumerProtocolMemberAssignment]:
            known = _known_to_all(newer, members)
            topics = {topic for member in members.values() for topic in member.subscription} - (set(newer) - known)
            partitions = {topic: set(cluster.partitions_for_topic(topic) or ()) for topic in topics}
            told = {member: _told(metadata.user_data) for member, metadata in members.items()}
            given = share(set().union(*partitions.values()), told)
            next_round = 1 + max(round_ for round_, _ in told.values())
            said = orjson.dumps({"round": next_round, "known": sorted(known)})
            return {
                member: ConsumerProtocolMemberAssignment(
                    cls.version,
                    [(t, sorted(partitions[t] & set(given[member]))) for t in metadata.subscription if t in topics],
                    said,
                )
                for member, metadata in members.items()
            }

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            memory.round, memory.known = _told(assignment.user_data)[0], _said_to_be_known(assignment.user_data)
            memory.owned = frozenset(where.partition for where in assignment.partitions())

    return StickyAssignor


def _known_to_all(newer: Collection[str], members: Mapping[str, Any]) -> set[str]:
    return {topic for topic in newer if all(topic in member.subscription for member in members.values())}


def _told(user_data: bytes) -> Owned:
    """What a member tells of itself; rubbish counts as nothing."""
    try:
        told = orjson.loads(user_data)
        return int(told["round"]), frozenset(int(number) for number in told.get("owned", ()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, frozenset()


def _said_to_be_known(user_data: bytes) -> frozenset[str]:
    """What the leader says that all members know; a leader of an earlier version says nothing of that."""
    try:
        return frozenset(str(topic) for topic in orjson.loads(user_data).get("known", ()))
    except (ValueError, TypeError, AttributeError):
        return frozenset()
