"""Places for calls, given out fairly: who waits takes turns by tenant, and the runs of a tenant by run.

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

TURN: Final = 8
"""How many calls of a run go, one after the other, before it is another's turn."""
NOBODY: Final = ""
"""The tenant of calls without one."""


class Whose(NamedTuple):
    """Whom a call is for."""

    tenant: str | None
    run_id: str


def in_line_of(limit: str) -> Whose:
    """Calls that a limit has let through stay in the order in which it did, whosever they are."""
    return Whose(None, f"limit {limit}")


class Slots:
    """As many places as `count`. Where fewer are taken, nobody waits."""

    def __init__(self, count: int) -> None:
        self.count = self._free = count
        self._taken = 0  # of the turn of whoever is first
        self._tenants: dict[str, dict[str, deque[asyncio.Future[None]]]] = {}

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

    async def acquire(self, whose: Whose) -> None:
        """Wait for a place. Each has to be given back with `release`."""
        if self._free:
            self._free -= 1
            return
        place = self._stand_in_line(whose)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was ours already
                self.release()
            else:
                self._leave(whose, place)
            raise

    def release(self) -> None:
        """Give a place back: it goes to the next in line."""
        while (place := self._next()) is not None:
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _stand_in_line(self, whose: Whose) -> asyncio.Future[None]:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        runs = self._tenants.setdefault(whose.tenant or NOBODY, {})
        runs.setdefault(whose.run_id, deque()).append(place)
        return place

    def _leave(self, whose: Whose, place: asyncio.Future[None]) -> None:
        tenant, run_id = whose.tenant or NOBODY, whose.run_id
        calls = self._tenants.get(tenant, {}).get(run_id)
        if calls is None or place not in calls:
            return
        calls.remove(place)
        if not calls:
            del self._tenants[tenant][run_id]
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def _next(self) -> asyncio.Future[None] | None:
        """The first of the run and the tenant whose turn it is; after its turn both go to the end of their lines."""
        if not self._tenants:
            return None
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
        return place
