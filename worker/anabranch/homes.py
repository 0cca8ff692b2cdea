"""Homes: the partitions of a queue at which the calls of a limit are executed. PURE.

The law: a limit's budget lies in its homes, each of which has a fixed part of the rate and of the places. Whoever
owns a home in the consumer group may spend its part, and nobody else may. So the sum over the fleet is the limit,
and no worker has to ask another. Agent workers choose a home for each call, tool workers pace what they find there;
both must come to the same homes, so nothing here may depend on a process. Must never know a clock or a broker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from anabranch.specs import LimitSpec
from anabranch.values import frozen

PER_HOME: Final = 10.0
"""Calls a second that are worth a home of their own."""
FEW: Final = 4
"""A limit with at most this part of the partitions has them to itself, as far as calls without a limit go."""


@frozen()
class Share:
    """What one home may let through: calls a second, and calls at once (None: as many as like)."""

    per_second: float
    places: int | None


def budget_of(limit: LimitSpec, tenant: str | None) -> str:
    """The name of the budget that a call uses: the limit's, or its tenant's own."""
    return limit.name if limit.per is None else f"{limit.name}/{tenant or ''}"


def homes(limit: LimitSpec, tenant: str | None, partitions: int) -> tuple[int, ...]:
    """The homes of a call's budget, in the order of their rank: with a higher limit, these and more."""
    count = min(max(int(limit.per_second / PER_HOME), 1), partitions)
    if limit.concurrency is not None:
        count = min(count, limit.concurrency)
    return _ranked(budget_of(limit, tenant), partitions)[:count]


def share(limit: LimitSpec, tenant: str | None, partition: int, partitions: int) -> Share | None:
    """The part of the budget that lies at `partition`; None if it is no home of it."""
    found = homes(limit, tenant, partitions)
    if partition not in found:
        return None
    places = limit.concurrency
    if places is not None:
        few, more = divmod(places, len(found))
        places = few + (found.index(partition) < more)
    return Share(limit.per_second / len(found), places)


def home_of(key: str, among: Sequence[int]) -> int:
    """Where calls with this serial key go. Few keys move when a home is added or taken away."""
    return max(among, key=lambda home: _hash(f"{key}@{home}"))


@lru_cache(maxsize=256)
def open_to_all(limits: frozenset[LimitSpec], partitions: int) -> tuple[int, ...]:
    """The partitions for calls without a limit: not the homes of limits that have few, but always half of all."""
    taken: set[int] = set()
    for limit in sorted(limits, key=lambda limit: limit.name):
        found = homes(limit, None, partitions) if limit.per is None else ()
        if len(found) * FEW <= partitions and len(taken.union(found)) * 2 <= partitions:
            taken.update(found)
    return tuple(partition for partition in range(partitions) if partition not in taken)


def in_turn(count: int, among: Sequence[int]) -> int:
    """Where the call with this running number goes."""
    return among[count % len(among)]


@lru_cache(maxsize=4096)
def _ranked(budget: str, partitions: int) -> tuple[int, ...]:
    """All partitions, in an order of the budget's own."""
    return tuple(sorted(range(partitions), key=lambda partition: _hash(f"{budget}#{partition}")))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def limits_of(queue: str, limits: Iterable[LimitSpec]) -> frozenset[LimitSpec]:
    """The limits whose calls go through `queue`."""
    return frozenset(limit for limit in limits if limit.queue == queue)
