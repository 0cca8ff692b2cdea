"""One at a time for each key: calls with a `serial_key`, and whatever else must not overtake itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Serially:
    """One at a time for each key, in the order of arrival."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]] | None] = {}  # behind whoever has the key

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    def take(self, key: str) -> bool:
        """Take the turn if nobody has it. It has to be given back with `release`."""
        if key in self._waiting:
            return False
        self._waiting[key] = None
        return True

    async def acquire(self, key: str) -> None:
        """Take the turn, or wait for it."""
        if self.take(key):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[key] = self._waiting[key] or deque()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self.release(key)
            raise

    def release(self, key: str) -> None:
        """Give the turn to the next."""
        waiting = self._waiting[key]
        while waiting:
            if not (turn := waiting.popleft()).done():
                turn.set_result(None)
                return
        del self._waiting[key]
