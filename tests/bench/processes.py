"""The worker processes of the benchmark, as seen by the one that started them.

Responsible for: starting them, speaking with them (the orders of `worker.py`), ending them; the death of one ends the
benchmark.
Must never: leave one behind.
Called by: `anabranch_run.py`, `floor.py`, `measure.py`.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from anabranch.tasks import alongside

ROOT: Final = Path(__file__).parents[2]
READY_S: Final = 60.0
END_S: Final = 10.0


class WorkerDied(Exception):
    """A worker of the benchmark ended by itself; what it wrote to standard error says why."""


class Worker:
    """One worker process. Made by `fleet`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ready(self) -> None:
        """Wait until it serves. Raises TimeoutError, WorkerDied."""
        async with asyncio.timeout(READY_S):
            await self._line()

    async def cpu_s(self) -> float:
        """The CPU seconds that it has used so far, all its threads, user and system."""
        return float(await self._ask("cpu"))

    async def profile(self) -> None:
        """Profile it from now on, until `dump`; that makes it slower."""
        await self._ask("profile")

    async def dump(self, file: Path) -> None:
        """Write what the profiler has seen, for `pstats`."""
        await self._ask(f"dump {file}")

    async def _ask(self, order: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n".encode())
        await self._process.stdin.drain()
        return await self._line()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode().strip()
        if not line:
            raise WorkerDied("a worker process ended before it answered")
        return line


@asynccontextmanager
async def fleet(roles: Mapping[str, str], bootstrap: str, namespace: str) -> AsyncIterator[dict[str, Worker]]:
    """Workers that serve, one for each of `roles`, which has the role of `worker.py` by the name to call it.

    If one of them ends by itself, the block is cancelled, and WorkerDied raised.
    """
    async with AsyncExitStack() as stack:
        workers = {
            name: await stack.enter_async_context(_started(role, bootstrap, namespace)) for name, role in roles.items()
        }
        await asyncio.gather(*(worker.ready() for worker in workers.values()))
        yield workers


@asynccontextmanager
async def _started(role: str, bootstrap: str, namespace: str) -> AsyncIterator[Worker]:
    command = [sys.executable, "-m", "tests.bench.worker", role, bootstrap, namespace]
    # A session of its own: Ctrl-C in the terminal is for us, who then end the workers in order.
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT, start_new_session=True)
    try:
        async with alongside(_mourn(process, role), f"{role} process"):
            yield Worker(process)
    finally:
        await _end(process)


async def _mourn(process: Process, role: str) -> None:
    raise WorkerDied(f"the {role} process ended by itself, with status {await process.wait()}")


async def _end(process: Process) -> None:
    """The end of its input tells it to end; if it does not, it is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
