"""Who is next: the calls of one model that wait, tenants taking turns, each tenant's in their order. PURE.

A call that has begun and is made again goes before those of its tenant that have not. `Thinker` asks; nothing waits
here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Call = TypeVar("Call")


@dataclass(slots=True)
class _Tenant(Generic[Call]):
    begun: deque[Call] = field(default_factory=deque)
    fresh: deque[Call] = field(default_factory=deque)


class Line(Generic[Call]):
    """`begun` and `fresh` are how many of either kind wait."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[Call]] = {}
        self.begun = self.fresh = 0

    def __len__(self) -> int:
        return self.begun + self.fresh

    def add(self, tenant: str, call: Call) -> None:
        self._tenants.setdefault(tenant, _Tenant()).fresh.append(call)
        self.fresh += 1

    def add_begun(self, tenant: str, call: Call) -> None:
        self._tenants.setdefault(tenant, _Tenant()).begun.append(call)
        self.begun += 1

    def remove(self, tenant: str, call: Call) -> None:
        """Nothing, if it does not wait here."""
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

    def take(self, only_begun: bool = False) -> Call | None:
        """The next one, or the next one that has begun; None if there is none."""
        if not (self.begun if only_begun else len(self)):
            return None
        waiting = self._tenants.items()
        tenant, queue = next((name, queue) for name, queue in waiting if queue.begun or not only_begun)
        del self._tenants[tenant]
        if queue.begun:
            call = queue.begun.popleft()
            self.begun -= 1
        else:
            call = queue.fresh.popleft()
            self.fresh -= 1
        if queue.begun or queue.fresh:
            self._tenants[tenant] = queue
        return call

    def drop_fresh(self) -> None:
        """None of those shall begin any more."""
        for queue in self._tenants.values():
            queue.fresh.clear()
        self._tenants = {tenant: queue for tenant, queue in self._tenants.items() if queue.begun}
        self.fresh = 0
