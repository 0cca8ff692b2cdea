"""A coroutine of a tool, taken step by step, so that one which swallows its cancellation can be left to itself.

What waits for it waits no longer then; the coroutine goes on elsewhere from where it stands, as a thread does that
outlives its timeout.
Responsible for: that hand-over. Must never: cost a step that ends by itself more than a call or two.
Called by: `executor.py`, `tries.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Steps:
    """Awaitable in the place of `coroutine`. After `leave`, the next cancellation ends the waiting and not it: then
    `is_left`, and whoever awaits it again goes on where it stands, which begins with that cancellation.
    """

    __slots__ = ("_coroutine", "_leaving", "is_left")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine, self._leaving, self.is_left = coroutine, False, False

    def leave(self) -> None:
        self._leaving = True

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        error: BaseException | None = asyncio.CancelledError() if self.is_left else None
        try:
            while True:
                try:
                    waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
                except StopIteration as end:
                    return end.value
                error = None
                try:
                    yield waits_for
                except BaseException as thrown:
                    if self._leaving:
                        self._leaving, self.is_left = False, True
                        raise
                    error = thrown
        finally:
            del error  # its traceback leads here: the two would keep each other, and the call
