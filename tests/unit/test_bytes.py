"""Bytes stay linear in the transcript: each piece of it is written to the log once, and to few topics besides."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from anabranch import App
from anabranch.agent.model.seam import OnEvent, OnLeft
from anabranch.agent.reply.reply import Reply, reply_of
from anabranch.agent_role import serve_agent
from anabranch.client import Client
from anabranch.codec import Record
from anabranch.config import KafkaSettings, Settings, WorkerSettings
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.seam import Place
from anabranch.roles import namespace_of, topic_specs
from anabranch.runtime import Shutdown
from anabranch.tool_role import serve_tools

TEXT = "x" * 2000
FRAMING = 70
"""What Kafka adds to a record that has a batch for itself."""
SETTINGS = Settings(kafka=KafkaSettings(partitions=1), worker=WorkerSettings(namespace="bytes"))

app = App("bytes")


@app.tool(queue="q")
async def look(n: int) -> str:
    """Looks."""
    return TEXT


app.agent("a", model="m", tools=["look"], max_turns=1000)


class Model:
    """Says a text and calls a tool in each turn, and a text alone in the last."""

    def __init__(self, turns: int) -> None:
        self.turns, self.said, self.transcript = turns, 0, len(TEXT)

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        self.said += 1
        blocks: list[dict[str, Any]] = [{"type": "text", "text": TEXT}]
        stop = "end_turn"
        if self.said < self.turns:
            blocks.append(
                {"type": "tool_use", "id": f"toolu_{self.said:020}", "name": "look", "input": {"n": self.said}}
            )
            stop = "tool_use"
            self.transcript += len(TEXT)  # the result
        message = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "stop_reason": stop}
        reply = reply_of(orjson.dumps({**message, "usage": {"input_tokens": 1, "output_tokens": 1}, "content": blocks}))
        self.transcript += len(reply.body)
        return reply


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes: of the transcript, of the log, of all topics but the registry."""

    transcript: int
    log: int
    events: int
    all: int


def size_of(record: Record) -> int:
    heads = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + heads + FRAMING


async def written(turns: int) -> Written:
    broker, model, agent, tools = MemoryBroker(topic_specs(app, SETTINGS)), Model(turns), Shutdown(), Shutdown()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_agent(app, SETTINGS, agent, broker=broker.another(), model=model))
        tasks.create_task(serve_tools(app, "q", SETTINGS, tools, broker=broker.another()))
        async with Client.for_app(app, settings=SETTINGS, broker=broker.another()) as client:
            response = await (await client.submit("a", TEXT))
        assert response.turns == turns
        agent.ask()
        tools.ask()
    names = namespace_of(app, SETTINGS)
    sizes = {
        spec.name: [
            len(record.key or b"")
            + len(record.value or b"")
            + sum(len(k) + len(v) for k, v in record.headers)
            + FRAMING
            for number in range(spec.partitions)
            for record in broker.records(Place(spec.name, number))
        ]
        for spec in topic_specs(app, SETTINGS)
    }
    everything = sum(sum(found) for name, found in sizes.items() if name != names.registry)
    return Written(model.transcript, sum(sizes[names.log]), len(sizes[names.log]), everything)


@pytest.mark.parametrize("turns", [10, 100])
async def test_the_log_holds_the_transcript_once(turns: int) -> None:
    found = await written(turns)
    assert found.log <= 1.2 * found.transcript + 1000 * found.events
    assert found.all <= 2.5 * found.transcript


async def test_bytes_are_linear_in_the_number_of_turns() -> None:
    ten, hundred = await written(10), await written(100)
    assert hundred.all / hundred.transcript <= 1.05 * ten.all / ten.transcript
