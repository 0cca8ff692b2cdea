"""Keeps so many runs in flight, and times each.

Each run's follower is submitted when it is answered, until there are enough: a load begins and ends with nothing in
flight, so that what was used in the meantime was used by whole runs.

Responsible for: how long a load lasts, and the latency of each run.
Must never: import anything but the standard library: the peers run it in environments of their own. Know what it loads.
Called by: `measure.py`, `peers/job.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Final, Protocol


class Asked(Protocol):
    """Something that carries runs."""

    async def ask(self, tool_ms: int) -> None:
        """One run, from its submission to its answer. Raises if the answer is not the expected one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A load: how long the tools take, and how many runs are in flight."""

    tool_ms: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.tool_ms}ms-{self.concurrency}"


@dataclass(frozen=True, slots=True)
class Effort:
    """When a measurement has enough: after `seconds` and `least` runs, and in any case after `limit_s`.

    `least` is per run in flight, and `floor` the number below which no percentile means anything.
    """

    seconds: float
    limit_s: float
    least: int
    floor: int
    warm_up: int

    def enough(self, cell: Cell, submitted: int, elapsed_s: float) -> bool:
        wanted = max(self.floor, self.least * cell.concurrency)
        return elapsed_s >= self.limit_s or (elapsed_s >= self.seconds and submitted >= wanted)

    def shorter(self, cell: Cell) -> Effort:
        """To warm up: connections, caches, and every partition has had something to do."""
        return Effort(0.0, self.limit_s, 0, max(self.warm_up, cell.concurrency), 0)


WARM: Final = Effort(seconds=5.0, limit_s=5.0, least=0, floor=0, warm_up=0)
"""What each does before it is measured: a broker that has just started compiles itself meanwhile, on its cores."""


async def load(subject: Asked, cell: Cell, effort: Effort) -> list[float]:
    """The latency of each run, in seconds. Raises what the first run raises that goes wrong."""
    latencies: list[float] = []
    submitted, began = 0, time.perf_counter()

    async def one_after_another() -> None:
        nonlocal submitted
        while not effort.enough(cell, submitted, time.perf_counter() - began):
            submitted += 1
            asked = time.perf_counter()
            await subject.ask(cell.tool_ms)
            latencies.append(time.perf_counter() - asked)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(cell.concurrency):
                tasks.create_task(one_after_another())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # what went wrong with one run went wrong with the others too
    return latencies


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that is not below `share` of them (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
