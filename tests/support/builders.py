"""Builds one of each message, with defaults that are valid: a test names only what it is about.

Responsible for: events of the run log, requests, specs, records. Runs are `r`, lives are the request offset `0`.
Must never: assert anything, or hide a rule of the protocol in a default.
Called by: any test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import fold
from anabranch.agent.state import Partition, Run
from anabranch.codec import Outgoing, encode
from anabranch.fields import Lane, life_of
from anabranch.specs import AgentSpec, ToolSpec
from anabranch.topics import REQUESTS

RUN, LIFE, DEADLINE = "r", "0", 1000.0
LOG = "t.agent.log"


# --- requests and specs -----------------------------------------------------------------------------------


def request(**fields: Any) -> m.RunRequest:
    return m.RunRequest(**{"run_id": RUN, "agent": "a", "input": "hello", **fields})


def opening(**fields: Any) -> e.Opening:
    given = {"request": request(), "revision": "rev", "deadline": DEADLINE, "limits": e.RunLimits(20)}
    return e.Opening(**{**given, "requested_at": 0.0, **fields})


def agent(**fields: Any) -> AgentSpec:
    return AgentSpec(**{"name": "a", "revision": "rev", "model": "m", "tools": ["t"], **fields})


def tool(name: str = "t", **fields: Any) -> ToolSpec:
    return ToolSpec(**{"name": name, "queue": "q", "description": "d", "input_schema": {"type": "object"}, **fields})


# --- events -----------------------------------------------------------------------------------------------


def requested(
    run_id: str = RUN, *, after: int = 0, offset: int = 0, opens: e.Opening | None = None, size: int = 0,
    lane: Lane = "interactive", after_bulk: int | None = None, trace: str | None = None,
) -> e.RunRequested:  # fmt: skip
    life = life_of(lane, offset)
    return e.RunRequested(run_id, life, after, offset, opens or opening(), size, lane, after_bulk, trace)


def noted(
    code: e.NoteCode = "rejected", run_id: str = RUN, *, after: int = 0, offset: int = 0,
    lane: Lane = "interactive", **fields: Any,
) -> Any:  # fmt: skip
    return e.RequestNoted(run_id, life_of(lane, offset), after, offset, code, lane=lane, **fields)


def call_id(index: int = 0, turn: int = 1, run_id: str = RUN, attempt: str = "att") -> str:
    return f"{run_id}/{turn}.{attempt}/{index}"


def planned(index: int = 0, turn: int = 1, *, run_id: str = RUN, **fields: Any) -> e.PlannedCall:
    given = {"tool": "t", "queue": "q", "tool_use_id": f"tu{turn}{index}"}
    return e.PlannedCall(call_id(index, turn, run_id), **{**given, **fields})


def message(content: Sequence[Any] = (), stop: str | None = "end_turn", **fields: Any) -> bytes:
    """A reply's body, as `reply.py` writes it."""
    head = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "stop_reason": stop}
    return orjson.dumps({**head, **fields, "usage": {}, "content": list(content)})


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def tool_use(tool_use_id: str = "tu10", name: str = "t", arguments: Any = None) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_use_id, "name": name, "input": arguments or {}}


def replied(
    outcome: e.ReplyOutcome = "final", turn: int = 1, *, plan: Iterable[e.PlannedCall] = (), body: bytes | None = None,
    run_id: str = RUN, life: str = LIFE, attempt: str = "att", usage: m.Usage | None = None,
) -> e.ModelReplied:  # fmt: skip
    entries = tuple(plan)
    stop = {"calls": "tool_use", "final": "end_turn", "pause": "pause_turn", "stopped": "max_tokens"}[outcome]
    uses = [tool_use(entry.tool_use_id, entry.tool) for entry in entries]
    whole = message(uses or [text("done")], stop) if body is None else body
    return e.ModelReplied(run_id, life, turn, attempt, outcome, entries, usage or m.Usage(), whole)


