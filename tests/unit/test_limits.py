"""Pacing: a rate is kept and reached, in order, whatever comes late, waits, is cancelled or changes its owner.

Responsible for: `limits.py`, in virtual time (the bucket reads the loop's clock).
Must never: wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from tests.support import virtual
from tests.support.virtual import now, virtually

from anabranch.homes import Share
from anabranch.limits import LATE_S, Held, Pacer, Serially, ShareLost

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


class Meter:
    """Calls that pass a pacer: when each started, by its order."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer, self.at, self.order = pacer, list[float](), list[int]()
        self.idle: Callable[[int], bool] = lambda order: False

    async def call(self, order: int, takes_s: float = 0.0) -> None:
        async with self.pacer.inside(self.pacer.join(order, takes_s, lambda: self.idle(order))) as turn:
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


# --- the rate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_reached_and_never_passed(rate: float) -> None:
    assert_rate(starts(rate, max(220, int(12 * rate))), rate)


@pytest.mark.parametrize("rate", RATES)
def test_late_wake_ups_are_caught_up_with(rate: float, late: random.Random) -> None:
    assert_rate(starts(rate, max(220, int(12 * rate))), rate)


def test_what_was_late_for_long_is_forgiven() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(100.0))
        calls = asyncio.gather(*(meter.call(order) for order in range(1200)))
        await asyncio.sleep(1.0)
        asyncio.get_running_loop()._selector.now += 3.0  # type: ignore[attr-defined]  # the loop hangs
        await calls
        return meter.at

    at = virtually(run)
    assert most_in_a_second([when for when in at if when > 4]) <= 103
    assert at[-1] == pytest.approx(12.0 + 3.0, abs=0.1)


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
        async with paced.inside(paced.join(1, 0.0, lambda: False)):
            pass  # it never starts
        await meter.call(2)
        return meter.at

    assert virtually(run) == pytest.approx([0.0, 1.0], abs=0.001)


def test_one_whose_time_is_over_costs_no_budget_and_starts_no_more() -> None:
    async def run() -> Meter:
        meter = Meter(pacer(10.0))
        meter.idle = lambda order: order in (3, 4, 5) and now() > 0.1
        await meter.calls(range(10))
        return meter

    meter = virtually(run)
    assert meter.order == [0, 1, 2, 6, 7, 8, 9]
    assert meter.at == pytest.approx([n / 10 for n in range(7)], abs=0.001)


def test_no_more_run_at_once_than_there_are_places() -> None:
    assert [round(when) for when in starts(1000.0, 9, places=3, takes_s=1.0)] == [0] * 3 + [1] * 3 + [2] * 3


# --- changing hands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 10.0, 83.3])
def test_a_home_that_changes_hands_again_and_again_keeps_its_rate(rate: float) -> None:
    """The giver goes on with what is due in five seconds, and the next one begins where that ends."""

    end: list[float] = []

    async def run() -> list[float]:
        meter, calls = Meter(pacer(rate)), int(80 * rate)
        at = meter.at
        tasks = {order: asyncio.create_task(meter.call(order)) for order in range(calls)}
        for _ in range(10):
            await asyncio.sleep(3.7)
            stay = set(meter.pacer.close(5.0, lambda order, is_in: True))
            left = meter.pacer.left()
            await asyncio.sleep(2.0)  # the rebalance
            meter = Meter(pacer(rate, due=left.due))
            meter.at = at
            for order, task in tasks.items():
                if order not in stay and task.done() and task.exception() is not None:
                    tasks[order] = asyncio.create_task(meter.call(order))
        await asyncio.sleep(10.0)
        end.append(now())
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return sorted(at)

    at = virtually(run)
    assert most_in_a_second(at) <= 1.02 * rate + 1
    assert len(at) == pytest.approx(end[0] * rate, rel=0.02)
    assert_rate(at, rate)


@pytest.mark.parametrize("rate", [1.0, 10.0, 83.3])
@pytest.mark.parametrize("hang_s", [0.3, 0.9, 2.5])
def test_a_giver_that_stands_still_before_it_ends_leaves_the_next_one_room(rate: float, hang_s: float) -> None:
    """What it may not start any more is sent away; its successor starts one call a period from the end on."""

    async def run(hangs_at: float) -> list[float]:
        loop, meter = asyncio.get_running_loop(), Meter(pacer(rate))
        tasks = [asyncio.create_task(meter.call(order)) for order in range(int(20 * rate))]
        await asyncio.sleep(5.0)
        meter.pacer.close(5.0, lambda order, is_in: True)
        end = meter.pacer.left().due
        await asyncio.sleep(hangs_at)
        loop._selector.now += hang_s  # type: ignore[attr-defined]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(meter.at) > 5 * rate
        return meter.at + [end + n / rate for n in range(int(5 * rate))]

    for hangs_at in range(21):
        assert most_in_a_second(virtually(lambda at=hangs_at / 4: run(at))) <= 1.02 * rate + 1  # type: ignore[misc]


def test_who_joins_behind_others_sets_no_timer() -> None:
    """Thousands are read again after each rebalance, and the loop must not stand still meanwhile."""

    async def run() -> int:
        line, loop = pacer(1.0), asyncio.get_running_loop()
        for order in range(1000):
            line.join(order, 1.0, lambda: False)
        return len(loop._scheduled)  # type: ignore[attr-defined]

    assert virtually(run) == 1


