"""The program around a peer's job, in the peer's own environment: it takes orders, as `processes.py` gives them.

It says a JSON line once the job serves: `{versions, servers}`, `servers` being process ids by name. Each line on
standard input is then a load, answered by what was measured. The end of standard input ends it, and what it started.

Responsible for: orders and answers. What a library prints goes to standard error.
Must never: import anything that a peer does not have (the standard library, `load.py`), or touch what it measures.
Called by: every `job.py`, as `main(opened, libraries)`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import version

from tests.bench.load import Asked, Cell, Effort, load, percentile
from tests.bench.peers.place import Place


class CannotBeHad(Exception):
    """The job cannot be done here, for want of what the message says."""


class JobFailed(Exception):
    """Something that the job needs and has did not start; the message has the end of its log."""


Opened = Callable[[Place], AbstractAsyncContextManager["Job"]]


@dataclass(frozen=True, slots=True)
class Job:
    """A job that serves; `servers` are process ids of what would be shared by all its workers: a broker, a store."""

    subject: Asked
    servers: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def main(opened: Opened, libraries: Sequence[str]) -> None:
    """Serve until standard input ends. `libraries` are the distributions whose versions the report names."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(value: object) -> None:
        answers.write(f"{json.dumps(value)}\n")

    try:
        asyncio.run(_serve(opened, libraries, say))
    except CannotBeHad as error:
        _say_last(say, {"skipped": str(error)})
    except JobFailed as error:
        _say_last(say, {"failed": str(error)})


def _say_last(say: Callable[[object], None], word: object) -> None:
    """And wait for the end of standard input: a process that ends unasked is taken for one that crashed."""
    say(word)
    while os.read(0, 1024):
        pass


async def _serve(opened: Opened, libraries: Sequence[str], say: Callable[[object], None]) -> None:
    async with opened(Place.here()) as job:
        orders = await _standard_input()
        versions = {name: version(name) for name in libraries} | dict(job.versions)
        say({"versions": versions, "servers": dict(job.servers)})
        while line := await orders.readline():
            order = json.loads(line)
            say(await _measured(job.subject, Cell(**order["cell"]), Effort(**order["effort"])))


async def _measured(subject: Asked, cell: Cell, effort: Effort) -> dict[str, float]:
    began = time.perf_counter()
    latencies = await load(subject, cell, effort)
    elapsed = time.perf_counter() - began
    p50, p99 = percentile(latencies, 0.50), percentile(latencies, 0.99)
    return {
        "runs": len(latencies),
        "runs_s": len(latencies) / elapsed,
        "p50_ms": p50 * 1000,
        "p99_ms": p99 * 1000,
    }


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader
