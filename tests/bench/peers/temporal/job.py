"""Temporal: its development server with its database in a file, a worker for the agents and one for the tools.

The server is `temporal` if that is on the PATH, else what the SDK downloads.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from tests.bench.peers import turns
from tests.bench.peers.job import CannotBeHad, Job, main
from tests.bench.peers.place import Place
from tests.bench.peers.servers import running
from tests.bench.peers.temporal.work import AGENTS, TOOLS, Run
from tests.support.process import free_ports

DOWNLOAD_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Workflows:
    """See `load.Asked`."""

    client: Client

    async def ask(self, tool_ms: int) -> None:
        turns.check(await self.client.execute_workflow(Run.run, tool_ms, id=uuid.uuid4().hex, task_queue=AGENTS))


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """A server, two workers, and this process as the client."""
    program = shutil.which("temporal") or await _downloaded(place)
    [port] = free_ports(1)
    address, database = f"127.0.0.1:{port}", str(Path(place.home, "temporal.sqlite"))
    where = ["--headless", "--ip", "127.0.0.1", "--port", str(port), "--db-filename", database, "--log-level", "error"]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            running([program, "server", "start-dev", *where], place, lambda said: "Server:" in said)
        )
        for role in (TOOLS, AGENTS):
            worker = [sys.executable, "-m", "tests.bench.peers.temporal.work", role, address]
            await stack.enter_async_context(running(worker, place, lambda said: "serving" in said))
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
        yield Job(Workflows(await Client.connect(address)), {"temporal": server.pid}, {"server": version})


async def _downloaded(place: Place) -> str:
    """What the SDK fetches for its users' tests, kept where the peer is installed."""
    try:
        async with asyncio.timeout(DOWNLOAD_S):
            environment = await WorkflowEnvironment.start_local(download_dest_dir=place.tools)
            await environment.shutdown()
    except (RuntimeError, TimeoutError) as error:
        raise CannotBeHad(
            "there is no `temporal` on the PATH, and the SDK could not download its server. With Go it can be built: "
            "go install github.com/temporalio/cli/cmd/temporal@v1.5.1"
        ) from error
    return str(next(file for file in Path(place.tools).glob("temporal*") if file.is_file()))


if __name__ == "__main__":
    main(opened, ["temporalio", "anthropic"])
