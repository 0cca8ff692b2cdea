"""What each kind of record looks like: its topic, its headers and its body. Data, in one place.

The schemas, the AsyncAPI document and the test of `docs/wire.md` are made from these tables. `codec` writes and
reads the records themselves; a test encodes one of each kind and holds it against them. It must never do I/O.
Used by `schemagen`, `asyncapi` and the tests, by nothing on the path of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from anabranch import log_events as e
from anabranch import messages as m
from anabranch import topics
from anabranch.fields import NAME_PATTERN
from anabranch.specs import AgentSpec, LimitSpec, ToolSpec, WorkerInfo

Schema = dict[str, Any]

# --- headers: their values are text --------------------------------------------------------------------------


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "minLength": 1, "description": description, **more}


def _whole(description: str) -> Schema:
    return {"type": "string", "pattern": "^[0-9]{1,18}$", "description": description}


def _one_of(kind: Any, description: str) -> Schema:
    return {"type": "string", "enum": list(get_args(kind)), "description": description}


def _json(description: str, content: Schema) -> Schema:
    return _text(description, contentMediaType="application/json", contentSchema=content)


EVERYWHERE: Final[Mapping[str, Schema]] = {
    "ce_specversion": {"type": "string", "const": "1.0", "description": "The version of CloudEvents"},
    "ce_id": _text("Of this record: another one each time that it is written"),
    "ce_source": _text("Who wrote it"),
}
"""Before `ce_type`, on every record that has headers."""

TRACE: Final[Mapping[str, Schema]] = {
    "traceparent": {
        "type": "string",
        "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "description": "W3C trace context, where there is a trace",
    }
}
"""The one header that any record may have or not."""

SIGNED: Final[Mapping[str, Schema]] = {
    "ce_signature": {
        "type": "string",
        "pattern": "^[A-Za-z0-9._-]{1,32}:[A-Za-z0-9+/]{43}=$",
        "description": "The id of an agent worker's key, and its signature; where agent workers sign",
    }
}
"""The one header that an event of the log, or an agent in the registry, may have beside."""

RUN: Final[Mapping[str, Schema]] = {
    "ce_runid": _text("The run", pattern=NAME_PATTERN),
    "ce_life": _text("The request offset that opened the run, behind the lane's name unless that is interactive"),
}

HEADERS: Final[Mapping[str, Schema]] = {
    "ce_after": _whole("The request offset at which the next request was expected"),
    "ce_afterbulk": _whole("The same of the bulk lane; it may be missing where that was never used"),
    "ce_requestoffset": {
        "type": "string",
        "pattern": r"^(bulk\.)?[0-9]{1,18}$",
        "description": "The offset of the request in agent.requests, or behind bulk. in agent.requests.bulk",
    },
    "ce_code": _one_of(e.NoteCode, "Why the request opened no run"),
    "ce_error": _text("The run's error code, where the reply's stop reason does not say why the run ends"),
    "ce_turn": _whole("The turn, from 1"),
    "ce_attempt": _text("Which model call of the turn; opaque"),
    "ce_plan": _json("What becomes of each call", {"type": "array", "items": {"$ref": "planned-call.json"}}),
    "ce_usage": _json("What the model call used", {"$ref": "usage.json"}),
    "ce_callid": _text("The call; opaque", maxLength=200),
    "ce_worker": _text("Who goes on with the work"),
    "ce_for": {
        "type": "string",
        "pattern": r"^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$",
        "description": "For how many seconds, from when the event is read",
    },
    "ce_handoff": _whole("The offset of the hand-off whose time is up"),
    "ce_token": _text("Of the process that may publish the call"),
    "ce_done": _whole("Below it every publication is settled"),
    "ce_asof": _whole("The log offset as of which the run is said again"),
    "ce_nextrequest": _whole("The request to be taken up next, as of there"),
    "ce_nextbulk": _whole("The same of the bulk lane; it may be missing where that was never used"),
    "ce_before": _whole("Where the cancel stands in agent.requests: it is of the run's requests below"),
    "ce_beforebulk": _whole("The same in agent.requests.bulk"),
    "ce_part": _whole("Which part this is, from 1"),
    "ce_parts": _whole("How many parts there are"),
    "ce_outcome": {},  # depends on the kind of event
}
"""The further headers of events, by name."""

# --- bodies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Some:
    """A body that is some fields of an event; the others are headers."""

    event: type
    names: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Anything:
    """A body that is not ours: a JSON object."""

    description: str


BODIES: Final[Mapping[str, type | Some | Anything]] = {
    "run-request": m.RunRequest,
    "run-response": m.RunResponse,
    "tool-call": m.ToolCall,
    "tool-result": e.ToolResult,
    "stream-delta": m.StreamDelta,
    "opening": e.Opening,
    "planned-call": e.PlannedCall,
    "usage": e.AttemptUsage,
    "run-error": m.RunError,
    "model-failure": e.ModelFailure,
    "tool-spec": ToolSpec,
    "limit-spec": LimitSpec,
    "agent-spec": AgentSpec,
    "worker-info": WorkerInfo,
    "request-note": Some(e.RequestNoted, ("error", "reply_to"), "Of request.noted: what a rejected request is told"),
    "reason": Some(e.RunCancelled, ("reason",), "Why something ended, for people"),
    "handed-off-calls": Some(e.CallsHandedOff, ("calls",), "Of calls.handed_off: the ids of the calls"),
    "nothing": Some(e.CallLost, (), "An empty object: the headers say it all"),
    "snapshot-part": Anything("A part of an open run, in a form of our own"),
    "model-message": Anything("The provider's message, verbatim"),
}
"""Every body that has a schema, by its file's name in `schemas/`."""

