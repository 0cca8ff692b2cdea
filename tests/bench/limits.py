"""How exactly a limit is kept: workers come and go, and an outside meter reads when calls started.

Responsible for: a line for each rate, as in docs/performance.md: `python -m tests.bench.limits BOOTSTRAP RATE...`.
Must never: judge; tests/integration/test_limits.py does. Called by: people.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.support.meter import Meter, Readings
from tests.support.wait import until

START_S = 40.0


async def steps(meter: Meter, pause_s: float) -> list[float]:
    """1, 2, then 4 workers, 3, 2, and one is killed; returns when each step began, and when all was over."""
    await meter.make_topics()
    await meter.put(int(meter.limit.per_second * (6 * pause_s + START_S) + 200))
    await meter.start()
    await until(lambda: len(meter.lines()) > 2, 30 + 3 / meter.limit.per_second, "calls start")
    times = [time.monotonic()]

    async def rest() -> None:
        await asyncio.sleep(pause_s)
        times.append(time.monotonic())

    await rest()
    await meter.start()
    await rest()
    await asyncio.gather(meter.start(), meter.start())
    await rest()
    await meter.stop(meter.workers[0])
    await rest()
    await meter.stop(meter.workers[1])
    await rest()
    times.append(time.monotonic())
    meter.kill(meter.workers[0])
    await asyncio.sleep(meter.session_s + 2)
    await rest()
    return times


def shown(readings: Readings, times: list[float]) -> str:
    steady = readings.rates(times[0], times[5])
    killed = readings.between(times[7] - readings.window_s, times[7]) / readings.window_s / readings.per_second
    longest = max(b - a for a, b in zip(readings.at, readings.at[1:], strict=False) if b > times[6])
    return (
        f"| {readings.per_second:g}/s | {readings.homes} | {min(steady):.1%} to {max(steady):.1%} | "
        f"{readings.most_in_a_second} of {readings.allowed_in_a_second:.1f} | {longest:.1f} s | {killed:.1%} |"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("rates", nargs="+")
    parser.add_argument("--pause", type=float, default=12.0, help="seconds of each step")
    parser.add_argument("--session", type=float, default=10.0, help="the workers' session timeout, in seconds")
    parser.add_argument("--keep", type=Path, help="where the starts and the workers' logs are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for written in given.rates:
            with Meter(given.bootstrap, given.keep or Path(folder), written, session_s=given.session) as meter:
                times = await steps(meter, max(given.pause, 250 / meter.limit.per_second))
                sys.stdout.write(f"{shown(meter.readings(), times)}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
