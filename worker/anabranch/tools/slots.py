"""Places for calls, given out fairly: who waits takes turns by lane and its weight, in it by tenant, the runs of a
tenant by run.

A run that asks for two hundred calls at once would otherwise take all places before another's three, and a tenant's
flood those of everybody else. A turn is some calls long: runs that ask for few are served one after the other, as they
came, so that the first ones end soon; if their calls took turns one by one, all of them would end late. It bounds how
many are inside, and knows nothing of limits or keys: `serving.py` and `executor.py` ask for places once nothing else
is in the way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from anabranch.fields import Lane
from anabranch.weights import WEIGHT, Weights

TURN: Final = 8
"""How many calls of a run go, one after the other, before it is another's turn."""
NOBODY: Final = ""
"""The tenant of calls without one."""


class Whose(NamedTuple):
    """Whom a call is for."""

    tenant: str | None
    run_id: str
    lane: Lane = "interactive"


def in_line_of(limit: str) -> Whose:
    """Calls that a limit has let through stay in the order in which it did, whosever they are: a place that is due is
    no lane's.
    """
    return Whose(None, f"limit {limit}")


Place = asyncio.Future[None]


class _Line:
    """Those of one lane who wait, by tenant and run."""

    def __init__(self) -> None:
        self._taken = 0  # of the turn of whoever is first
        self._tenants: dict[str, dict[str, deque[Place]]] = {}
        self.waits = False

    def add(self, whose: Whose, place: Place) -> None:
        self.waits = True
        runs = self._tenants.setdefault(whose.tenant or NOBODY, {})
        runs.setdefault(whose.run_id, deque()).append(place)

    def remove(self, whose: Whose, place: Place) -> None:
        tenant, run_id = whose.tenant or NOBODY, whose.run_id
        calls = self._tenants.get(tenant, {}).get(run_id)
        if calls is None or place not in calls:
            return
        calls.remove(place)
        if not calls:
            del self._tenants[tenant][run_id]
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self.waits = bool(self._tenants)

    def take(self) -> Place:
        """The first of the run and the tenant whose turn it is; after its turn both go to the end of their lines."""
        tenant, runs = next(iter(self._tenants.items()))
        run_id, calls = next(iter(runs.items()))
        place = calls.popleft()
        self._taken += 1
        if calls and self._taken < TURN:
            return place
        self._taken = 0
        del self._tenants[tenant], runs[run_id]
        if calls:
            runs[run_id] = calls
        if runs:
            self._tenants[tenant] = runs
        self.waits = bool(self._tenants)
        return place


class Slots:
    """As many places as `count`. Where fewer are taken, nobody waits. `weight` is how many calls of the interactive
    lane get one for each of the bulk lane, while both wait.
    """

    def __init__(self, count: int, weight: int = WEIGHT) -> None:
        self.count = self._free = count
        self._interactive, self._bulk = _Line(), _Line()
        self._weights = Weights(weight)

    @property
    def used(self) -> int:
        return self.count - self._free

    @asynccontextmanager
    async def slot(self, whose: Whose) -> AsyncIterator[None]:
        """Be inside."""
        await self.acquire(whose)
        try:
            yield
        finally:
            self.release()

    def take(self) -> bool:
        """Take a place if one is free. Each has to be given back with `release`."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def acquire(self, whose: Whose) -> None:
        """Take a place, or wait for it."""
        if self.take():
            return
        place = self._stand_in_line(whose)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was ours already
                self.release()
            else:
                self._line(whose.lane).remove(whose, place)
            raise

    def release(self) -> None:
        """Give a place back: it goes to the next in line."""
        while (place := self._next()) is not None:
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _stand_in_line(self, whose: Whose) -> Place:
        place: Place = asyncio.get_running_loop().create_future()
        self._line(whose.lane).add(whose, place)
        return place

    def _line(self, lane: Lane) -> _Line:
        return self._bulk if lane == "bulk" else self._interactive

    def _next(self) -> Place | None:
        interactive, bulk = self._interactive.waits, self._bulk.waits
        lane = self._weights.next(interactive, bulk) if interactive or bulk else None
        if lane is None:
            return None
        self._weights.took(lane, interactive and bulk)
        return self._line(lane).take()
