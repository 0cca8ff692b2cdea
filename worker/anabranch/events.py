"""What `run.events()` yields: what the log says of a run, and what its model says while it speaks.

Frozen values. Those of the log are `RunEvent`s: `Turn`, `CallResult` and `Answer` are what most look for, and the rest
say by their `type` what happened. All others are pieces of a turn that is being spoken, for a run that asked for them
(`stream=True`). A piece is early news; the log is what counts, and `spoken.py` brings the two together:

- when its `Turn` or `Answer` comes, the pieces of a turn that were not discarded are exactly what its reply says;
- `Discarded` says that the pieces of that turn so far do not count: the model call broke off, and is made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.results import result_of, shown_content, unreadable
from anabranch.agent.state import Result, Run
from anabranch.fields import Content


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened to a run. `at` is the broker's time in epoch seconds; `run` is what it led to."""

    type: str
    at: float
    offset: int
    event: e.Event
    run: Run | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that a reply asks for. `input` is None if it lies in the store; `rejected` says why it is not run."""

    call_id: str
    tool_use_id: str
    tool: str
    input: dict[str, Any] | None
    rejected: str | None


@dataclass(frozen=True, slots=True)
class Turn(RunEvent):
    """The model's reply of a turn counts, and the run goes on."""

    number: int
    usage: m.Usage
    body: bytes
    plan: tuple[e.PlannedCall, ...]
    opened: list[dict[str, Any]] | None = None

    @property
    def content(self) -> list[dict[str, Any]]:
        """The reply's blocks; empty if they lie in the store, or are sealed for others."""
        return self.opened or blocks_of(self.body) or []

    @property
    def text(self) -> str:
        return "".join(str(block.get("text") or "") for block in self.content if block.get("type") == "text")

    @property
    def calls(self) -> tuple[Asked, ...]:
        inputs = {block.get("id"): block.get("input") for block in self.content if block.get("type") == "tool_use"}
        return tuple(
            Asked(call.call_id, call.tool_use_id, call.tool, inputs.get(call.tool_use_id), call.rejected)
            for call in self.plan
        )


@dataclass(frozen=True, slots=True)
class CallResult(RunEvent):
    """A call has its result."""

    turn: int
    call_id: str
    tool_use_id: str
    tool: str
    outcome: e.ResultOutcome
    result: Result

    @property
    def content(self) -> Content:
        """What the model will be told: text, or content blocks."""
        if (body := self.result.body) is None:
            return self.result.text or ""
        told = result_of(body)
        return shown_content(told) if told is not None else unreadable(body)


@dataclass(frozen=True, slots=True)
class Answer(RunEvent):
    """The run has ended, or was never opened. If `response.content_ref` is set, `await run` has what it said; so it has
    if something is sealed, and the keys are at hand.
    """

    response: m.RunResponse


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of text of block `block` of the reply."""

    turn: int
    block: int
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Thinking:
    """The next piece of thinking, for a run that asked for that (`stream_thinking=True`)."""

    turn: int
    block: int
    text: str
    type: Literal["thinking"] = "thinking"


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The model begins to ask for a call; its arguments are still to come."""

    turn: int
    block: int
    tool: str
    tool_use_id: str
    type: Literal["call.started"] = "call.started"


@dataclass(frozen=True, slots=True)
class CallAsked:
    """The arguments of a call are all there; `input` is None where they are no JSON, very long, or in the store."""

    turn: int
    block: int
    tool: str
    tool_use_id: str
    input: Any
    type: Literal["call.asked"] = "call.asked"


@dataclass(frozen=True, slots=True)
class Discarded:
    """The pieces of this turn so far do not count."""

    turn: int
    type: Literal["discarded"] = "discarded"


Spoken = Text | Thinking | CallStarted | CallAsked | Discarded
"""What is said of a turn while the model speaks."""
Event = RunEvent | Spoken


def blocks_of(body: bytes) -> list[dict[str, Any]] | None:
    """The blocks of a reply; None if they are not in its body, or cannot be read."""
    try:
        content = json.loads(body)["content"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else None
