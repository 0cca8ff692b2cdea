"""How far one partition of a queue is done. PURE.

Calls finish out of order, so what may be committed is the lowest offset that is not finished. An offset is
*taken* when its call is accepted, and *finished* when its result has been acknowledged.
"""

from __future__ import annotations

import heapq


class Progress:
    """`low` is what to commit; `position` is what to read next."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._floor = position
        self._open: set[int] = set()
        self._heap: list[int] = []
        self._finished: set[int] = set()

    def take(self, offset: int) -> bool:
        """Accept `offset`; False if it runs or is finished already."""
        self.position = max(self.position, offset + 1)
        if offset < self._floor or offset in self._open or offset in self._finished:
            return False
        self._open.add(offset)
        heapq.heappush(self._heap, offset)
        return True

    def finish(self, offset: int) -> None:
        if offset in self._open:
            self._open.discard(offset)
            self._finished.add(offset)

    def give_back(self, offset: int) -> None:
        """It was taken and never begun: it will be read again."""
        self._open.discard(offset)
        self.position = min(self.position, offset)

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def low(self) -> int:
        """Everything below is finished."""
        while self._heap and self._heap[0] not in self._open:
            heapq.heappop(self._heap)
        self._floor = min(self._heap[0], self.position) if self._heap else self.position
        if self._finished:
            self._finished = {offset for offset in self._finished if offset >= self._floor}
        return self._floor
