"""Lanes in the line of a limit, in virtual time: turns by weight, order within a lane, and what a hand-over keeps.

Called by: pytest.
"""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.pacing import Meter, most_in_a_second, pacer
from tests.support.virtual import now, virtually

from anabranch.fields import Lane
from anabranch.limit_line import Line, Turn

LINES = st.lists(st.sampled_from(["interactive", "bulk"]), min_size=1, max_size=40)


def started(lanes: list[Lane], per_second: float = 10.0) -> Meter:
    """What comes of calls that all wait at once; a call's order is its place in the list."""

    async def run() -> Meter:
        meter = Meter(pacer(per_second))
        await asyncio.gather(*(meter.call(order, lane=lane) for order, lane in enumerate(lanes)))
        return meter

    return virtually(run)


def test_the_interactive_lane_has_four_turns_for_each_of_the_bulk_lane() -> None:
    lanes: list[Lane] = ["bulk" if order < 20 else "interactive" for order in range(30)]
    meter = started(lanes)
    first = [lanes[order] for order in meter.order[1:13]]  # the very first found nobody else there
    assert first == ([*["interactive"] * 4, "bulk"] * 3)[:12]
    assert [order for order in meter.order if lanes[order] == "bulk"] == list(range(20))
    assert [order for order in meter.order if lanes[order] == "interactive"] == list(range(20, 30))


@given(LINES)
def test_lanes_move_no_start_and_each_keeps_its_order(lanes: list[Lane]) -> None:
    meter = started(lanes)
    assert meter.at == pytest.approx([n / 10 for n in range(len(lanes))], abs=0.001)
    assert most_in_a_second(meter.at) <= 11
    for lane in ("interactive", "bulk"):
        mine = [order for order in meter.order if lanes[order] == lane]
        assert mine == sorted(mine)


@given(LINES, st.floats(0, 2))
def test_who_gives_up_keeps_those_who_would_have_been_next(lanes: list[Lane], for_s: float) -> None:
    async def run() -> tuple[list[int], list[int]]:
        meter = Meter(pacer(10.0))
        tasks = [asyncio.create_task(meter.call(order, lane=lane)) for order, lane in enumerate(lanes)]
        await asyncio.sleep(0.95)
        begun = len(meter.order)
        stay = meter.pacer.close(for_s, lambda order, is_in: True)
        await asyncio.gather(*tasks, return_exceptions=True)
        return stay, meter.order[begun:]

    stay, after = virtually(run)
    whole = started(lanes).order
    assert stay == after == whole[10 : 10 + len(stay)]


def order_with(behind: int, lane: Lane, joins_s: float = 0.05, others: int = 6) -> list[int]:
    """What becomes of calls 1, 2, ... of the bulk lane, and of 0, which joins a little later, and so far behind."""

    async def run() -> list[int]:
        meter = Meter(pacer(10.0))
        calls = [asyncio.create_task(meter.call(order, lane="bulk")) for order in range(1, others + 1)]
        await asyncio.sleep(joins_s)
        await asyncio.gather(meter.call(0, lane=lane, behind=behind), *calls)
        return meter.order

    return virtually(run)


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_who_stands_behind_others_lets_so_many_of_any_lane_go_first(lane: Lane) -> None:
    assert order_with(0, lane) == [1, 0, 2, 3, 4, 5, 6]
    assert order_with(3, lane) == [1, 2, 3, 4, 0, 5, 6]
    assert order_with(50, lane) == [1, 2, 3, 4, 5, 6, 0], "nobody else waits"


def test_who_stands_behind_others_lets_those_go_first_that_come_while_nobody_may_start() -> None:
    async def run() -> list[int]:
        meter = Meter(pacer(10.0))
        meter.pacer.pause(60.0)
        calls = [asyncio.create_task(meter.call(0, behind=8))]
        await asyncio.sleep(30.0)
        calls += [asyncio.create_task(meter.call(order)) for order in range(1, 4)]
        await asyncio.gather(*calls)
        return meter.order

    assert virtually(run) == [1, 2, 3, 0]


def test_who_stands_behind_others_and_is_not_wanted_any_more_leaves_the_line_in_time() -> None:
    async def run() -> list[float]:
        meter = Meter(pacer(10.0))
        meter.pacer.pause(60.0)
        meter.left_s = lambda order: 30.0 - now()
        await meter.call(0, behind=8)
        return [now(), *meter.at]

    assert virtually(run) == [pytest.approx(30.0, abs=0.2)]


@given(st.lists(st.tuples(st.sampled_from(["interactive", "bulk"]), st.sampled_from([0, 0, 1, 5])), max_size=20))
def test_what_is_said_of_the_next_turns_comes_true(calls: list[tuple[Lane, int]]) -> None:
    """Of some that stay when a home is given up, too: they are those, and no others."""

    def come(line: Line) -> list[Turn]:
        came = []
        while (first := line.first()) is not None:
            line.pop(first)
            came.append(first)
        return came

    async def run() -> None:
        whole, part, paced = Line(4), Line(4), pacer(1.0)
        for order, (lane, behind) in enumerate(calls):
            turn = Turn(order, 0.0, lambda: math.inf, paced, lane=lane)
            whole.add(turn, behind)
            part.add(turn, behind)
        foretold = list(whole.in_turn())
        assert len(foretold) == len(calls)
        part.keep(foretold[:10])
        assert come(whole) == foretold
        assert set(come(part)) == set(foretold[:10])

    virtually(run)


def test_who_joins_and_is_next_at_once_waits_for_no_timer_of_the_other_lane() -> None:
    """The bulk lane's next turn is a second away, and so is the next start: whose it is, is decided then."""

    async def run() -> list[int]:
        meter = Meter(pacer(1.0))
        bulk = [asyncio.create_task(meter.call(order, lane="bulk")) for order in range(3)]
        await asyncio.sleep(0.5)
        await meter.call(99)
        await asyncio.gather(*bulk)
        return meter.order

    assert virtually(run) == [0, 99, 1, 2]


def test_whoever_of_a_lane_has_gone_leaves_the_turn_to_the_other_lane() -> None:
    async def run() -> list[int]:
        meter = Meter(pacer(1.0))
        gone = [asyncio.create_task(meter.call(order)) for order in range(3)]
        bulk = asyncio.create_task(meter.call(50, lane="bulk"))
        await asyncio.sleep(0.5)
        for task in gone:
            task.cancel()
        await bulk
        return meter.order

    assert virtually(run) == [0, 50]