def test_who_gives_up_keeps_what_is_due_and_sends_the_others_away() -> None:
    async def run() -> tuple[list[int], list[int], float]:
        meter = Meter(pacer(10.0))
        tasks = [asyncio.create_task(meter.call(order)) for order in range(30)]
        await asyncio.sleep(0.05)
        stay = meter.pacer.close(0.5, lambda order, is_in: True)
        left = meter.pacer.left()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, ShareLost) for one in done[len(stay) + 1 :])
        with pytest.raises(ShareLost):
            await meter.call(99)
        return stay, meter.order, left.due

    stay, order, due = virtually(run)
    assert stay == [1, 2, 3, 4, 5]
    assert order == [0, 1, 2, 3, 4, 5]
    assert due == pytest.approx(0.6 + LATE_S, abs=0.001), "whoever is late has started by then"


def test_whoever_may_not_stay_ends_the_line() -> None:
    async def run() -> list[int]:
        meter = Meter(pacer(10.0))
        tasks = [asyncio.create_task(meter.call(order)) for order in range(9)]
        await asyncio.sleep(0.05)
        stay = meter.pacer.close(60.0, lambda order, is_in: order != 4)
        await asyncio.gather(*tasks, return_exceptions=True)
        return stay

    assert virtually(run) == [1, 2, 3]


def test_a_home_that_comes_back_goes_on_as_if_nothing_was() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(10.0))
        first = [asyncio.create_task(meter.call(order)) for order in range(5)]
        await asyncio.sleep(0.05)
        meter.pacer.close(60.0, lambda order, is_in: True)
        meter.pacer.open(0.0, None)
        await meter.calls(range(5, 20))
        await asyncio.gather(*first)
        return meter.at

    assert virtually(run) == pytest.approx([n / 10 for n in range(20)], abs=0.001)


def test_a_home_that_was_anothers_meanwhile_begins_where_that_one_ended() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(10.0))
        await meter.call(0)
        meter.pacer.close(0.0, lambda order, is_in: True)
        meter.pacer.open(7.0, ())
        await meter.calls([1, 2])
        return meter.at

    assert virtually(run) == pytest.approx([0.0, 7.0, 7.1], abs=0.001)


def test_places_that_former_calls_hold_are_free_when_their_time_is_over() -> None:
    async def run() -> list[float]:
        paced = pacer(1000.0, places=3)
        paced.open(0.0, [Held(2, 5.0)])
        meter = Meter(paced)
        await meter.calls(range(5), takes_s=1.0)
        return [round(when, 1) for when in meter.at]

    assert virtually(run) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_what_is_left_names_the_places_of_calls_that_run() -> None:
    async def run() -> None:
        meter = Meter(pacer(1000.0, places=4))
        tasks = [asyncio.create_task(meter.call(order, takes_s=10.0)) for order in range(3)]
        await asyncio.sleep(0.5)
        meter.pacer.close(5.0, lambda order, is_in: True)
        held = meter.pacer.left().held
        assert held.places == 3
        assert held.until == pytest.approx(10.0, abs=0.1)
        await asyncio.gather(*tasks)

    virtually(run)


def test_those_who_stay_share_the_places_of_those_who_run() -> None:
    """The others are the next owner's from now on."""

    async def run() -> tuple[list[int], list[float]]:
        meter = Meter(pacer(10.0, places=4))
        tasks = [asyncio.create_task(meter.call(order, takes_s=0.15)) for order in range(20)]
        await asyncio.sleep(0.55)
        running = len(meter.pacer._inside)
        stay = meter.pacer.close(1.0, lambda order, is_in: True)
        assert meter.pacer.left().held.places == running == 2
        await asyncio.gather(*tasks, return_exceptions=True)
        return stay, meter.at

    stay, at = virtually(run)
    assert stay == list(range(6, 16))
    assert all(sum(0 <= when - other < 0.15 for other in at) <= 2 for when in at)


def test_a_limit_of_one_place_leaves_nobody_in_the_line() -> None:
    async def run() -> list[int]:
        meter = Meter(pacer(10.0, places=1))
        tasks = [asyncio.create_task(meter.call(order, takes_s=1.0)) for order in range(3)]
        await asyncio.sleep(0.5)
        stay = meter.pacer.close(5.0, lambda order, is_in: True)
        await asyncio.gather(*tasks, return_exceptions=True)
        return stay

    assert virtually(run) == []


def test_who_stays_and_finds_no_place_in_time_is_sent_away() -> None:
    async def run() -> tuple[list[int], list[int]]:
        meter = Meter(pacer(10.0, places=2))
        tasks = [asyncio.create_task(meter.call(order, takes_s=3.0)) for order in range(5)]
        await asyncio.sleep(0.05)
        stay = meter.pacer.close(1.0, lambda order, is_in: True)
        await asyncio.gather(*tasks, return_exceptions=True)
        return stay, meter.order

    assert virtually(run) == ([1, 2, 3, 4], [0])


def test_nothing_starts_while_the_session_may_be_lost() -> None:
    async def run() -> float:
        meter = Meter(Pacer(Share(10.0, None), 0.0, lambda: now() > 4))
        await meter.call(0)
        return meter.at[0]

    assert virtually(run) == pytest.approx(4.0, abs=0.11)


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
