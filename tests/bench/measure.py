"""Measures one subject under one load.

A measurement begins and ends with nothing in flight, so that time, CPU and bytes are those of whole runs.

Responsible for: the clock, what the processes used, and what follows from it.
Must never: know what the subject is.
Called by: `__main__.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import traffic
from tests.bench.load import Cell, Effort, load, percentile
from tests.bench.processes import Worker
from tests.bench.subject import Subject

CLIENT: Final = "client"


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
    await load(subject, cell, scene.effort.shorter(cell))
    written_before = await traffic.ends(scene.bootstrap, scene.namespace)
    if scene.profiles is not None:
        await asyncio.gather(*(worker.profile() for worker in subject.workers.values()))
    cpu_before, began = await _cpu_s(subject.workers), time.perf_counter()
    latencies = await load(subject, cell, scene.effort)
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


async def _cpu_s(workers: Mapping[str, Worker]) -> dict[str, float]:
    """CPU seconds so far, by process; the client is this one."""
    used = {name: await worker.cpu_s() for name, worker in workers.items()}
    return {**used, CLIENT: time.process_time()}


async def _dump(subject: Subject, cell: Cell, folder: Path) -> None:
    for name, worker in subject.workers.items():
        await worker.dump(folder / f"{subject.name}-{name}-{cell}.pstats")