# --- kinds of records -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record. `name` is its `ce_type`; `headers` are those beside `EVERYWHERE`, in order."""

    name: str
    topic: str
    body: str
    says: str
    headers: Mapping[str, Schema] = field(default_factory=dict)
    event: type | None = None
    may_lack: frozenset[str] = frozenset()
    """Headers that this kind need not have."""
    also_in: tuple[str, ...] = ()
    """Further topics that have records of this kind."""

    def header_schema(self) -> Schema:
        """The schema of the record's headers, by name, each value as text."""
        own = {"type": "string", "const": self.name, "description": "The kind of record"}
        always = {**EVERYWHERE, "ce_type": own, **self.headers}
        required = [name for name in always if name not in self.may_lack]
        further = {**TRACE, **(SIGNED if self.topic == topics.LOG or self.name == "registry.agent" else {})}
        return {"type": "object", "properties": {**always, **further}, "required": required}


def _event(
    event: type, kind: str, body: str, says: str, further: str = "", outcome: Any = None, of_a_run: bool = True
) -> Kind:
    headers = {name: HEADERS[name] for name in further.split()}
    if outcome is not None:
        headers["ce_outcome"] = _one_of(outcome, "How it went")
    return Kind(
        kind, topics.LOG, body, says, {**(RUN if of_a_run else {}), **headers}, event, _MAY_LACK.get(event, frozenset())
    )


_MAY_LACK: Final[Mapping[type, frozenset[str]]] = {
    e.RunCancelled: frozenset({"ce_life", "ce_before", "ce_beforebulk"}),  # a client knows no life
    e.RunRequested: frozenset({"ce_afterbulk"}),  # written before there were lanes
    e.RequestNoted: frozenset({"ce_afterbulk"}),
    e.ModelReplied: frozenset({"ce_error"}),
    e.RunSnapshot: frozenset({"ce_nextbulk"}),
    e.RunExpired: frozenset({"ce_attempt", "ce_usage"}),  # while the model speaks
    e.ToolReturned: frozenset({"ce_outcome"}),  # `ok` if it is left out
}


_CALL: Final = "ce_callid"
_CANCEL: Final = "ce_before ce_beforebulk"
_LINK: Final = "ce_after ce_afterbulk ce_requestoffset"
_ASKED: Final = "ce_turn ce_attempt"

