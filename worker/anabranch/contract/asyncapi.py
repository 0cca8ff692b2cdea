"""The AsyncAPI 3.0 document of the wire: topics as channels, kinds of records as messages, who sends and receives.

Made from `records.py` and from the settings in `topics`; payloads refer to the schemas that lie beside it. It must
never state what those tables do not. `schemagen.py` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from anabranch import topics
from anabranch.codec import encode
from anabranch.contract.examples import EVENTS as EXAMPLES
from anabranch.contract.records import EVENTS, KINDS, Kind, Schema, kinds_of

VERSION: Final = "1.0.0"
"""Of the contract, not of the package."""
BINDING: Final = "0.5.0"
QUEUE: Final = "queue"
PLACEHOLDER: Final = "x"

CHANNELS: Final = {
    "requests": (topics.REQUESTS, "Clients ask for runs here; the key is the run id."),
    "bulkRequests": (topics.BULK_REQUESTS, "The same, of the bulk lane: it gives way to the other where both wait."),
    "log": (topics.LOG, "The events of all runs, the only truth about them; the key is the run id."),
    "calls": (topics.CALLS, "Tool calls of one queue; the key decides the partition and means nothing else."),
    "responses": (topics.RESPONSES, "Answers, each at least once; the key is the run id."),
    "stream": (topics.STREAM, "What the model says, for runs that asked for it; the key is the run id."),
    "registry": (topics.REGISTRY, "Compacted: agents, tools and the workers that are alive."),
    "deadLetters": (topics.DEAD_LETTERS, "What could not be read, with the reason and where it was found."),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one role does with a channel. `kinds` are the messages, all of the channel's if it names none."""

    name: str
    action: str
    channel: str
    role: str
    summary: str
    kinds: tuple[str, ...] = ()
    group: str | None = None


CLIENT, AGENT, TOOL = "client", "agent worker", "tool worker"

OPERATIONS: Final = (
    Operation("clientRequests", "send", "requests", CLIENT, "Ask for a run, or cancel one"),
    Operation("clientRequestsInBulk", "send", "bulkRequests", CLIENT, "Ask for a run in the bulk lane, or cancel one"),
    Operation("clientCancels", "send", "log", CLIENT, "Cancel an open run at once", ("run.cancelled",)),
    Operation("clientReceivesAnswers", "receive", "responses", CLIENT, "Read one partition, the inbox"),
    Operation("clientListens", "receive", "stream", CLIENT, "Read what the model says"),
    Operation("clientWatches", "receive", "log", CLIENT, "Follow a run, step by step"),
    Operation("agentTakesRequests", "receive", "requests", AGENT, "Admit requests", group=r"\.agents$"),
    Operation("agentTakesBulkRequests", "receive", "bulkRequests", AGENT, "Admit requests", group=r"\.agents$"),
    Operation("agentMovesBulkRequests", "send", "bulkRequests", AGENT, "Put a request on its own partition"),
    Operation("agentMovesRequests", "send", "requests", AGENT, "Put a request on its own partition"),
    Operation("agentReadsLog", "receive", "log", AGENT, "Fold the events of the runs", group=r"\.agents$"),
    Operation("agentAppends", "send", "log", AGENT, "Append what happened"),
    Operation("agentCalls", "send", "calls", AGENT, "Publish the calls of a turn"),
    Operation("agentAnswers", "send", "responses", AGENT, "Answer a run that has ended"),
    Operation("agentStreams", "send", "stream", AGENT, "Tell what the model says"),
    Operation("agentRegisters", "send", "registry", AGENT, "Announce agents, tools and itself"),
    Operation("agentLooksUp", "receive", "registry", AGENT, "Find agents and tools"),
    Operation("agentBuries", "send", "deadLetters", AGENT, "Keep a request that cannot be read"),
    Operation("toolTakesCalls", "receive", "calls", TOOL, "Execute calls", group=r"\.tools\.[^.]+$"),
    Operation("toolReturns", "send", "log", TOOL, "Append a result to where its call asks for it", ("tool.returned",)),
    Operation("toolHandsOff", "send", "log", TOOL, "Say which calls go on elsewhere", ("calls.handed_off",)),
    Operation("toolRegisters", "send", "registry", TOOL, "Announce tools and itself"),
    Operation("toolBuries", "send", "deadLetters", TOOL, "Keep a call that cannot be read"),
)


