"""The worker processes of the benchmark, as seen by the one that started them.

Responsible for: starting them, speaking with them (the orders of `worker.py`), ending them; the death of one ends the
benchmark.
Must never: leave one behind.
Called by: `anabranch_run.py`, `floor.py`, `measure.py`, `peers/`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
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

    @property
    def pid(self) -> int:
        """Of the operating system."""
        return self._process.pid

    async def ready(self) -> str:
        """Wait until it serves; what it says then. Raises TimeoutError, WorkerDied."""
        async with asyncio.timeout(READY_S):
            return await self._line()

    async def cpu_s(self) -> float:
        """The CPU seconds that it has used so far, all its threads, user and system."""
        return float(await self.ask("cpu"))

    async def peak_bytes(self) -> int:
        """The most memory that it has had so far."""
        return int(await self.ask("peak"))

    async def bytes_now(self) -> int:
        """The memory that it has now."""
        return int(await self.ask("now"))

    async def profile(self) -> None:
        """Profile it from now on, until `dump`; that makes it slower."""
        await self.ask("profile")

    async def dump(self, file: Path) -> None:
        """Write what the profiler has seen, for `pstats`."""
        await self.ask(f"dump {file}")

    async def ask(self, order: str) -> str:
        """Its answer to an order: a line each. Raises WorkerDied."""
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
            name: await stack.enter_async_context(started(_command(role, bootstrap, namespace), role))
            for name, role in roles.items()
        }
        await asyncio.gather(*(worker.ready() for worker in workers.values()))
        yield workers


def _command(role: str, bootstrap: str, namespace: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.worker", role, bootstrap, namespace]


@asynccontextmanager
async def started(command: Sequence[str], role: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Worker]:
    """A process that takes orders, run in the project's folder; `env` is added to the environment. See `fleet`."""
    # A session of its own: Ctrl-C in the terminal is for us, who then end the workers in order.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, cwd=ROOT, env={**os.environ, **(env or {})}, start_new_session=True
    )
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
