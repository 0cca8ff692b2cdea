"""Pacing: a rate is kept and reached, in order, whatever comes late, waits or is cancelled.

Responsible for: `limits.py`, in virtual time (the bucket reads the loop's clock); what becomes of a home that changes
hands is in `test_limits_changing_hands.py`.
Must never: wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_left
from typing import Any

import pytest
from tests.support import virtual
from tests.support.pacing import Meter, assert_rate, most_in_a_second, pacer, starts
from tests.support.virtual import now, virtually

from anabranch.limits import Paused
from anabranch.serially import Serially

RATES = [1 / 60, 0.25, 1.0, 7.5, 10.0, 19.9, 50.0, 83.3, 500.0, 2000.0]
"""Calls a second of one home: from one a minute to a limit of 2,000 a second that has a single one."""


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual.tick(monkeypatch)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """A loop that is late at each wake-up: a millisecond mostly, at times twenty."""
    chance, select = random.Random(7), virtual._Jumping.select

    def stalling(jumping: virtual._Jumping, timeout: float | None = None) -> Any:
        if timeout:
            jumping.now += chance.choice([0.0002, 0.0005, 0.001]) if chance.random() < 0.98 else 0.02
        return select(jumping, timeout)

    monkeypatch.setattr(virtual._Jumping, "select", stalling)
    return chance


# --- the rate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_reached_and_never_passed(rate: float) -> None:
    assert_rate(starts(rate, max(220, int(12 * rate))), rate)


@pytest.mark.parametrize("rate", RATES)
def test_late_wake_ups_are_caught_up_with(rate: float, late: random.Random) -> None:
    assert_rate(starts(rate, max(220, int(12 * rate))), rate)


@pytest.mark.parametrize("rate", [83.3, 500.0])
def test_a_loop_that_stands_still_at_times_makes_up_for_it(rate: float) -> None:
    """Each ten seconds it loses 0.2 s, of which 0.06 s are caught up with at once: without more it would be 98.6 %."""
    at = starts_of_one_that_hangs(rate, 0.2, 10.0, 60.0)
    assert_rate(at, rate)
    assert len(at) == pytest.approx(60.0 * rate, rel=0.007)


@pytest.mark.parametrize("rate", [1.0, 7.5, 10.0, 19.9, 50.0, 83.3, 500.0])
@pytest.mark.parametrize("hang_s", [0.2, 0.9, 3.0])
def test_whoever_makes_up_for_it_keeps_below_the_bounds(rate: float, hang_s: float) -> None:
    at, window = starts_of_one_that_hangs(rate, hang_s, 20.0, max(60.0, 220 / rate)), max(10.0, 100 / rate)
    assert most_in_a_second(at) <= 1.02 * rate + 1
    most = max(bisect_left(at, begin + window) - n for n, begin in enumerate(at))
    assert most <= 1.02 * window * rate


@pytest.mark.parametrize(("rate", "seed"), [(10.0, 0), (19.9, 6), (50.0, 4)])
def test_who_is_let_in_and_held_up_makes_no_window_too_full(rate: float, seed: int) -> None:
    """All places of a worker may be taken at times: then those who wait there are late beside the schedule, too."""

    async def run() -> list[float]:
        chance, paced, at = random.Random(seed), pacer(rate), list[float]()

        async def one(order: int) -> None:
            async with paced.inside(paced.join(order, 0.0, lambda: math.inf)) as turn:
                await asyncio.sleep(chance.uniform(0.0, 1.0) if chance.random() < 0.02 else 0.0)
                await turn.start()
                at.append(now())

        await asyncio.gather(*(one(order) for order in range(int(60 * rate))))
        return at

    at = virtually(run)
    assert most_in_a_second(at) <= 1.02 * rate + 1
    assert max(bisect_left(at, begin + 10.0) - n for n, begin in enumerate(at)) <= 1.02 * 10.0 * rate


def test_what_was_late_for_very_long_is_forgiven() -> None:
    at = starts_of_one_that_hangs(50.0, 30.0, 150.0, 445.0)
    assert len(at) == pytest.approx((445.0 - 2 * 30.0 + 2 * 1.06) * 50.0, rel=0.001), "but for a second of each"


def starts_of_one_that_hangs(rate: float, hang_s: float, each_s: float, for_s: float) -> list[float]:
    """When calls start that wait from the beginning, while the loop stands still each so many seconds."""

    async def run() -> list[float]:
        meter = Meter(pacer(rate))
        calls = asyncio.gather(*(meter.call(order) for order in range(int(for_s * rate))))
        loop = asyncio.get_running_loop()
        for n in range(1, math.ceil(for_s / each_s)):
            await asyncio.sleep(n * each_s - now())
            loop._selector.now += hang_s  # type: ignore[attr-defined]
        await asyncio.sleep(for_s - now())
        calls.cancel()
        await asyncio.gather(calls, return_exceptions=True)
        return [when for when in meter.at if when <= for_s]

    return virtually(run)


def test_a_line_that_was_empty_has_saved_nothing_up() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(10.0))
        await meter.call(0)
        await asyncio.sleep(60.0)
        await meter.calls(range(1, 12))
        return [round(when - meter.at[1], 3) for when in meter.at[1:]]

    assert virtually(run) == pytest.approx([n / 10 for n in range(11)], abs=0.002)


def test_a_pause_lets_nothing_through() -> None:
    async def run() -> list[float]:
        paced = pacer(100.0)
        meter = Meter(paced)
        paced.pause(30.0)
        paced.pause(5.0)
        await meter.calls(range(3))
        return meter.at

    assert virtually(run) == pytest.approx([30.0, 30.01, 30.02], abs=0.001)


def test_one_that_is_in_when_a_pause_begins_waits_for_its_end_in_the_line() -> None:
    async def run() -> list[float]:
        paced = pacer(100.0, places=1)
        async with paced.inside(paced.join(0, 1.0, lambda: math.inf)) as turn:
            paced.pause(30.0)
            with pytest.raises(Paused):
                await turn.start()
            left_at = now()
        meter = Meter(paced)
        await meter.calls(range(2))
        return [left_at, *meter.at]

    assert virtually(run) == pytest.approx([0.0, 30.0, 30.01], abs=0.002)


# --- the line -----------------------------------------------------------------------------------------------------


def test_calls_start_in_their_order_whenever_they_came() -> None:
    async def run() -> list[int]:
        meter = Meter(pacer(10.0))
        orders = list(range(2, 40))
        random.Random(1).shuffle(orders)
        early = asyncio.create_task(meter.calls([0, 1]))
        await asyncio.sleep(0.05)
        await meter.calls(orders)
        await early
        return meter.order

    assert virtually(run) == list(range(40))


def test_one_that_is_cancelled_costs_no_budget() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(10.0))
        tasks = [asyncio.create_task(meter.call(order)) for order in range(30)]
        await asyncio.sleep(0.55)
        for task in tasks[10:20]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert meter.order == [*range(10), *range(20, 30)]
        return meter.at

    at = virtually(run)
    assert at == pytest.approx([n / 10 for n in range(20)], abs=0.001)


def test_one_that_is_cancelled_when_it_was_just_let_in_gives_its_turn_back() -> None:
    async def run() -> list[float]:
        paced = pacer(1.0)
        meter = Meter(paced)
        await meter.call(0)
        async with paced.inside(paced.join(1, 0.0, lambda: math.inf)):
            pass  # it never starts
        await meter.call(2)
        return meter.at

    assert virtually(run) == pytest.approx([0.0, 1.0], abs=0.001)


def test_one_whose_time_is_over_costs_no_budget_and_starts_no_more() -> None:
    async def run() -> Meter:
        meter = Meter(pacer(10.0))
        meter.left_s = lambda order: 0.1 - now() if order in (3, 4, 5) else math.inf
        await meter.calls(range(10))
        return meter

    meter = virtually(run)
    assert meter.order == [0, 1, 2, 6, 7, 8, 9]
    assert meter.at == pytest.approx([n / 10 for n in range(7)], abs=0.001)


def test_who_is_not_wanted_any_more_leaves_the_line_of_a_low_limit_long_before_its_turn() -> None:
    async def run() -> list[tuple[float, int]]:
        meter, seen = Meter(pacer(1 / 3600)), list[tuple[float, int]]()
        meter.left_s = lambda order: 10.0 * order - now()
        async with asyncio.TaskGroup() as tasks:
            for order in range(1, 4):
                tasks.create_task(meter.call(order, lane="bulk" if order == 3 else "interactive"))
            for _ in range(4):
                await asyncio.sleep(9.0 if not seen else 10.0)
                seen.append((round(now(), 2), meter.pacer.waiting))
        return seen

    assert virtually(run) == [(9.0, 2), (19.0, 2), (29.0, 1), (39.0, 0)]


def test_who_is_not_wanted_any_more_leaves_though_all_places_are_taken() -> None:
    async def run() -> tuple[float, int]:
        meter = Meter(pacer(1000.0, places=1))
        meter.left_s = lambda order: 10.0 - now()
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(meter.call(0, 500.0))
            await asyncio.sleep(1.0)
            await meter.call(1)
            gone = round(now(), 2), meter.pacer.waiting
            await first
        return gone

    assert virtually(run) == (10.0, 0)


def test_no_more_run_at_once_than_there_are_places() -> None:
    assert [round(when) for when in starts(1000.0, 9, places=3, takes_s=1.0)] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_pacer_is_spent_when_a_new_one_would_do_as_well() -> None:
    async def run() -> list[bool]:
        meter, spent = Meter(pacer(1 / 60)), []
        for _ in range(2):
            await meter.call(0)
            spent.append(meter.pacer.is_spent)
            await asyncio.sleep(62.0)
            spent.append(meter.pacer.is_spent)
        return spent

    assert virtually(run) == [False, True, False, True]


# --- serial keys --------------------------------------------------------------------------------------------------


def test_a_key_runs_one_at_a_time_in_order_and_others_beside_it() -> None:
    async def run() -> list[tuple[str, float]]:
        serially, done = Serially(), []

        async def one(key: str, name: str) -> None:
            async with serially.turn(key):
                await asyncio.sleep(1.0)
                done.append((name, now()))

        await asyncio.gather(*(one(key, name) for key, name in [("k", "k1"), ("k", "k2"), ("j", "j1"), ("k", "k3")]))
        assert not serially._waiting
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
