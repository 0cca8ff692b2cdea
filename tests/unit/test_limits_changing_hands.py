"""Pacing across owners: a home of a limit keeps its rate and its places, whoever gives it up, takes it or comes back.

Responsible for: what `limits.py` does when a home is closed and opened, in virtual time.
Must never: wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import math

import pytest
from tests.support import virtual
from tests.support.pacing import Meter, assert_rate, most_in_a_second, pacer
from tests.support.virtual import now, virtually

from anabranch.homes import Share
from anabranch.limits import LATE_S, Held, Pacer, ShareLost


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual.tick(monkeypatch)


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
            line.join(order, 1.0, lambda: math.inf)
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


def test_what_is_left_names_the_place_of_one_that_is_about_to_start() -> None:
    """It has its turn, and waits for something else: a thread, say."""

    async def run() -> None:
        paced = pacer(1000.0, places=4)
        async with paced.inside(paced.join(0, 10.0, lambda: math.inf)) as turn:
            await asyncio.sleep(7.0)
            paced.close(5.0, lambda order, is_in: True)
            left = paced.left().held
            await turn.start()
            assert left.places == 1
            assert left.until == pytest.approx(17.0 + LATE_S, abs=0.01)
            assert paced.left().held.until <= left.until, "it has said so"

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
