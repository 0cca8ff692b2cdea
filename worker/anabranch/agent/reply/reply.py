"""One reply of the model, from the provider's stream of events to the message that goes into the log. PURE.

Text, signatures and inputs are kept exactly as they came: a tool's input is the very JSON text that was
streamed. Nothing is repaired. What breaks off, or contradicts itself, is a `BrokenReply`: it is discarded
whole, and no call of it is ever run. `agent/model/anthropic_model.py` feeds it; `plan.py` reads what comes out.
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

from anabranch.agent.reply.blocks import Block, Misfit, Whole, text_of
from anabranch.agent.reply.verbatim import is_json, items, member, members, written
from anabranch.bodies import MAX_DEPTH, depth_of
from anabranch.fields import Json
from anabranch.log_events import ReplyOutcome
from anabranch.values import frozen

FINAL = frozenset({"end_turn", "stop_sequence"})
NAME_CHARACTERS: Final = 200
"""How long a name the provider takes back. A model that goes astray calls a whole command a tool."""


class BrokenReply(Exception):
    """A reply that cannot be used; `usage` is what it has cost so far, in the provider's fields, and goes on to be
    counted. `curable`: the model may do better when it is asked again.
    """

    def __init__(self, reason: str, usage: dict[str, Any] | None = None, curable: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.usage, self.curable = reason, {} if usage is None else usage, curable


class ProviderError(Exception):
    """An `error` event in the middle of a stream."""

    def __init__(self, kind: str, message: str, usage: dict[str, Any]) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.usage = kind, message, usage


@frozen()
class RequestedCall:
    """A call as the model asked for it. `refused` says why its input cannot be one."""

    tool_use_id: str
    tool: str
    input: dict[str, Json]
    refused: str | None = None


@frozen()
class Reply:
    """A whole reply. `body` is the message in JSON, its content last."""

    outcome: ReplyOutcome
    stop_reason: str | None
    body: bytes
    calls: tuple[RequestedCall, ...]
    usage: dict[str, Any]


class ReplyBuilder:
    """Collects the events of one stream. `feed` returns the event, for whoever wants to watch."""

    def __init__(self) -> None:
        self._head: dict[str, str] | None = None  # the message but for its content, each field as it was written
        self._blocks: list[Block] = []
        self._usage: dict[str, str] = {}  # as `usage`, each field as it was written
        self._stop: str | None = None
        self._halved = False
        self._broken: BrokenReply | None = None
        self.usage: dict[str, Any] = {}
        self.stopped = False

    @property
    def whole(self) -> bool:
        """Whether all of the reply is there: its stop reason was said, and every block has ended."""
        return self._stop is not None and all(block.stopped for block in self._blocks)

    def feed(self, data: str | bytes, name: str | None = None) -> dict[str, Any]:
        """Take one event; its `name` in the stream counts if it says itself no type.

        Raises `BrokenReply` or `ProviderError`.
        """
        try:
            text = data if isinstance(data, str) else data.decode()
            event, halved = _event(text)
            if not isinstance(event.setdefault("type", name), str):
                raise Misfit("an event of the stream has no type")
            self._halved = self._halved or halved
            self._take(event, text)
        except _UNUSABLE as error:
            self._broken = _broken_by("an event of the stream", error, self.usage)
            raise self._broken from None
        return _showable(event) if halved else event

    def count(self, data: str | bytes) -> None:
        """Take only the usage of an event, and whether it is the last: a broken reply costs what it says to its end."""
        try:
            event = orjson.loads(data)
            self.stopped = self.stopped or event["type"] == "message_stop"
            if event["type"] == "message_delta":
                self.usage.update(_said(event.get("usage")))
        except _UNUSABLE:
            return  # it is broken as it is

    def _take(self, event: dict[str, Any], text: str) -> None:
        match event["type"]:
            case "message_start":
                self._begin(event["message"], members(members(text)["message"]))
            case "content_block_start":
                self._start(event["index"], event["content_block"], member(text, "content_block", event))
            case "content_block_delta":
                self._goes_on()
                self._block(event["index"]).add(event["delta"], text)
            case "content_block_stop":
                self._block(event["index"]).stopped = True
            case "message_delta":
                self._end(event, members(text))
            case "message_stop":
                self._started()
                self.stopped = True
            case "error":
                raise _error(event, self.usage)

    def _begin(self, message: dict[str, Any], fields: dict[str, str]) -> None:
        if self._head is not None:
            raise Misfit("the stream begins twice")
        if message.get("content"):
            raise Misfit("the stream begins with content outside of its blocks")
        self._count(message.get("usage"), fields)
        self._head = {**fields, "stop_reason": "null"}  # only its end can say why it ended

    def _end(self, event: dict[str, Any], fields: dict[str, str]) -> None:
        head, stop = self._started(), event["delta"].get("stop_reason")
        if stop is not None and self._stop not in (None, stop):
            raise Misfit(f"the reply ends twice, by {self._stop!r} and by {stop!r}")
        if stop is not None:
            self._stop = text_of(stop)
        self._count(event.get("usage"), fields)
        beside = ((key, value) for key, value in fields.items() if key not in ("type", "delta", "usage"))
        for key, value in (*beside, *members(fields["delta"]).items()):
            if value != "null" or key not in head:
                head[key] = value

    def _started(self) -> dict[str, str]:
        if self._head is None:
            raise Misfit("the stream does not begin with message_start")
        return self._head

    def _goes_on(self) -> None:
        self._started()
        if self._stop is not None:
            raise Misfit(f"the reply goes on after its end by {self._stop!r}")

    def _count(self, usage: dict[str, Any] | None, fields: dict[str, str]) -> None:
        if usage is not None:
            self.usage.update(_said(usage))
            self._usage.update(_written_usage(fields["usage"]))

    def _start(self, index: int, block: dict[str, Any], text: str) -> None:
        self._goes_on()
        if not isinstance(block, dict):
            raise Misfit("a block is no JSON object")
        if index != len(self._blocks):
            raise Misfit(f"block {index} follows block {len(self._blocks) - 1}")
        self._blocks.append(Block(block, text))

    def _block(self, index: int) -> Block:
        if not 0 <= index < len(self._blocks):
            raise Misfit(f"an event speaks of block {index}, which has not begun")
        return self._blocks[index]

    def finish(self) -> Reply:
        """The whole reply, after the end of the stream. Raises `BrokenReply`, also if `feed` has done so."""
        if self._broken is not None:
            raise self._broken
        try:
            head = self._started()
            if not self.stopped and self._stop is None:
                raise Misfit("the stream ended in the middle of the reply")
            if not all(block.stopped for block in self._blocks):
                raise Misfit("the stream ended in the middle of a block")
            blocks = [block.whole() for block in self._blocks]
            reply = _reply(_Head(head, self._stop, self.usage, self._usage), blocks)
            if self._halved and not is_json(reply.body):
                raise Misfit("the reply holds half of a surrogate pair, which no text can")
            return reply
        except _UNUSABLE as error:
            raise _broken_by("the reply", error, self.usage) from None


def reply_of(document: str | bytes) -> Reply:
    """The reply that came as one JSON document, not as a stream. Raises `BrokenReply` or `ProviderError`."""
    usage: dict[str, Any] = {}
    try:
        message = orjson.loads(document)
        if not isinstance(message, dict):
            raise Misfit("the reply is not a JSON object")
        if message.get("type") == "error":
            raise _error(message, usage)
        usage.update(_said(message.get("usage")))
        fields = members(document if isinstance(document, str) else document.decode())
        content, stop = message.get("content"), message.get("stop_reason")
        if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise Misfit("the reply has no list of content blocks")
        texts = items(fields["content"])
        blocks = [Block(block, text).whole() for block, text in zip(content, texts, strict=True)]
        told = _written_usage(fields["usage"]) if usage else {}
        return _reply(_Head(fields, None if stop is None else text_of(stop), usage, told), blocks)
    except _UNUSABLE as error:
        raise _broken_by("the reply", error, usage) from None


_UNUSABLE: Final = (Misfit, KeyError, TypeError, AttributeError, ValueError, RecursionError)
"""What comes of what is no reply: most of it of a wrong shape, wherever that is seen."""


def _broken_by(what: str, error: Exception, usage: dict[str, Any]) -> BrokenReply:
    if isinstance(error, Misfit):
        return BrokenReply(error.reason, usage, error.curable)
    why = f"is not JSON: {error}" if isinstance(error, orjson.JSONDecodeError) else f"has the wrong shape: {error!r}"
    return BrokenReply(f"{what} {why}", usage)


def _event(text: str) -> tuple[dict[str, Any], bool]:
    """An event of the stream, and whether it may hold half of a character, as where a text was cut by UTF-16."""
    try:
        event = orjson.loads(text)
        return event if type(event) is dict else dict(event), False
    except orjson.JSONDecodeError:
        if "\\ud" not in text.lower():
            raise
        return dict(json.loads(text, parse_constant=orjson.loads, parse_float=orjson.loads)), True


def _showable(event: dict[str, Any]) -> dict[str, Any]:
    """The event for those who watch, who get `?` for half of a character."""
    shown: dict[str, Any] = orjson.loads(json.dumps(event, ensure_ascii=False).encode("utf-8", "replace"))
    return shown


def _said(usage: dict[str, Any] | None) -> dict[str, Any]:
    """What a usage says: null is nothing said."""
    return {key: value for key, value in (usage or {}).items() if value is not None}


def _written_usage(text: str) -> dict[str, str]:
    return {key: value for key, value in members(text).items() if value != "null"}


def _error(event: dict[str, Any], usage: dict[str, Any]) -> Exception:
    error = event.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("type"), str):
        return Misfit(f"the stream ended with an error that says nothing: {str(error)[:200]}")
    return ProviderError(error["type"], str(error.get("message"))[:2000], usage)


@frozen()
class _Head:
    """A message but for its content; `fields` and `written_usage` are JSON as it was written."""

    fields: dict[str, str]
    stop: str | None
    usage: dict[str, Any]
    written_usage: dict[str, str]


def _reply(head: _Head, blocks: list[Whole]) -> Reply:
    calls: list[RequestedCall] = []
    content: list[str] = []
    for block in blocks:
        type_, text = block.start.get("type"), block.text
        if type_ == "tool_use":
            call = call_of(block.start, block.input)
            calls.append(call)
            text = text if call.refused is None else block.without_input()
        elif block.input is not None and not is_json(block.input):
            raise Misfit(f"the input of a {type_} block is not JSON")
        content.append(text)
    _distinct(calls)
    outcome = _outcome(head.stop, calls)
    return Reply(outcome, head.stop, _body(head, content), tuple(calls) if outcome == "calls" else (), head.usage)


def call_of(block: dict[str, Any], raw: str | None) -> RequestedCall:
    """The call of a `tool_use` block, with an input that was written so. Raises `Misfit`: the reply cannot be used."""
    tool_use_id, tool = block.get("id"), block.get("name")
    if not isinstance(tool_use_id, str) or not tool_use_id or not isinstance(tool, str):
        raise Misfit("a tool_use block has no id or no name")
    if not 0 < len(tool) <= NAME_CHARACTERS:
        raise Misfit(f"a call names a tool with {len(tool)} characters, and no request may hold such a name")
    if raw is None:
        raise Misfit(f"the call {tool_use_id!r} has no input, not even an empty one")
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


def _distinct(calls: list[RequestedCall]) -> None:
    known = set[str]()
    for call in calls:
        if call.tool_use_id in known:
            raise Misfit(f"the reply uses the id {call.tool_use_id!r} for more than one call")
        known.add(call.tool_use_id)


def _outcome(stop: str | None, calls: list[RequestedCall]) -> ReplyOutcome:
    if stop == "tool_use":
        return "calls" if calls else "stopped"
    if stop in FINAL:
        return "final"
    if stop == "pause_turn":  # what it asks for must be answered before it can go on
        return "calls" if calls else "pause"
    return "stopped"


def _body(head: _Head, content: list[str]) -> bytes:
    """The message in JSON, every field of it. Content comes last, so that it can be cut out (`content.py`); the
    type comes first, so that no field of a provider's is taken for one of ours.
    """
    type_ = {"type": head.fields.get("type", '"message"')}
    rest = {key: value for key, value in head.fields.items() if key not in ("type", "usage", "content")}
    last = {"usage": written(head.written_usage), "content": f"[{','.join(content)}]"}
    return written({**type_, **rest, **last}).encode()
