"""Lanes in the line of a limit, in virtual time: turns by weight, order within a lane, and what a hand-over keeps.

Called by: pytest.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.pacing import Meter, most_in_a_second, pacer
from tests.support.virtual import virtually

from anabranch.fields import Lane

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
