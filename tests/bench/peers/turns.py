"""One agent's two turns, for the peers that leave the loop to their user: what is sent, and what comes of it.

Responsible for: the conversation, as plain JSON that any of them can store, and the one call of the model.
Must never: know how a peer carries it. Import more than the standard library and the model's SDK.
Called by: the `job.py` of the peers without an agent loop of their own.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from anthropic import DEFAULT_CONNECTION_LIMITS, AsyncAnthropic, DefaultAioHttpClient

from tests.bench import workload

MODEL: Final = "instant"
SYSTEM: Final = "You are measured."
TOOL: Final = {
    "name": "look_up",
    "description": "Finds something after a while.",
    "input_schema": {
        "type": "object",
        "properties": {"wait_ms": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["wait_ms", "note"],
    },
}

Json = dict[str, Any]


class WrongAnswer(Exception):
    """A run did not end as it should: what was measured is not worth anything."""


def client() -> AsyncAnthropic:
    """The SDK over aiohttp, as Anabranch has it."""
    return AsyncAnthropic(max_retries=0, http_client=DefaultAioHttpClient(limits=DEFAULT_CONNECTION_LIMITS))


def first(tool_ms: int) -> list[Json]:
    """The conversation so far when a run begins."""
    return [{"role": "user", "content": workload.prompt(tool_ms)}]


def request(messages: list[Json]) -> Json:
    """The arguments of a call of the model."""
    return {"model": MODEL, "max_tokens": 4096, "system": SYSTEM, "tools": [TOOL], "messages": messages}


async def think(model: AsyncAnthropic, messages: list[Json]) -> list[Json]:
    """The content of the model's reply."""
    reply = await model.messages.create(**request(messages))
    return [block.to_dict() for block in reply.content]


def calls_of(content: list[Json]) -> list[Json]:
    """The blocks that ask for a tool; none in an answer."""
    return [block for block in content if block["type"] == "tool_use"]


def with_results(messages: list[Json], content: list[Json], results: list[str]) -> list[Json]:
    """The conversation after a turn of calls and their results."""
    blocks = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": result}
        for call, result in zip(calls_of(content), results, strict=True)
    ]
    return [*messages, {"role": "assistant", "content": content}, {"role": "user", "content": blocks}]


def text_of(content: list[Json]) -> str:
    """What the model answers."""
    return "".join(block["text"] for block in content if block["type"] == "text")


def check(answer: object) -> None:
    """Raises WrongAnswer unless it is the expected one."""
    if answer != workload.ANSWER:
        raise WrongAnswer(f"a run ended with {answer!r}")


async def look_up(wait_ms: int, note: str) -> str:
    """Finds something after a while."""
    if wait_ms:
        await asyncio.sleep(wait_ms / 1000)
    return workload.RESULT
