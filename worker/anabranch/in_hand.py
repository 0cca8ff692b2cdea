"""How many bytes of large things a worker has in hand at once: who wants more waits until others have let go.

Responsible for: counting, and letting in those that wait, first come, first served: who wants much would wait for ever
behind those that want little, one after the other. What is larger by itself goes alone. Must never: know what the bytes
are. Called by: `agent/large.py` for what it fetches, `tools/serving.py` for results on their way to the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

AT_ONCE: Final = 256 * 1024 * 1024
"""Bytes that are in hand together, but for one thing that is larger by itself."""


class InHand:
    """What is in hand now, and who waits."""

    def __init__(self) -> None:
        self._used = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes in hand while inside."""
        if self._line or not self._fits(size):
            await self._wait(size)
        else:
            self._used += size
        try:
            yield
        finally:
            self._let_go(size)

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= AT_ONCE

    async def _wait(self, size: int) -> None:
        """Returns when it has been let in: it is counted by then."""
        comes = asyncio.get_running_loop().create_future()
        self._line.append((size, comes))
        try:
            await comes
        except asyncio.CancelledError:
            self._let_go(0 if comes.cancelled() else size)  # it may have been let in meanwhile
            raise

    def _let_go(self, size: int) -> None:
        self._used -= size
        while self._line:
            wanted, comes = self._line[0]
            if not comes.done():
                if not self._fits(wanted):
                    return
                self._used += wanted
                comes.set_result(None)
            self._line.popleft()
