"""What is asked of the fleet: runs, bad requests, cancels; and the doubles that answer: a model and a few tools.

Responsible for: drawing a workload from a seed, and writing everything that reaches the outside world into the ledger.
Must never: know how a worker works. The model sees a request's body, a tool its arguments.
Called by: the world.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Final

from anabranch.agent.model.seam import OnEvent, OnLeft, Transient
from anabranch.agent.reply.reply import Reply, reply_of
from anabranch.app import App, Call, Retryable
from anabranch.fields import Lane
from tests.simulation.ledger import Execution, Ledger, ModelCall
from tests.simulation.processes import PROCESS

QUEUE: Final = "io"
INBOXES: Final = 2
AT_MOST_ONCE: Final = frozenset({"refund", "charge"})
SERIAL: Final = frozenset({"book", "charge"})
EARLY: Final = "look"
"""The tool whose calls may begin while the model speaks."""
AFTER: Final = {"sum_up": "look"}
TOOLS: Final = ("look", "look", "slow", "sum_up", "refund", "refund", "book", "book", "charge", "flaky")


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """What the model will ask for."""

    tool: str
    seconds: float
    fails: bool
    account: str


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run: when it is asked for, to which inbox, its batches; when it is asked for again (and by which lane), or
    cancelled.
    """

    run_id: str
    at: float
    inbox: int
    batches: tuple[tuple[PlannedCall, ...], ...]
    again: tuple[tuple[float, int, Lane], ...] = ()
    cancel_at: float | None = None
    deadline_s: float | None = None
    misplaced: bool = False
    lane: Lane = "interactive"


@dataclass(frozen=True, slots=True)
class BadRequest:
    run_id: str
    at: float
    body: bytes
    lane: Lane


@dataclass(frozen=True, slots=True)
class Workload:
    runs: tuple[PlannedRun, ...]
    bad: tuple[BadRequest, ...]


def draw(chance: Random, batches: Sequence[int]) -> Workload:
    """A workload of about half a minute, or longer if runs have more batches than one or two."""
    runs = tuple(_run(chance, number, batches) for number in range(chance.randint(2, 6)))
    bad = tuple(_bad(chance, number) for number in range(chance.choice((0, 0, 1, 2))))
    return Workload(runs, bad)


def _run(chance: Random, number: int, lengths: Sequence[int]) -> PlannedRun:
    at = chance.uniform(0, 25)
    batches = tuple(tuple(_call(chance) for _ in range(chance.randint(1, 4))) for _ in range(chance.choice(lengths)))
    again = ((at + chance.uniform(0, 30), chance.randrange(INBOXES), _lane(chance)),) if chance.random() < 0.2 else ()
    cancel_at = at + chance.uniform(0, 15) if chance.random() < 0.15 else None
    deadline_s = chance.uniform(1, 20) if chance.random() < 0.05 else None
    inbox = chance.randrange(INBOXES)
    misplaced = chance.random() < 0.1
    return PlannedRun(f"run-{number}", at, inbox, batches, again, cancel_at, deadline_s, misplaced, _lane(chance))


def _lane(chance: Random) -> Lane:
    return "bulk" if chance.random() < 1 / 3 else "interactive"


def _call(chance: Random) -> PlannedCall:
    seconds = chance.uniform(3, 12) if chance.random() < 0.2 else chance.uniform(0, 2)
    return PlannedCall(chance.choice(TOOLS), round(seconds, 3), chance.random() < 0.08, chance.choice("ab"))


def _bad(chance: Random, number: int) -> BadRequest:
    bodies = (b"{", b'{"agent":"worker"}', b'{"agent":"nobody","input":"x"}', b'{"agent":"worker","input":7}')
    return BadRequest(f"bad-{number}", chance.uniform(0, 25), chance.choice(bodies), _lane(chance))


# --- the doubles ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outside:
    """The model's and the tools' side: what each tool_use id stands for, and the ledger. `early`: the agent's calls may
    begin while its model speaks, which it then does, block by block.
    """

    workload: Workload
    ledger: Ledger
    chance: Random
    early: bool = False
    calls: dict[str, PlannedCall] = field(default_factory=dict)
    numbers: Any = field(default_factory=count)

    def process(self) -> str:
        process = PROCESS.get()
        return process.name if process is not None else "nobody"


