"""Measures one subject under one load.

So many runs are kept in flight, each follower submitted when its predecessor is answered, until there are enough. A
measurement begins and ends with nothing in flight, so that time, CPU and bytes are those of whole runs.

Responsible for: the load, the clock, and what follows from it.
Must never: know what the subject is.
Called by: `__main__.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import traffic
from tests.bench.processes import Worker
from tests.bench.subject import Subject

CLIENT: Final = "client"


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


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. The fields are those of an entry of `build/bench.json`; `runs` is how many there were."""

    name: str
    tool_ms: int
    concurrency: int
    runs_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_run: float
    bytes_per_run: float
    cpu_ms_by_process: dict[str, float]
    runs: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a subject is measured. With `profiles`, a folder, its workers are profiled, which slows them down."""

    bootstrap: str
    namespace: str
    effort: Effort
    profiles: Path | None = None


async def measure(subject: Subject, cell: Cell, scene: Scene) -> Figures:
    """Warm up, measure, and look what was written. Raises what a run raises."""
    await _warm_up(subject, cell, scene.effort)
    written_before = await traffic.ends(scene.bootstrap, scene.namespace)
    if scene.profiles is not None:
        await asyncio.gather(*(worker.profile() for worker in subject.workers.values()))
    cpu_before, began = await _cpu_s(subject.workers), time.perf_counter()
    latencies = await _load(subject, cell, scene.effort)
    elapsed, cpu_after = time.perf_counter() - began, await _cpu_s(subject.workers)
    if scene.profiles is not None:
        await _dump(subject, cell, scene.profiles)
    written_after = await traffic.ends(scene.bootstrap, scene.namespace)
    runs = len(latencies)
    cpu_ms = {name: (cpu_after[name] - cpu_before[name]) / runs * 1000 for name in cpu_after}
    return Figures(
        name=subject.name,
        tool_ms=cell.tool_ms,
        concurrency=cell.concurrency,
        runs_s=runs / elapsed,
        p50_ms=percentile(latencies, 0.50) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        cpu_ms_per_run=sum(cpu_ms.values()),
        bytes_per_run=await traffic.written(scene.bootstrap, written_before, written_after) / runs,
        cpu_ms_by_process=cpu_ms,
        runs=runs,
    )


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that is not below `share` of them (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def _warm_up(subject: Subject, cell: Cell, effort: Effort) -> None:
    """The same load, shorter: connections, caches, and every partition has had something to do."""
    runs = max(effort.warm_up, cell.concurrency)
    await _load(subject, cell, Effort(0.0, effort.limit_s, 0, runs, 0))


async def _load(subject: Subject, cell: Cell, effort: Effort) -> list[float]:
    """The latency of each run, in seconds."""
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


async def _cpu_s(workers: Mapping[str, Worker]) -> dict[str, float]:
    """CPU seconds so far, by process; the client is this one."""
    used = {name: await worker.cpu_s() for name, worker in workers.items()}
    return {**used, CLIENT: time.process_time()}


async def _dump(subject: Subject, cell: Cell, folder: Path) -> None:
    for name, worker in subject.workers.items():
        await worker.dump(folder / f"{subject.name}-{name}-{cell}.pstats")
