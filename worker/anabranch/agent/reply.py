"""One reply of the model, from the provider's stream of events to the message that goes into the log. PURE.

Text, signatures and inputs are kept exactly as they came: a tool's input is the very JSON text that was
streamed. Nothing is repaired. What breaks off, or contradicts itself, is a `BrokenReply`: it is discarded
whole, and no call of it is ever run. `anthropic_model.py` feeds it; `plan.py` reads what comes out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import orjson

from anabranch.bodies import MAX_DEPTH, depth_of
from anabranch.messages import Json, ReplyOutcome

FINAL = frozenset({"end_turn", "stop_sequence"})


class BrokenReply(Exception):
    """A reply that cannot be used; `usage` is what it has cost so far, in the provider's fields."""

    def __init__(self, reason: str, usage: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.usage = reason, usage or {}


class ProviderError(Exception):
    """An `error` event in the middle of a stream."""

    def __init__(self, kind: str, message: str, usage: dict[str, Any]) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.usage = kind, message, usage


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """A call as the model asked for it. `refused` says why its input cannot be one."""

    tool_use_id: str
    tool: str
    input: dict[str, Json]
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. `body` is the message in JSON, its content last."""

    outcome: ReplyOutcome
    stop_reason: str | None
    body: bytes
    calls: tuple[RequestedCall, ...]
    usage: dict[str, Any]


@dataclass(slots=True)
class _Block:
    start: dict[str, Any]
    texts: dict[str, list[str]] = field(default_factory=dict)
    citations: list[Any] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    stopped: bool = False


_TEXT_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
}


class ReplyBuilder:
    """Collects the events of one stream. `feed` returns the event, for whoever wants to watch."""

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: list[_Block] = []
        self.usage: dict[str, Any] = {}
        self._stop_seen = False
        self.stopped = False

    def feed(self, data: str | bytes) -> dict[str, Any]:
        """Take one event. Raises `BrokenReply` or `ProviderError`."""
        try:
            event = orjson.loads(data)
            self._take(event, data)
        except orjson.JSONDecodeError as error:
            raise BrokenReply(f"an event of the stream is not JSON: {error}", self.usage) from None
        except _MISSHAPEN as error:
            raise BrokenReply(f"an event of the stream has the wrong shape: {error!r}", self.usage) from None
        return dict(event)

    def _take(self, event: dict[str, Any], data: str | bytes) -> None:
        match event["type"]:
            case "message_start":
                self._message = dict(event["message"])
                self._count(self._message.get("usage"))
            case "content_block_start":
                self._start(event["index"], dict(exact(data)["content_block"]))
            case "content_block_delta":
                delta = event["delta"]
                self._delta(self._block(event["index"]), exact(data)["delta"] if "citation" in delta else delta)
            case "content_block_stop":
                self._block(event["index"]).stopped = True
            case "message_delta":
                self._started().update(event["delta"])
                self._stop_seen = self._stop_seen or event["delta"].get("stop_reason") is not None
                self._count(event.get("usage"))
            case "message_stop":
                self.stopped = True
            case "error":
                error = event.get("error") or {}
                raise ProviderError(str(error.get("type")), str(error.get("message")), self.usage)

    def _started(self) -> dict[str, Any]:
        if self._message is None:
            raise BrokenReply("the stream does not begin with message_start", self.usage)
        return self._message

    def _count(self, usage: dict[str, Any] | None) -> None:
        self.usage.update({key: value for key, value in (usage or {}).items() if value is not None})

    def _start(self, index: int, block: dict[str, Any]) -> None:
        self._started()
        if index != len(self._blocks):
            raise BrokenReply(f"block {index} follows block {len(self._blocks) - 1}", self.usage)
        self._blocks.append(_Block(block))

    def _block(self, index: int) -> _Block:
        if not 0 <= index < len(self._blocks):
            raise BrokenReply(f"an event speaks of block {index}, which has not begun", self.usage)
        return self._blocks[index]

    def _delta(self, block: _Block, delta: dict[str, Any]) -> None:
        kind = delta["type"]
        if kind in _TEXT_DELTAS:
            name, source = _TEXT_DELTAS[kind]
            block.texts.setdefault(name, []).append(_text(delta[source]))
        elif kind == "input_json_delta":
            block.partial.append(_text(delta["partial_json"]))
        elif kind == "citations_delta":
            block.citations.append(delta["citation"])
        else:
            raise BrokenReply(f"delta type {kind!r} is not known", self.usage)

    def finish(self) -> Reply:
        """The whole reply, after the end of the stream. Raises `BrokenReply`."""
        message = self._started()
        if not self.stopped and not self._stop_seen:
            raise BrokenReply("the stream ended in the middle of the reply", self.usage)
        if not all(block.stopped for block in self._blocks):
            raise BrokenReply("the stream ended in the middle of a block", self.usage)
        try:
            return _reply(message, [_content(block) for block in self._blocks], self.usage)
        except _MISSHAPEN as error:
            raise BrokenReply(f"the reply has the wrong shape: {error!r}", self.usage) from None


def reply_of(document: str | bytes) -> Reply:
    """The reply that came as one JSON document, not as a stream. Raises `BrokenReply`."""
    try:
        message = orjson.loads(document)
        if not isinstance(message, dict):
            raise BrokenReply("the reply is not a JSON object")
        blocks = exact(document).get("content")
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise BrokenReply("the reply has no list of content blocks")
        usage = {key: value for key, value in (message.get("usage") or {}).items() if value is not None}
        return _reply(message, [(block, _raw_input(block)) for block in blocks], usage)
    except orjson.JSONDecodeError as error:
        raise BrokenReply(f"the reply is not JSON: {error}") from None
    except _MISSHAPEN as error:
        raise BrokenReply(f"the reply has the wrong shape: {error!r}") from None


def exact(data: str | bytes) -> Any:
    """JSON whose numbers stay the text that they are, for `orjson.dumps` to write as it came."""
    return json.loads(data, parse_int=orjson.Fragment, parse_float=orjson.Fragment)


_MISSHAPEN = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _raw_input(block: dict[str, Any]) -> str | None:
    return orjson.dumps(block["input"]).decode() if "input" in block else None


_Pair = tuple[dict[str, Any], str | None]  # a block, and the raw JSON of its input


def _content(block: _Block) -> _Pair:
    whole = dict(block.start)
    for name, pieces in block.texts.items():
        whole[name] = (whole.get(name) or "") + "".join(pieces)
    if block.citations:
        whole["citations"] = [*(whole.get("citations") or []), *block.citations]
    return whole, "".join(block.partial) or _raw_input(whole) if "input" in whole else None


def _reply(message: dict[str, Any], pairs: list[_Pair], usage: dict[str, Any]) -> Reply:
    stop = message.get("stop_reason")
    calls: list[RequestedCall] = []
    content: list[Any] = []
    for block, raw in pairs:
        if block.get("type") == "tool_use":
            call = _call(block, raw or "{}", usage)
            calls.append(call)
            raw = raw if call.refused is None else "{}"
        elif raw is not None and not _is_json(raw):
            raise BrokenReply(f"the input of a {block.get('type')} block is not JSON", usage)
        content.append(block if raw is None else {**block, "input": orjson.Fragment(raw)})
    _distinct(calls, usage)
    outcome = _outcome(stop, calls)
    return Reply(outcome, stop, _body(message, usage, content), tuple(calls) if outcome == "calls" else (), usage)


def _call(block: dict[str, Any], raw: str, usage: dict[str, Any]) -> RequestedCall:
    tool_use_id, tool = block.get("id"), block.get("name")
    if not isinstance(tool_use_id, str) or not tool_use_id or not isinstance(tool, str):
        raise BrokenReply("a tool_use block has no id or no name", usage)
    try:
        orjson.loads(raw)  # strict: no Infinity, no half of a surrogate pair
        value = json.loads(raw)  # exact: integers of any size
    except (ValueError, RecursionError) as error:
        return RequestedCall(tool_use_id, tool, {}, f"the arguments are not valid JSON: {error}")
    if not isinstance(value, dict):
        return RequestedCall(tool_use_id, tool, {}, f"the arguments must be a JSON object, not {raw[:80]}")
    if depth_of(value) > MAX_DEPTH:
        return RequestedCall(tool_use_id, tool, {}, f"the arguments nest deeper than {MAX_DEPTH} levels")
    return RequestedCall(tool_use_id, tool, value)


def _is_json(raw: str) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def _distinct(calls: list[RequestedCall], usage: dict[str, Any]) -> None:
    ids = [call.tool_use_id for call in calls]
    if twice := sorted({tool_use_id for tool_use_id in ids if ids.count(tool_use_id) > 1}):
        raise BrokenReply(f"the reply uses the id {twice[0]!r} for more than one call", usage)


def _outcome(stop: str | None, calls: list[RequestedCall]) -> ReplyOutcome:
    if stop == "tool_use":
        return "calls" if calls else "stopped"
    if stop in FINAL:
        return "final"
    return "pause" if stop == "pause_turn" else "stopped"


_KEPT = ("id", "type", "role", "model", "stop_reason", "stop_sequence", "stop_details", "container")


def _body(message: dict[str, Any], usage: dict[str, Any], content: list[Any]) -> bytes:
    """The message in JSON. Content comes last, so that it can be cut out without being read."""
    head = {key: message[key] for key in _KEPT if key in message}
    return orjson.dumps({**head, "usage": usage, "content": content})
