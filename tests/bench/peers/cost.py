"""What the processes of a subject have used: CPU time, and bytes written to files.

The tree under the job's process is split: a process that the job named as a server, with what it started, is counted
apart, and so is a Kafka that we started. The model's server is nobody's.

Responsible for: reading the operating system's counters.
Must never: count a process twice.
Called by: `__main__.py`, before and after each load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds, user and system, and bytes; `written` is None where the system does not tell."""

    workers_s: float
    servers_s: float
    written: int | None

    def since(self, before: Cost) -> Cost:
        """What was used from `before` on."""
        written = None if self.written is None or before.written is None else self.written - before.written
        return Cost(self.workers_s - before.workers_s, self.servers_s - before.servers_s, written)


def cost(job: int, servers: Iterable[int]) -> Cost:
    """Of the process `job` and all that it started, and of `servers`, wherever they were started."""
    shared = {process for pid in servers for process in _tree(pid)}
    own = _tree(job) - shared
    written = [_written(process) for process in own | shared]
    return Cost(
        workers_s=sum(_cpu_s(process) for process in own),
        servers_s=sum(_cpu_s(process) for process in shared),
        written=None if None in written else sum(each or 0 for each in written),
    )


def _tree(pid: int) -> set[psutil.Process]:
    root = psutil.Process(pid)
    return {root, *root.children(recursive=True)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _written(process: psutil.Process) -> int | None:
    """What it made the system write to a disk, sooner or later; file systems in memory count nothing."""
    if not hasattr(process, "io_counters"):
        return None
    return int(process.io_counters().write_bytes)