class SimulatedModel:
    """Asks for the next batch of the run that the first message names; after the last one it answers."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._runs = {run.run_id: run for run in outside.workload.runs}

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        outside, ledger = self._outside, self._outside.ledger
        call = _seen(body, outside.process(), ledger.now())
        ledger.model_calls.append(call)
        ledger.say(f"model call {call.run_id} {call.turn} by {call.process}")
        try:
            slow = outside.chance.random() < 0.15
            takes_s = outside.chance.uniform(4, 15) if slow else outside.chance.uniform(0.05, 2)
            content = self._content(call)
            if outside.early:
                await self._speak(call, content, on_event, takes_s)
            else:
                await asyncio.sleep(takes_s)
            if outside.chance.random() < 0.05:
                call.end = "failed"
                raise Transient("overloaded")
            return self._reply(call, content)
        except asyncio.CancelledError:
            call.end = "cancelled"
            raise
        finally:
            call.ended_at = ledger.now()

    def _content(self, call: ModelCall) -> list[dict[str, Any]]:
        batches = self._runs[call.run_id].batches
        content: list[dict[str, Any]] = [{"type": "text", "text": f"turn {call.turn}"}]
        if call.turn <= len(batches):
            content += [self._tool_use(planned) for planned in batches[call.turn - 1]]
        return content

    async def _speak(
        self, call: ModelCall, content: Sequence[dict[str, Any]], on_event: OnEvent, takes_s: float
    ) -> None:
        """One block after the other. What is heard of a call is now and then not what the reply will say of it."""
        for index, block in enumerate(content):
            await asyncio.sleep(takes_s / len(content))
            begun = {**block, "input": {}} if block["type"] == "tool_use" else block
            on_event({"type": "content_block_start", "index": index, "content_block": begun})
            if block["type"] == "tool_use":
                said = self._misheard(block) if self._outside.chance.random() < 0.05 else block
                call.spoken = (*call.spoken, said["input"]["ask"])
                delta = {"type": "input_json_delta", "partial_json": json.dumps(said["input"])}
                on_event({"type": "content_block_delta", "index": index, "delta": delta})
            on_event({"type": "content_block_stop", "index": index})
        if len(content) > 1:
            on_event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}})
        await asyncio.sleep(self._outside.chance.choice((0, 0, takes_s / 4)))

    def _misheard(self, block: dict[str, Any]) -> dict[str, Any]:
        ask = f"{block['id']}-misheard"
        self._outside.calls[ask] = self._outside.calls[block["id"]]
        return {**block, "input": {**block["input"], "ask": ask}}

    def _reply(self, call: ModelCall, content: Sequence[dict[str, Any]]) -> Reply:
        call.asked = tuple(block["id"] for block in content if block["type"] == "tool_use")
        call.end = "replied"
        stop = "tool_use" if call.asked else "end_turn"
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"type": "message", "role": "assistant", "stop_reason": stop, "usage": usage, "content": content}
        return reply_of(json.dumps(message))

    def _tool_use(self, planned: PlannedCall) -> dict[str, Any]:
        ask = f"toolu_{next(self._outside.numbers)}"
        self._outside.calls[ask] = planned
        told = {"ask": ask, "seconds": planned.seconds, "fails": planned.fails, "account": planned.account}
        return {"type": "tool_use", "id": ask, "name": planned.tool, "input": told}


def _seen(body: bytes, process: str, at: float) -> ModelCall:
    messages = json.loads(body)["messages"]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    batch = tuple(block["id"] for block in said[-1] if block["type"] == "tool_use") if said else ()
    results: tuple[tuple[str, str, bool], ...] = ()
    if said:
        results = tuple(
            (block["tool_use_id"], str(block["content"]), bool(block.get("is_error")))
            for block in messages[-1]["content"]
        )
    return ModelCall(messages[0]["content"], len(said) + 1, process, at, body, batch, results)


def app_of(outside: Outside) -> App:
    """An agent with one tool of each kind. Each writes its start and its end into the ledger."""
    app = App("sim")

    def declare(name: str, **options: Any) -> None:
        async def tool(ask: str, seconds: float, fails: bool, account: str, call: Call) -> str:
            return await _executed(outside, name, ask, seconds, fails, account, call)

        tool.__name__ = name
        tool.__doc__ = f"The tool {name}."
        app.tool(queue=QUEUE, timeout=30, **options)(tool)

    declare("look", read_only=True)
    declare("slow")
    declare("sum_up", after=["look"])
    declare("refund", delivery="at_most_once")
    declare("book", serial_key="account")
    declare("charge", serial_key="account", delivery="at_most_once", deadline="10m")  # longer than keys may be held
    declare("flaky", retries=2)
    app.agent("worker", model="simulated", tools=list(app.tools), deadline="6h", early_start=outside.early)
    return app


async def _executed(
    outside: Outside, tool: str, ask: str, seconds: float, fails: bool, account: str, call: Call
) -> str:
    ledger = outside.ledger
    execution = Execution(ask, tool, account, call.attempt, outside.process(), ledger.now())
    ledger.executions.append(execution)
    ledger.say(f"execution {ask} {tool} by {execution.process}")
    try:
        await asyncio.sleep(seconds)
        execution.finished = True
        if tool == "flaky" and call.attempt == 1:
            raise Retryable("not now")
        if fails:
            raise ValueError(f"failed {ask}")
        return f"done {ask}"
    finally:
        if execution.ended_at is None:
            execution.ended_at = ledger.now()