def document() -> Schema:
    """The whole document, in a stable order."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Anabranch",
            "version": VERSION,
            "description": "LLM agents on Kafka: the topics, headers and bodies. docs/wire.md says it in prose.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name) for name in CHANNELS},
        "operations": {operation.name: _operation(operation) for operation in OPERATIONS},
        "components": {"messages": {**{kind.name: _message(kind) for kind in KINDS}, "dead.letter": _dead_letter()}},
    }


# --- channels ---------------------------------------------------------------------------------------------------


def _channel(name: str) -> Schema:
    base, description = CHANNELS[name]
    per_queue = base == topics.CALLS
    address = f"{{namespace}}.{base}" + (f"{{{QUEUE}}}" if per_queue else "")
    parameters = {"namespace": {"description": "The App's name in lower case, or what is configured"}}
    if per_queue:
        parameters[QUEUE] = {"description": "The queue that the tool was declared with"}
    return {
        "address": address,
        "description": description,
        "parameters": parameters,
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in _messages_of(base)},
        "bindings": {"kafka": _topic(base)},
    }


def _messages_of(base: str) -> Iterable[str]:
    return ["dead.letter"] if base == topics.DEAD_LETTERS else [kind.name for kind in kinds_of(base)]


def _topic(base: str) -> Schema:
    """What `topics` wants of it, in the words of the Kafka binding."""
    specs = {spec.name: spec for spec in topics.Namespace(PLACEHOLDER).specs([QUEUE])}
    spec = specs[f"{PLACEHOLDER}.{base}{QUEUE if base == topics.CALLS else ''}"]
    settings = {
        key: int(value) if value.removeprefix("-").isdecimal() else value
        for key, value in sorted(spec.settings.items())
    }
    settings["cleanup.policy"] = [settings["cleanup.policy"]]  # type: ignore[assignment]
    return {"partitions": spec.partitions, "topicConfiguration": settings, "bindingVersion": BINDING}


# --- messages ---------------------------------------------------------------------------------------------------


def _message(kind: Kind) -> Schema:
    examples = _examples(kind)
    return {
        "name": kind.name,
        "title": kind.name,
        "summary": kind.says,
        "contentType": "application/json",
        "headers": _beside(kind.header_schema()),
        "payload": {"$ref": f"./{kind.body}.json"},
        "bindings": {"kafka": _key(kind)},
        **({"examples": examples} if examples else {}),
    }


def _beside(schema: Any) -> Any:
    """`schema` with references to the files beside this one."""
    if isinstance(schema, dict):
        return {k: f"./{v}" if k == "$ref" else _beside(v) for k, v in schema.items()}
    return [_beside(item) for item in schema] if isinstance(schema, list) else schema


def _key(kind: Kind) -> Schema:
    keyless = kind in EVENTS and "ce_runid" not in kind.headers
    description = "None: the partition is given" if keyless else "UTF-8 text"
    key = {"type": "null" if keyless else "string", "description": description}
    return {"key": key, "bindingVersion": BINDING}


def _examples(kind: Kind) -> list[Schema]:
    records = [encode(event, kind.topic, 0, "anabranch") for event in EXAMPLES if type(event) is kind.event]
    found = []
    for number, record in enumerate(records, 1):
        headers = {name: value.decode() for name, value in record.headers} | {"ce_id": f"{kind.name}-{number}"}
        found.append({"headers": headers, "payload": orjson.loads(record.value or b"{}")})
    return found


def _dead_letter() -> Schema:
    added = {
        "ce_reason": {"type": "string", "description": "Why it is here"},
        "ce_origin": {"type": "string", "description": "<topic>/<partition>/<offset> of the original"},
    }
    return {
        "name": "dead.letter",
        "title": "dead.letter",
        "summary": "What could not be read: its key, its headers, the first 64 kB of its value, and two headers",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "properties": added, "required": list(added)},
        "bindings": {"kafka": {"bindingVersion": BINDING}},
    }


# --- operations -------------------------------------------------------------------------------------------------


def _operation(operation: Operation) -> Schema:
    channel = f"#/channels/{operation.channel}"
    kinds = operation.kinds or tuple(_messages_of(CHANNELS[operation.channel][0]))
    group = {"groupId": {"type": "string", "pattern": operation.group}} if operation.group else {}
    return {
        "action": operation.action,
        "channel": {"$ref": channel},
        "title": f"{operation.role}: {operation.summary[0].lower()}{operation.summary[1:]}",
        "tags": [{"name": operation.role}],
        "messages": [{"$ref": f"{channel}/messages/{kind}"} for kind in kinds],
        **({"bindings": {"kafka": {**group, "bindingVersion": BINDING}}} if group else {}),
    }
