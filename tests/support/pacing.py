"""Calls that pass a pacer in virtual time, and what holds of the times at which they started.

Must never: know how a pacer paces. Called by: the tests of `limits.py`.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable

import pytest

from anabranch.fields import Lane
from anabranch.homes import Share
from anabranch.limits import Pacer
from tests.support.virtual import now, virtually


class Meter:
    """Calls that pass a pacer: when each started, by its order."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer, self.at, self.order = pacer, list[float](), list[int]()
        self.left_s: Callable[[int], float] = lambda order: math.inf

    async def call(self, order: int, takes_s: float = 0.0, lane: Lane = "interactive", behind: int = 0) -> None:
        joined = self.pacer.join(order, takes_s, lambda: self.left_s(order), lane=lane, behind=behind)
        async with self.pacer.inside(joined) as turn:
            if turn.granted:
                await turn.start()
                self.at.append(now())
                self.order.append(order)
                await asyncio.sleep(takes_s)

    async def calls(self, orders: Iterable[int], takes_s: float = 0.0) -> None:
        await asyncio.gather(*(self.call(order, takes_s) for order in orders))


def pacer(per_second: float, places: int | None = None, due: float = 0.0) -> Pacer:
    return Pacer(Share(per_second, places), due)


def starts(per_second: float, calls: int, places: int | None = None, takes_s: float = 0.0) -> list[float]:
    """When each of `calls` that wait at once was let through."""

    async def run() -> list[float]:
        meter = Meter(pacer(per_second, places))
        await meter.calls(range(calls), takes_s)
        return meter.at

    return virtually(run)


def most_in_a_second(at: list[float]) -> int:
    first = most = 0
    for last, when in enumerate(at):
        while at[first] <= when - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def assert_rate(at: list[float], per_second: float) -> None:
    """Within 2 % over each max(10 s, 100 calls), and in no second above it by more than 2 % and one call."""
    assert most_in_a_second(at) <= 1.02 * per_second + 1
    window = max(10.0, 100 / per_second)
    for begin in [at[0] + window * n / 4 for n in range(int(4 * (at[-1] - at[0] - window) / window) + 1)]:
        within = bisect_left(at, begin + window) - bisect_left(at, begin)
        assert within == pytest.approx(window * per_second, rel=0.02), f"from {begin}"
