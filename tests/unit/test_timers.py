"""Timers, in virtual time: each rings once, at its time, whatever another one does.

Responsible for: `timers.py`.
Must never: wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from tests.support.virtual import now, virtually

from anabranch.timers import SLACK, Timers

Rung = list[tuple[Hashable, float]]


def rung(arrange: Callable[[Timers[Hashable]], object], seconds: float = 100.0) -> Rung:
    """Who rang when, rounded."""

    async def run() -> Rung:
        heard: Rung = []
        timers: Timers[Hashable] = Timers(now, lambda key: heard.append((key, round(now(), 3))))
        arrange(timers)
        await asyncio.sleep(seconds)
        timers.clear()
        return heard

    return virtually(run)


def test_timers_ring_in_the_order_of_their_times() -> None:
    def arrange(timers: Timers[Hashable]) -> None:
        for key, when in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("past", -5.0)):
            timers.arm(key, when)

    assert rung(arrange) == [("past", 0.0), ("a", 1.0), ("b", 2.0), ("c", 3.0)]


def test_one_that_is_armed_keeps_its_time() -> None:
    def arrange(timers: Timers[Hashable]) -> None:
        timers.arm("a", 5.0)
        timers.arm("a", 1.0)

    assert rung(arrange) == [("a", 5.0)]


def test_one_that_is_disarmed_does_not_ring_and_may_be_armed_again() -> None:
    def arrange(timers: Timers[Hashable]) -> None:
        timers.arm("a", 1.0)
        timers.arm("b", 2.0)
        timers.disarm("a")
        timers.disarm("never")
        timers.arm("a", 3.0)

    assert rung(arrange) == [("b", 2.0), ("a", 3.0)]


def test_cleared_timers_are_silent() -> None:
    def arrange(timers: Timers[Hashable]) -> None:
        timers.arm("a", 1.0)
        timers.clear()

    assert rung(arrange) == []


def test_a_time_that_is_a_day_away_is_kept() -> None:
    assert rung(lambda timers: timers.arm("a", 90_000.0), 100_000) == [("a", 90_000.0)]


def test_one_that_rings_may_arm_itself_again() -> None:
    async def run() -> Rung:
        heard: Rung = []

        def ring(key: Hashable) -> None:
            heard.append((key, now()))
            timers.arm(key, now() + 1)

        timers: Timers[Hashable] = Timers(now, ring)
        timers.arm("a", 1.0)
        await asyncio.sleep(3.5)
        timers.clear()
        return heard

    assert virtually(run) == [("a", 1.0), ("a", 2.0), ("a", 3.0)]


def test_one_that_raises_silences_no_other() -> None:
    async def run() -> tuple[Rung, int]:
        heard: Rung = []
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

        def ring(key: Hashable) -> None:
            if key == "bad":
                raise ValueError("bad")
            heard.append((key, now()))

        timers: Timers[Hashable] = Timers(now, ring)
        timers.arm("bad", 1.0)
        timers.arm("good", 2.0)
        await asyncio.sleep(5)
        return heard, len(errors)

    assert virtually(run) == ([("good", 2.0)], 1)


def test_disarmed_timers_are_not_kept_until_their_time() -> None:
    async def run() -> int:
        timers: Timers[Hashable] = Timers(now, lambda key: None)
        for number in range(10 * SLACK):
            timers.arm(number, 3600.0)
            timers.disarm(number)
        kept = len(timers._heap)
        timers.clear()
        return kept

    assert virtually(run) <= SLACK + 1
