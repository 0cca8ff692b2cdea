"""How many bytes of large things a worker has in hand at once: who wants more waits until others have let go.

Responsible for: counting, and waking those that wait. What is larger by itself goes alone. Must never: know what the
bytes are. Called by: `agent/large.py` for what it fetches, `tools/large.py` for results on their way to the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

AT_ONCE: Final = 256 * 1024 * 1024
"""Bytes that are in hand together, but for one thing that is larger by itself."""


class InHand:
    """What is in hand now."""

    def __init__(self) -> None:
        self._used = 0
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes in hand while inside."""
        while self._used and self._used + size > AT_ONCE:
            self._freed.clear()
            await self._freed.wait()
        self._used += size
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()
