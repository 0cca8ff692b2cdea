"""Whole runs leave nothing that only Python's collector would free: neither in the roles nor in the client.

Responsible for: both roles and a client over the broker in memory. Must never: look at single calls;
tests/unit/test_freed_calls.py does. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.bench import workload
from tests.bench.app import AGENT, QUEUE, InstantModel, app
from tests.bench.settings import settings_for
from tests.support.garbage import collected

from anabranch.agent.model.seam import Hopeless, Model, OnEvent, OnLeft, Transient
from anabranch.agent.reply.reply import Reply
from anabranch.agent_role import serve_agent
from anabranch.client import Client
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.roles import topic_specs
from anabranch.runtime import Shutdown
from anabranch.tool_role import serve_tools

RUNS = 6


class _Overloaded(InstantModel):
    """One that has to be asked twice."""

    _asked = 0

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        self._asked += 1
        if self._asked % 2:
            raise Transient("overloaded", 0.001)
        return await super().reply(body, on_event, on_left)


class _Refusing(InstantModel):
    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        raise Hopeless("invalid_request", "no")


@asynccontextmanager
async def _served(model: Model) -> AsyncIterator[Client]:
    settings = settings_for("memory:0", "garbage")
    broker = MemoryBroker(topic_specs(app, settings))
    agent, tool = Shutdown(), Shutdown()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_agent(app, settings, agent, broker=broker.another(), model=model))
        tasks.create_task(serve_tools(app, QUEUE, settings, tool, broker=broker.another()))
        await agent.ready.wait()
        await tool.ready.wait()
        async with Client.for_app(app, settings=settings, broker=broker.another()) as client:
            yield client
        agent.ask()
        tool.ask()


async def _runs(client: Client, cancelled: bool) -> Counter[str]:
    """What so many runs came to."""

    async def one() -> str:
        run = await client.submit(AGENT, workload.prompt(0))
        if cancelled:
            await run.cancel()
        return (await run).status

    return Counter(await asyncio.gather(*(one() for _ in range(RUNS))))


@pytest.mark.parametrize(
    ("model", "cancelled", "status"),
    [
        pytest.param(InstantModel(), False, "completed", id="completed"),
        pytest.param(_Overloaded(), False, "completed", id="completed, after some attempts"),
        pytest.param(_Refusing(), False, "failed", id="failed"),
        pytest.param(InstantModel(3600.0), True, "cancelled", id="cancelled"),
    ],
)
async def test_a_run_that_is_over_leaves_nothing_for_the_collector(model: Model, cancelled: bool, status: str) -> None:
    with collected() as garbage:
        async with _served(model) as client:
            await _runs(client, cancelled)
            with garbage.kept():
                assert await _runs(client, cancelled) == {status: RUNS}
    assert not garbage.of_ours, "it would be there until the collector comes"
