"""The processes that a job starts beside itself: its own workers, a Redis, and the like.

Responsible for: starting them so that they cannot outlive the job, and waiting until they serve.
Must never: import anything but the standard library and what does the same.
Called by: the `job.py` of the peers that have any.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.bench.peers.job import JobFailed
from tests.bench.peers.place import Place
from tests.support.process import Command, GuardedProcess, tail

READY_S: Final = 60.0
STOP_S: Final = 5.0


@asynccontextmanager
async def running(
    argv: Sequence[str], place: Place, ready: Callable[[str], bool], env: Mapping[str, str] | None = None
) -> AsyncIterator[GuardedProcess]:
    """A process while the block runs; `ready` is asked with what it has printed so far. Raises JobFailed."""
    log = Path(place.home, f"{Path(argv[0]).name}-{secrets.token_hex(4)}.log")
    process = await asyncio.to_thread(GuardedProcess, Command(argv, env=env), log)
    try:
        await _until(process, log, ready)
        yield process
    finally:
        await asyncio.to_thread(process.stop, STOP_S)


@asynccontextmanager
async def redis(program: str, place: Place) -> AsyncIterator[GuardedProcess]:
    """A Redis at `place.redis_socket` that writes what it is told to its log, and syncs that once a second."""
    settings = {"port": "0", "unixsocket": place.redis_socket, "dir": place.home, "appendonly": "yes", "save": ""}
    argv = [program, *(part for name, value in settings.items() for part in (f"--{name}", value))]
    async with running(argv, place, lambda said: "ready to accept connections" in said.lower()) as process:
        yield process


def listens(port: int) -> Callable[[str], bool]:
    """Whether something accepts connections at `port` of this machine."""

    def asked(_said: str) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return asked


async def _until(process: GuardedProcess, log: Path, ready: Callable[[str], bool]) -> None:
    try:
        async with asyncio.timeout(READY_S):
            while not ready(log.read_text(errors="replace")):
                if not process.is_running():
                    raise JobFailed(f"{log.stem} ended while it started: {tail(log)[-500:]}")
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise JobFailed(f"{log.stem} did not serve within {READY_S:g} s: {tail(log)[-500:]}") from error
