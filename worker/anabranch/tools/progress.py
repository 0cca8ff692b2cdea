"""How far one partition of a queue is done. PURE.

Calls finish out of order, so what is committed is the lowest offset that is not finished, and beside it the
*marks*: what is finished above it, and what was *begun* and must not be begun again. An offset is *taken* when
its call is accepted, and *finished* when its result, or its hand-off, has been acknowledged.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Literal

from anabranch.tools.marks import Marks

Taken = Literal["new", "known", "begun"]


class Progress:
    """`low` is what to commit; `position` is what to read next. `running` are the offsets that execute here."""

    def __init__(self, position: int, marks: Marks | None = None, running: Iterable[int] = ()) -> None:
        marks = marks or Marks()
        self.position = self._floor = position
        self._finished = {offset for offset in marks.finished if offset >= position}
        self._open = {offset for offset in running if offset >= position} - self._finished
        self._heap = sorted(self._open)
        self._begun = {offset for offset in marks.begun if offset >= position}
        self._unknown = self._begun - self._open - self._finished

    def take(self, offset: int) -> Taken:
        """Accept `offset`: `known` if it runs or is finished, `begun` if somebody before us may have run it."""
        self.position = max(self.position, offset + 1)
        if offset < self._floor or offset in self._open or offset in self._finished:
            return "known"
        self._open.add(offset)
        heapq.heappush(self._heap, offset)
        return "begun" if offset in self._unknown else "new"

    def begin(self, offset: int) -> None:
        """From the next commit on, it counts as possibly executed."""
        if offset in self._open:
            self._begun.add(offset)

    def finish(self, offset: int) -> None:
        if offset in self._open:
            self._open.discard(offset)
            self._finished.add(offset)

    def give_back(self, offsets: Iterable[int]) -> None:
        """They were taken and have not run: they will be read again."""
        given = self._open.intersection(offsets)
        if given:
            self._open -= given
            self._begun -= given - self._unknown
            self.position = min(self.position, min(given))

    def interrupt(self, offset: int) -> None:
        """It ran, and was given up: it will be read again, and may have been executed if it had to be begun."""
        if offset in self._open:
            self._open.discard(offset)
            self._unknown |= self._begun & {offset}
            self.position = min(self.position, offset)

    def is_open(self, offset: int) -> bool:
        """Whether it was taken, and is not finished."""
        return offset in self._open

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
        if self._begun:
            self._begun = {offset for offset in self._begun if offset >= self._floor}
        return self._floor

    @property
    def marks(self) -> Marks:
        """What the commit at `low`, which was asked for first, has to say besides."""
        finished = frozenset(offset for offset in self._finished if offset >= self._floor)
        return Marks(finished, frozenset(self._begun - finished))
