"""Waiting in tests: for a condition, with a deadline, never for a time.

Responsible for: polling a condition and saying what was waited for when it does not come.
Must never: be used by the package itself, which waits for events.
Called by: any test.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.1


@overload
async def until(condition: Callable[[], Awaitable[T]], deadline_s: float = 10, what: str = "") -> T: ...
@overload
async def until(condition: Callable[[], T], deadline_s: float = 10, what: str = "") -> T: ...
async def until(condition: Callable[[], T | Awaitable[T]], deadline_s: float = 10, what: str = "") -> T:
    """Wait until `condition()`, plain or a coroutine function, is true; returns what it returned.

    Raises AssertionError after `deadline_s` seconds; it names `what` (say "the worker joined its group") and the last
    value. What the condition raises is passed on.
    """
    started, pause = time.monotonic(), FIRST_PAUSE_S
    last: object = "none: the condition did not return"
    while (left := started + deadline_s - time.monotonic()) > 0:
        value = condition()
        if inspect.isawaitable(value):
            try:
                value = await asyncio.wait_for(value, left)
            except TimeoutError:
                if time.monotonic() < started + deadline_s:
                    raise  # the condition's own, not ours
                break
        if value:
            return cast(T, value)
        last = value
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    name = what or getattr(condition, "__qualname__", repr(condition))
    raise AssertionError(f"not within {deadline_s:g} s: {name} (last value: {last!r})")
