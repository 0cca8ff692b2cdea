"""A Temporal workflow whose activities are the model's call and the tools', and its two workers.

Called by: `job.py`, which runs it as a program, `python -m tests.bench.peers.temporal.work agents|tools ADDRESS`.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Final

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from tests.bench.peers import turns

AGENTS: Final = "agents"
TOOLS: Final = "tools"
TIMEOUT: Final = timedelta(seconds=60)
AT_ONCE: Final = 1000


@activity.defn
async def look_up(arguments: turns.Json) -> str:
    """A tool's call; a result that the server has is not asked for again."""
    return await turns.look_up(**arguments)


@workflow.defn
class Run:
    """The loop; after a crash it is replayed from its history."""

    @workflow.run
    async def run(self, tool_ms: int) -> str:
        messages = turns.first(tool_ms)
        while True:
            content: list[turns.Json] = await workflow.execute_activity(
                "think", messages, start_to_close_timeout=TIMEOUT, result_type=list[turns.Json]
            )
            calls = turns.calls_of(content)
            if not calls:
                return turns.text_of(content)
            results = await asyncio.gather(*(_called(call) for call in calls))
            messages = turns.with_results(messages, content, list(results))


async def _called(call: turns.Json) -> str:
    result: str = await workflow.execute_activity(
        look_up, call["input"], task_queue=TOOLS, start_to_close_timeout=TIMEOUT
    )
    return result


class Thinking:
    """The model's call, as an activity."""

    def __init__(self) -> None:
        self._model = turns.client()

    @activity.defn
    async def think(self, messages: list[turns.Json]) -> list[turns.Json]:
        """The content of the model's reply."""
        return await turns.think(self._model, messages)


async def _serve(role: str, address: str) -> None:
    client = await Client.connect(address)
    if role == AGENTS:
        worker = Worker(
            client,
            task_queue=AGENTS,
            workflows=[Run],
            activities=[Thinking().think],
            max_concurrent_activities=AT_ONCE,
            max_concurrent_workflow_tasks=AT_ONCE,
        )
    else:
        worker = Worker(client, task_queue=TOOLS, activities=[look_up], max_concurrent_activities=AT_ONCE)
    async with worker:
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