def calls(*plan: e.PlannedCall, turn: int = 1, **fields: Any) -> e.ModelReplied:
    """A reply that asks for calls: one, if none is named."""
    return replied("calls", turn, plan=plan or (planned(0, turn),), **fields)


def failed(turn: int = 1, code: str = "model_unavailable", *, life: str = LIFE, run_id: str = RUN) -> e.ModelFailed:
    return e.ModelFailed(run_id, life, turn, "att", m.RunError(code, "why"))


def discarded(turn: int = 1, attempt: str = "bad", usage: m.Usage | None = None, *, life: str = LIFE) -> Any:
    return e.ModelDiscarded(RUN, life, turn, attempt, usage or m.Usage(input_tokens=5, cost_usd=0.5), "broken")


def result(content: Any = "fine", **fields: Any) -> bytes:
    return orjson.dumps({"content": content, **fields})


def returned(
    index: int = 0, outcome: e.ResultOutcome = "ok", *, turn: int = 1, body: bytes | None = None,
    run_id: str = RUN, life: str = LIFE,
) -> e.ToolReturned:  # fmt: skip
    return e.ToolReturned(run_id, life, call_id(index, turn, run_id), outcome, result() if body is None else body)


def call_expired(index: int = 0, *, turn: int = 1, life: str = LIFE) -> e.CallExpired:
    return e.CallExpired(RUN, life, call_id(index, turn), "too late")


def run_expired(*, life: str = LIFE) -> e.RunExpired:
    return e.RunExpired(RUN, life, "")


def cancelled(*before: int | None, life: str | None = None, run_id: str = RUN) -> e.RunCancelled:
    """`before` are its places among the requests of both lanes."""
    return e.RunCancelled(run_id, life, "enough", *before)


def model_handed_off(turn: int = 1, worker: str = "w1", *, life: str = LIFE) -> e.ModelHandedOff:
    return e.ModelHandedOff(RUN, life, turn, worker, 30.0)


def calls_handed_off(*ids: str, worker: str = "w1") -> e.CallsHandedOff:
    return e.CallsHandedOff(worker, 30.0, ids or (call_id(),))


def lost(handoff: int, index: int = 0, *, life: str = LIFE) -> e.CallLost:
    return e.CallLost(RUN, life, call_id(index), handoff)


def dispatched(token: str = "tok", index: int = 0, *, life: str = LIFE) -> e.CallDispatched:
    return e.CallDispatched(RUN, life, call_id(index), token)


def unknown(*, life: str | None = LIFE, run_id: str | None = RUN) -> e.UnknownEvent:
    return e.UnknownEvent("run.levitated", run_id, life, "event type 'run.levitated' is not known")


# --- records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A record as it was read; the timestamp is milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def as_read(sent: Outgoing, offset: int, at: float = 0.0, partition: int = 0) -> Read:
    where = partition if sent.partition is None else sent.partition
    return Read(sent.topic, where, offset, int(at * 1000), sent.key, sent.value, sent.headers)


def record(event: e.Event, offset: int, at: float = 0.0, partition: int = 0) -> Read:
    """An event as it lies in the log."""
    return as_read(encode(event, LOG, partition, "w"), offset, at)


def raw_request(
    body: bytes | dict[str, Any], offset: int, *, key: bytes | None = None, partition: int = 0, topic: str = REQUESTS
) -> Read:
    value = body if isinstance(body, bytes) else orjson.dumps(body)
    return Read(f"t.{topic}", partition, offset, 0, key, value)


# --- folding ----------------------------------------------------------------------------------------------


def folded(*events: e.Event, at: float = 1.0, state: Partition | None = None) -> Partition:
    """Fold `events` at the next offsets, all at one time."""
    state = state or Partition(next_request=0)
    for event in events:
        fold.apply(state, event, state.position, at)
    return state


def run_of(state: Partition, run_id: str = RUN) -> Run:
    return state.runs[run_id]


def run_after(*events: e.Event, opens: e.Opening | None = None, at: float = 1.0) -> Run:
    """The run `r` after these events."""
    return run_of(folded(requested(opens=opens), *events, at=at))
