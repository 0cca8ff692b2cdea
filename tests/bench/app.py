"""The App that is measured, and its model, which answers at once.

Responsible for: one agent, one tool, and the two replies of every run: three calls, then the answer.
Must never: cost time of its own, beyond finding out which of the replies is wanted.
Called by: `worker.py`, in the workers' processes; `anabranch_run.py`, in the client's.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

import orjson

from anabranch import App
from anabranch.agent.model.seam import OnEvent, OnLeft
from anabranch.agent.reply.reply import Reply, reply_of
from tests.bench import workload

AGENT: Final = "bench"
QUEUE: Final = "bench"
PATIENT: Final = "patient"
LATER: Final = "later"
"""An agent whose tools have a queue of their own, which a benchmark may leave unserved for a while."""
HURRIED: Final = "hurried"
SOON: Final = "soon"
"""An agent whose calls have little time, in a queue that is slow."""

app = App("bench")


@app.tool(queue=QUEUE)
async def look_up(wait_ms: int, note: str) -> str:
    """Finds something after a while."""
    if wait_ms:
        await asyncio.sleep(wait_ms / 1000)
    return workload.RESULT


@app.tool(queue=LATER)
async def look_up_later(wait_ms: int, note: str) -> str:
    """Finds the same, once somebody looks."""
    return workload.RESULT


@app.tool(queue=SOON, deadline=20, concurrency=20)
async def look_up_soon(wait_ms: int, note: str) -> str:
    """Finds the same, two hundred times a second and no more."""
    await asyncio.sleep(0.1)
    return workload.RESULT


app.agent(HURRIED, model="instant", system="You are measured.", tools=[look_up_soon], max_turns=2)
app.agent(PATIENT, model="instant", system="You are measured.", tools=[look_up_later], max_turns=2)
app.agent(AGENT, model="instant", system="You are measured.", tools=[look_up], max_turns=2)


_OTHERS: Final = (look_up_later, look_up_soon)


class InstantModel:
    """A `Model` without latency, unless it is told one: its replies are made once."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self._latency_s = latency_s

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if b'"tool_result"' in body:
            return _answer()
        named = next((tool for tool in _OTHERS if tool.__name__.encode() in body), look_up)
        return _calls(workload.tool_ms_of(body), named.__name__)


@cache
def _calls(tool_ms: int, tool: str) -> Reply:
    inputs = {"wait_ms": tool_ms, "note": workload.NOTE}
    blocks = [
        {"type": "tool_use", "id": f"toolu_{number:024}", "name": tool, "input": inputs}
        for number in range(workload.CALLS)
    ]
    return reply_of(orjson.dumps(_message("tool_use", blocks)))


@cache
def _answer() -> Reply:
    return reply_of(orjson.dumps(_message("end_turn", [{"type": "text", "text": workload.ANSWER}])))


def _message(stop_reason: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_000000000000000000000000",
        "type": "message",
        "role": "assistant",
        "model": "instant",
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 50},
        "content": blocks,
    }
