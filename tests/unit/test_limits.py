"""Pacing: a rate is kept and reached, a pause holds, a key runs serially.

Responsible for: `limits.py`, in virtual time (the bucket reads the loop's clock).
Must never: wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support import virtual
from tests.support.virtual import now, virtually

from anabranch import limits
from anabranch.limits import Pacer, Serially


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass of the loop takes a microsecond: the bucket waits for less than a float can add to the time."""
    select = virtual._Jumping.select

    def ticking(jumping: virtual._Jumping, timeout: float | None = None) -> Any:
        jumping.now += 1e-6
        return select(jumping, timeout)

    monkeypatch.setattr(virtual._Jumping, "select", ticking)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=now))


def starts(per_second: float, calls: int, concurrency: int | None = None, takes_s: float = 0.0) -> list[float]:
    """When each of `calls` was let through."""

    async def run() -> list[float]:
        pacer, at = Pacer(per_second, concurrency), []

        async def one() -> None:
            async with pacer.slot():
                at.append(now())
                await asyncio.sleep(takes_s)

        await asyncio.gather(*(one() for _ in range(calls)))
        return at

    return virtually(run)


@pytest.mark.parametrize("rate", [0.25, 1.0, 7.5, 50.0, 500.0, 5000.0])
def test_no_second_lets_more_through_than_the_rate_and_a_bucket(rate: float) -> None:
    at = starts(rate, 300)
    bucket = max(1.0, rate * 0.02)
    for first, begin in enumerate(at):
        within = sum(begin <= when < begin + 1 for when in at[first:])
        assert within <= rate + bucket + 1


@pytest.mark.parametrize("rate", [0.25, 7.5, 50.0, 500.0])
def test_the_rate_is_reached(rate: float) -> None:
    at = starts(rate, 200)
    assert 199 / (at[-1] - at[0]) > 0.9 * rate


def test_no_more_run_at_once_than_the_limit_says() -> None:
    at = starts(1000.0, 9, concurrency=3, takes_s=1.0)
    assert [round(when) for when in at] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_pause_lets_nothing_through() -> None:
    async def run() -> float:
        pacer = Pacer(100.0, None)
        pacer.pause(30.0)
        pacer.pause(5.0)
        async with pacer.slot():
            return now()

    assert virtually(run) == pytest.approx(30.0, abs=0.01)


def test_a_key_runs_one_at_a_time_in_order_and_others_beside_it() -> None:
    async def run() -> list[tuple[str, float]]:
        serially, done = Serially(), []

        async def one(key: str, name: str) -> None:
            async with serially.turn(key):
                await asyncio.sleep(1.0)
                done.append((name, now()))

        await asyncio.gather(*(one(key, name) for key, name in [("k", "k1"), ("k", "k2"), ("j", "j1"), ("k", "k3")]))
        assert not serially._locks
        return done

    assert [(name, round(when)) for name, when in virtually(run)] == [("k1", 1), ("j1", 1), ("k2", 2), ("k3", 3)]


def test_one_that_is_cancelled_or_fails_lets_the_next_one_in() -> None:
    async def run() -> str:
        serially = Serially()

        async def hold(seconds: float) -> None:
            async with serially.turn("k"):
                await asyncio.sleep(seconds)
                raise ValueError

        first, second = asyncio.create_task(hold(1.0)), asyncio.create_task(hold(1.0))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        async with serially.turn("k"):
            return "in"

    assert virtually(run) == "in"
