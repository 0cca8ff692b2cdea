"""Calfkit on Kafka: a worker with the agent, one with the tool. It makes its own client of the SDK."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.bench import workload
from tests.bench.peers import turns
from tests.bench.peers.calfkit import nodes
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place
from tests.bench.peers.servers import running


@dataclass(frozen=True, slots=True)
class Gateway:
    """See `load.Asked`."""

    agent: Any

    async def ask(self, tool_ms: int) -> None:
        result = await self.agent.execute(workload.prompt(tool_ms), timeout=60)
        turns.check(result.output)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """Two workers, and this process as the client."""
    async with AsyncExitStack() as stack:
        for role in ("tools", "agents"):
            worker = [sys.executable, "-m", "tests.bench.peers.calfkit.nodes", role]
            await stack.enter_async_context(running(worker, place, lambda said: "serving" in said))
        client = nodes.client(place)
        stack.push_async_callback(client.aclose)
        yield Job(Gateway(client.agent(nodes.AGENT)))


if __name__ == "__main__":
    main(opened, ["calfkit", "faststream", "aiokafka", "anthropic"])
