"""The turns of one call whose tool has a limit: before each try it waits in the line of its home, then for a slot.

While it waits it holds neither a place of the limit nor a slot of the worker, and counts as not begun, so that a
rebalance gives it back instead of handing it off. What the API refuses goes back to the front of the line: it would
refuse the next one, too. But it may be that one call alone which it will never take, so that others go first from the
third time in a row on: one, then two, four and so on. `serving.py` lets it in for the first time; the executor passes
it before each try.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from anabranch.app import RateLimited, Retryable, Tool
from anabranch.limit_line import Turn
from anabranch.limits import Paused
from anabranch.tools.shares import Shares
from anabranch.tools.slots import Slots, in_line_of

if TYPE_CHECKING:
    from anabranch.tools.serving import Job


REFUSALS: Final = 15
"""How many in a row are counted: then 4,096 others go first, and more do not wait in the line of a home."""


class Paced:
    """A `tries.Gate`. `left_s` says for how long the call is still wanted."""

    def __init__(self, job: Job, tool: Tool, shares: Shares, slots: Slots, left_s: Callable[[], float]) -> None:
        assert tool.limit is not None, "only calls of a limit wait in a line"
        self._job, self._tool, self._limit = job, tool, tool.limit.name
        self._shares, self._slots, self._left_s = shares, slots, left_s
        self._inside = AsyncExitStack()
        self._turn: Turn | None = None
        self._joined: Turn | None = None
        self._refused = 0  # times in a row
        self._behind = 0  # how many go first the next time

    def join(self, then: Callable[[], None]) -> None:
        """Stand in the line already, while the call has no task; `then` makes one. Raises `ShareLost`."""
        self._joined = self._join(then)

    @property
    def turn_comes(self) -> asyncio.Future[None] | None:
        return self._joined.comes if self._joined is not None else None

    def quit(self) -> None:
        """It is not wanted any more, and has no task that would leave; or it has to wait for something else first."""
        turn, self._joined, self._job.gate = self._joined, None, None
        if turn is not None:
            turn.then = None
            if turn.state != "lost":  # else it has left already
                turn.pacer.leave(turn)

    def _join(self, then: Callable[[], None] | None = None) -> Turn:
        job, behind, self._behind = self._job, self._behind, 0
        pacer = self._shares.pacer(self._limit, job.call.tenant, job.record.partition)
        lasts_s, lane = self._tool.spec.timeout_s, job.call.lane or "interactive"
        return pacer.join(job.offset, lasts_s, self._left_s, then, lane, behind)

    async def enter(self) -> None:
        """Wait for the turn. Raises `ShareLost`."""
        turn, self._joined = self._joined or self._join(), None
        async with AsyncExitStack() as stack:
            self._turn = await stack.enter_async_context(turn.pacer.inside(turn))
            await stack.enter_async_context(self._slots.slot(in_line_of(self._limit)))
            self._inside = stack.pop_all()

    async def leave(self) -> None:
        self._turn = None
        await self._inside.aclose()

    @asynccontextmanager
    async def a_try(self) -> AsyncIterator[None]:
        if self._turn is None:
            self._job.begun = False
            await self.enter()
            self._job.begun = True
        if self._turn is None or not self._turn.granted:
            raise TimeoutError
        try:
            yield
        except (Retryable, RateLimited, Paused) as error:
            self._job.begun = False  # until its next try it waits
            self._note(error)
            raise
        finally:
            await self.leave()

    def _note(self, error: Retryable | RateLimited | Paused) -> None:
        if isinstance(error, RateLimited):
            self._refused = min(self._refused + 1, REFUSALS)
            self._behind = 2**self._refused // 8
        elif isinstance(error, Retryable):
            self._refused = 0

    async def start(self) -> None:
        assert self._turn is not None, "inside of a try"
        await self._turn.start()

    async def pause(self, seconds: float) -> None:
        """Its line lets nobody through for so long, itself neither."""
        self._shares.pause(self._limit, self._job.call.tenant, seconds)
