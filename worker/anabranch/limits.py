"""Pacing: how many calls a second, and how many at once, a limit lets through. The only import of `aiolimiter`.

A bucket of 20 ms' worth (at least one call): a larger one lets twice its size through in its first second,
and a smaller one loses every late wake-up. One waiter at a time, first come first served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiolimiter import AsyncLimiter

BUCKET_S: Final = 0.02


class Pacer:
    """One limit on one worker. `per_second` calls start, `concurrency` run at once (None: as many as like)."""

    def __init__(self, per_second: float, concurrency: int | None) -> None:
        capacity = max(1.0, per_second * BUCKET_S)
        self._bucket = AsyncLimiter(capacity, capacity / per_second)
        self._turn = asyncio.Lock()
        self._slots = asyncio.Semaphore(concurrency) if concurrency is not None else None
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long: the API behind the limit has asked for it."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, then for the turn."""
        if self._slots is None:
            await self._pass()
            yield
            return
        async with self._slots:
            await self._pass()
            yield

    async def _pass(self) -> None:
        async with self._turn:
            while (left := self._paused_until - time.monotonic()) > 0:  # noqa: ASYNC110 - it is time that is waited for
                await asyncio.sleep(left)
            await self._bucket.acquire()


class Serially:
    """One at a time for each key, in the order of arrival."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
