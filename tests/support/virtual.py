"""An event loop whose time does not pass by itself: it jumps to the next timer as soon as nothing else is to be done.

Responsible for: running a coroutine so that hours take milliseconds, and the same inputs give the same order of events.
Must never: be used with sockets, threads or processes, which know no such time.
Called by: tests of the log's double, and simulations.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Stuck(Exception):
    """Everybody waits, and no timer will ever end it."""


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, moves the time on by what would have been waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits, and no timer is set")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` begins at 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtually(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `start()` to its end in virtual time. Raises `Stuck` if it can never end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(start())


def tick(monkeypatch: pytest.MonkeyPatch, seconds: float = 1e-6) -> None:
    """Each pass of the loop takes time: for who waits for less than a float can add to the time, as buckets do."""
    select = _Jumping.select

    def ticking(jumping: _Jumping, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        jumping.now += seconds
        return select(jumping, timeout)

    monkeypatch.setattr(_Jumping, "select", ticking)


def now() -> float:
    """Virtual seconds since the loop began: a clock for whoever needs one."""
    return asyncio.get_running_loop().time()
