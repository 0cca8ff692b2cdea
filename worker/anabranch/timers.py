"""Many times to wait for, with one timer of the loop: what is to be looked at again, and when.

A timer of the loop costs more than most calls of a quick tool, and nearly all of them are disarmed. Must never: keep a
time beyond the process; an owner rebuilds its own from the fold. Called by: `agent/alarms.py`, `tools/tries.py`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

SLACK: Final = 1000
"""How many disarmed times are kept, at least, until they would have come."""


Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """Calls `ring(key)` once the time of `key` has come. Times are seconds, by the clock given."""

    def __init__(self, now: Callable[[], float], ring: Callable[[Key], None]) -> None:
        self._now, self._ring = now, ring
        self._heap: list[tuple[float, int, Key]] = []
        self._armed: dict[Key, float] = {}
        self._count = 0
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, key: Key, when: float) -> bool:
        """Ring for `key` at `when`; one that is armed already keeps its time, and False is returned."""
        if key in self._armed:
            return False
        self._armed[key] = when
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, key))
        if self._heap[0][2] == key:
            self._schedule()
        return True

    def __contains__(self, key: Key) -> bool:
        return key in self._armed

    def disarm(self, key: Key) -> None:
        if self._armed.pop(key, None) is not None and len(self._heap) > 2 * len(self._armed) + SLACK:
            self._heap = [entry for entry in self._heap if self._armed.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        self._heap.clear()
        self._armed.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - self._now())
            self._handle = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._due)

    def _due(self) -> None:
        now = self._now()
        try:
            while self._heap and (self._heap[0][0] <= now or self._heap[0][2] not in self._armed):
                when, _, key = heapq.heappop(self._heap)
                if self._armed.get(key) == when:
                    del self._armed[key]
                    self._ring(key)
        finally:
            self._schedule()
