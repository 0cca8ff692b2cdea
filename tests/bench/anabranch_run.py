"""Anabranch as a subject of the benchmark: an agent worker, a tool worker, and its client in this process.

Responsible for: the topics and processes of a namespace, and for refusing an answer that is not the expected one.
Must never: set anything otherwise than users find it.
Called by: `__main__.py`, `peers/anabranch/job.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from anabranch.client import Client, Run
from anabranch.messages import RunResponse
from anabranch.roles import broker_of, topic_specs
from tests.bench import workload
from tests.bench.app import AGENT, app
from tests.bench.processes import Worker, fleet
from tests.bench.settings import settings_for
from tests.bench.subject import ANSWER_S, WrongAnswer

PROCESSES: Final = {"agent": "agent", "tool": "tool"}


@dataclass(frozen=True, slots=True)
class Anabranch:
    """See `subject.Subject`."""

    workers: Mapping[str, Worker]
    client: Client
    name: str = "anabranch"

    async def ask(self, tool_ms: int) -> None:
        run = await self.client.submit(AGENT, workload.prompt(tool_ms))
        async with asyncio.timeout(ANSWER_S):
            _check(await _answer(run))


@asynccontextmanager
async def anabranch(bootstrap: str, namespace: str, roles: Mapping[str, str] = PROCESSES) -> AsyncIterator[Anabranch]:
    """Make the topics of `namespace`, and serve in it while the context lasts; `roles` as in `fleet`."""
    settings = settings_for(bootstrap, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    async with fleet(roles, bootstrap, namespace) as workers, Client.for_app(app, settings=settings) as client:
        yield Anabranch(workers, client)


async def _answer(run: Run) -> RunResponse:
    return await run


def _check(response: RunResponse) -> None:
    calls = response.calls
    if response.output != workload.ANSWER or (calls.total, calls.failed) != (workload.CALLS, 0):
        raise WrongAnswer(f"a run of Anabranch ended as {response}")