EVENTS: Final[tuple[Kind, ...]] = (
    _event(e.RunRequested, "run.requested", "opening", "A run was admitted", _LINK),
    _event(e.RequestNoted, "request.noted", "request-note", "A request opened no run", f"{_LINK} ce_code"),
    _event(
        e.ModelReplied,
        "model.replied",
        "model-message",
        "The model's reply, with the plan of its calls",
        f"{_ASKED} ce_outcome ce_plan ce_usage ce_error",
        e.ReplyOutcome,
    ),
    _event(e.ModelFailed, "model.failed", "model-failure", "No reply is to be had", _ASKED),
    _event(e.ModelDiscarded, "model.discarded", "reason", "A reply was paid for and not used", f"{_ASKED} ce_usage"),
    _event(e.ToolReturned, "tool.returned", "tool-result", "A call's result", f"{_CALL} ce_outcome", e.ResultOutcome),
    _event(
        e.ModelHandedOff,
        "model.handed_off",
        "nothing",
        "A worker that leaves goes on with its model call",
        "ce_turn ce_worker ce_for",
    ),
    _event(
        e.CallsHandedOff,
        "calls.handed_off",
        "handed-off-calls",
        "A tool worker that leaves goes on with these calls",
        "ce_worker ce_for",
        of_a_run=False,
    ),
    _event(e.CallLost, "call.lost", "nothing", "A call that was handed off gave no result", f"{_CALL} ce_handoff"),
    _event(e.CallExpired, "call.expired", "reason", "A call's deadline is past", _CALL),
    _event(e.CallDispatched, "call.dispatched", "nothing", "Who may publish an at-most-once call", f"{_CALL} ce_token"),
    _event(
        e.PartitionReleased,
        "partition.released",
        "nothing",
        "An owner leaves; its publications below are settled",
        "ce_done",
        of_a_run=False,
    ),
    _event(e.RunCancelled, "run.cancelled", "reason", "The run is to end; a client names no life", _CANCEL),
    _event(e.RunExpired, "run.expired", "reason", "The run's deadline is past", "ce_attempt ce_usage"),
    _event(
        e.RunSnapshot,
        "run.snapshot",
        "snapshot-part",
        "An open run said again, so that its older events are not needed",
        "ce_asof ce_nextrequest ce_nextbulk ce_part ce_parts",
    ),
)
"""The events of the run log."""

OTHERS: Final[tuple[Kind, ...]] = (
    Kind(
        "run.request",
        topics.REQUESTS,
        "run-request",
        "A request; all its headers may be left out",
        may_lack=frozenset({*EVERYWHERE, "ce_type"}),
        also_in=(topics.BULK_REQUESTS,),
    ),
    Kind("tool.call", topics.CALLS, "tool-call", "A call to be executed", {**RUN, _CALL: HEADERS[_CALL]}),
    Kind("run.response", topics.RESPONSES, "run-response", "The answer of a run"),
    Kind("stream.delta", topics.STREAM, "stream-delta", "What the model says, as it speaks"),
    Kind("registry.tool", topics.REGISTRY, "tool-spec", "A tool; the key is tool/<name>"),
    Kind("registry.limit", topics.REGISTRY, "limit-spec", "A limit that tools share; the key is limit/<name>"),
    Kind("registry.agent", topics.REGISTRY, "agent-spec", "An agent; the key is agent/<name>@<revision>"),
    Kind("registry.worker", topics.REGISTRY, "worker-info", "A worker; the key is worker/<id>, no body: it has gone"),
)
"""The records of the other topics. A dead letter has the headers and the body of what it was."""

KINDS: Final[tuple[Kind, ...]] = (*EVENTS, *OTHERS)


def kinds_of(topic: str) -> Iterable[Kind]:
    """The kinds of records in a topic, named without its namespace."""
    return (kind for kind in KINDS if topic in (kind.topic, *kind.also_in))
