"""A limit is the fleet's: an outside meter reads when calls start, while workers come, go and die.

Responsible for: rate, order and places of a limit on a real Kafka, with workers as processes. A machine that is busy
with other things makes workers late, so these tolerances are wider than what we promise: that is held in virtual time
(tests/unit/test_limits.py) and measured by `python -m tests.bench.limits`. Must never: look inside a worker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.support.meter import Meter, Readings
from tests.support.wait import until

pytestmark = pytest.mark.timeout(300)

STEP_S = 6.0
"""How long so many workers serve before one comes or goes."""
LEAST, MOST = 0.85, 1.05


async def started(meter: Meter, count: int) -> None:
    await until(lambda: len(meter.lines()) >= count, 60 + 2 * count / meter.limit.per_second, f"{count} calls start")


def holds(readings: Readings) -> bool:
    """Whether no second had more than it may; a machine that stands still may move one call of each home into it."""
    return readings.most_in_a_second <= readings.allowed_in_a_second + readings.homes


async def test_the_rate_is_kept_while_workers_come_and_go(kafka: str, tmp_path: Path) -> None:
    with Meter(kafka, tmp_path, "20/s", session_s=10) as meter:
        await meter.make_topics()
        await meter.put(int(meter.limit.per_second * 120))
        await meter.start()
        await started(meter, 5)
        begin = time.monotonic()
        for workers in (1, 2, 4):
            while len(meter.workers) < workers:
                await meter.start()
            await asyncio.sleep(STEP_S)
        await meter.stop(meter.workers[0])
        await meter.stop(meter.workers[0])
        await asyncio.sleep(STEP_S)
        readings = meter.readings()
    assert holds(readings)
    rates = readings.rates(begin, readings.at[-1])
    assert LEAST <= min(rates) <= max(rates) <= MOST
    numbers = [number for number, _ in meter.lines()]
    assert len(set(numbers)) == len(numbers), "none of them ran twice"


async def test_after_a_kill_the_rate_is_back_within_the_sessions_time_and_a_period(kafka: str, tmp_path: Path) -> None:
    with Meter(kafka, tmp_path, "20/s", session_s=6) as meter:
        await meter.make_topics()
        await meter.put(20 * 90)
        await meter.start()
        await meter.start()
        await started(meter, 20)
        meter.kill(meter.workers[0])
        killed = time.monotonic()
        await asyncio.sleep(6 + 2 + meter.readings().window_s)
        readings = meter.readings()
    assert holds(readings)
    last = readings.at[-1]
    assert readings.between(last - 10, last) / 10 == pytest.approx(20, rel=1 - LEAST)
    assert last - 10 < killed + 6 + 2 + 1


async def test_no_more_run_at_once_than_the_limit_says_while_workers_come_go_and_die(
    kafka: str, tmp_path: Path
) -> None:
    places = 6
    with Meter(kafka, tmp_path, "100/s", places=places, takes_s=0.3) as meter:
        assert len(meter.homes) == places, "each home has one of the places"
        await meter.make_topics()
        await meter.put(2500)
        await meter.start()
        await started(meter, 10)
        await meter.start()
        await meter.start()
        await started(meter, len(meter.lines()) + 30)
        await meter.stop(meter.workers[0])
        await started(meter, len(meter.lines()) + 20)
        meter.kill(meter.workers[0])
        killed = time.monotonic()
        await until(lambda: meter.at_once(killed + meter.session_s) == places, 60, "all places are used again")
        assert meter.at_once() <= places


async def test_a_limited_tool_delays_no_other_and_strays_find_their_home(kafka: str, tmp_path: Path) -> None:
    with Meter(kafka, tmp_path, "5/s") as meter:
        await meter.make_topics()
        (home,) = meter.homes
        await meter.put(300)
        await meter.put(20, tool="look", partition=home)
        await meter.put(10, partition=(home + 1) % 24)
        await meter.start()
        await until(lambda: len(meter.lines("look")) == 20, 30, "those without a limit have run")
        assert len(meter.lines()) < 100
        await started(meter, 12)
        numbers = [number for number, _ in sorted(meter.lines(), key=lambda line: line[1])]
        assert numbers == sorted(numbers), "in order, and strays behind those that were there"
