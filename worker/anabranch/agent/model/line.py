"""Who is next: the calls of one model that wait, lanes by weight, their tenants taking turns, each tenant's in their
order. PURE.

A call that has begun and is made again goes before those of its tenant that have not, unless it is to find out whether
the model works again: one run that the model always fails on would hold all others up. `lanes.py` asks; nothing waits
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anabranch.fields import LANES, Lane
from anabranch.weights import WEIGHT, Weights

Call = TypeVar("Call")


@dataclass(slots=True)
class _Tenant(Generic[Call]):
    begun: deque[Call] = field(default_factory=deque)
    fresh: deque[Call] = field(default_factory=deque)


class _Tenants(Generic[Call]):
    """Those of one lane. `begun` and `fresh` are how many of either kind wait."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[Call]] = {}
        self.begun = self.fresh = 0

    def has(self, only_begun: bool) -> bool:
        return self.begun > 0 or (self.fresh > 0 and not only_begun)

    def _queue(self, tenant: str) -> _Tenant[Call]:
        if (queue := self._tenants.get(tenant)) is None:
            queue = self._tenants[tenant] = _Tenant()
        return queue

    def add(self, tenant: str, call: Call) -> None:
        self._queue(tenant).fresh.append(call)
        self.fresh += 1

    def add_begun(self, tenant: str, call: Call) -> None:
        self._queue(tenant).begun.append(call)
        self.begun += 1

    def remove(self, tenant: str, call: Call) -> None:
        queue = self._tenants.get(tenant)
        if queue is None:
            return
        if call in queue.fresh:
            queue.fresh.remove(call)
            self.fresh -= 1
        elif call in queue.begun:
            queue.begun.remove(call)
            self.begun -= 1
        if not queue.begun and not queue.fresh:
            del self._tenants[tenant]

    def take(self, only_begun: bool) -> Call:
        tenant = next(tenant for tenant, queue in self._tenants.items() if queue.begun or not only_begun)
        return self._taken(tenant, fresh=not self._tenants[tenant].begun)

    def take_fresh(self) -> Call:
        return self._taken(next(tenant for tenant, queue in self._tenants.items() if queue.fresh), fresh=True)

    def _taken(self, tenant: str, fresh: bool) -> Call:
        """The next of this tenant, which goes to the end of the turns if it has more."""
        queue = self._tenants.pop(tenant)
        if fresh:
            call = queue.fresh.popleft()
            self.fresh -= 1
        else:
            call = queue.begun.popleft()
            self.begun -= 1
        if queue.begun or queue.fresh:
            self._tenants[tenant] = queue
        return call

    def all(self) -> Iterator[tuple[str, Call]]:
        for tenant, queue in self._tenants.items():
            yield from ((tenant, call) for call in (*queue.begun, *queue.fresh))

    def drop_fresh(self) -> None:
        for queue in self._tenants.values():
            queue.fresh.clear()
        self._tenants = {tenant: queue for tenant, queue in self._tenants.items() if queue.begun}
        self.fresh = 0


class Line(Generic[Call]):
    """`weight` is how many calls of the interactive lane go for each of the bulk lane, while both wait."""

    def __init__(self, weight: int = WEIGHT) -> None:
        self._interactive, self._bulk = _Tenants[Call](), _Tenants[Call]()
        self._weights = Weights(weight)

    def __len__(self) -> int:
        return self._interactive.fresh + self._bulk.fresh + self.begun

    @property
    def begun(self) -> int:
        """How many wait that have begun."""
        return self._interactive.begun + self._bulk.begun

    def _of(self, lane: Lane) -> _Tenants[Call]:
        return self._bulk if lane == "bulk" else self._interactive

    def add(self, tenant: str, call: Call, lane: Lane = "interactive") -> None:
        self._of(lane).add(tenant, call)

    def add_begun(self, tenant: str, call: Call, lane: Lane = "interactive") -> None:
        self._of(lane).add_begun(tenant, call)

    def remove(self, tenant: str, call: Call, lane: Lane = "interactive") -> None:
        """Nothing, if it does not wait here."""
        self._of(lane).remove(tenant, call)

    def take(self, only_begun: bool = False) -> Call | None:
        """The next one, or the next one that has begun; None if there is none."""
        interactive, bulk = self._interactive.has(only_begun), self._bulk.has(only_begun)
        lane = self._weights.next(interactive, bulk)
        if lane is None:
            return None
        self._weights.took(lane, interactive and bulk)
        return self._of(lane).take(only_begun)

    def take_probe(self) -> Call | None:
        """The next one that has not begun, if there is any: what has begun may be what the model fails on."""
        for tenants in (self._interactive, self._bulk):
            if tenants.fresh:
                return tenants.take_fresh()
        return self.take()

    def all(self) -> Iterator[tuple[str, Call, Lane]]:
        """Everything that waits, with its tenant and its lane."""
        for lane in LANES:
            yield from ((tenant, call, lane) for tenant, call in self._of(lane).all())

    def drop_fresh(self) -> None:
        """None of those shall begin any more."""
        self._interactive.drop_fresh()
        self._bulk.drop_fresh()
