"""How a reply looks on the wire: the message, its SSE events, and which of them a fault lets through.

Pure: values in, bytes out. It must never wait or write: `server` does. The shapes are those of
https://docs.claude.com/en/docs/build-with-claude/streaming.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import orjson

from anabranch.testing.caching import UNCACHED, Cached
from anabranch.testing.refusal import refuse
from anabranch.testing.replies import Block, Reply, text

Json = Any  # the provider's JSON, not ours
Ending = Literal["end", "abort", "hang"]

DELTAS = 8  # a block is streamed in at most so many deltas ...
MIN_DELTA = 16  # ... of at least so many characters

_WITH_INPUT = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
# Not orjson: it refuses large integers and lone surrogates, and turns Infinity into null.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Message:
    """A reply made ready for one request: every block complete, inputs as JSON text, the usage known."""

    id: str
    model: str
    content: list[Block]
    stop_reason: str
    stop_sequence: str | None
    stop_details: Json
    usage: dict[str, Json]
    container: Json = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is written, piece by piece, and what happens then."""

    pieces: list[bytes]
    ending: Ending


def tokens(size: int) -> int:
    """About how many tokens `size` bytes of JSON or text are."""
    return math.ceil(size / 4)


def honour(reply: Reply, request: Mapping[str, Json]) -> Reply:
    """The reply as `tool_choice` allows it: without parallel calls only the first one stays.

    Raises:
        Refused: an `api_error`, if the script calls a tool that the request forbids. Nothing is invented.
    """
    choice = request.get("tool_choice") or {}
    calls = [index for index, block in enumerate(reply.content) if _is_call(block)]
    if choice.get("type") == "none" and calls:
        refuse("the script calls a tool although `tool_choice` is none", "api_error")
    for name in _names(reply) if choice.get("type") == "tool" else ():
        if name != choice["name"]:
            refuse(f"the script calls {name!r} although `tool_choice` forces {choice['name']!r}", "api_error")
    if not choice.get("disable_parallel_tool_use") or len(calls) < 2:
        return reply
    return replace(reply, content=[block for i, block in enumerate(reply.content) if i not in calls[1:]])


def _names(reply: Reply) -> list[str]:
    return [block["name"] for block in reply.content if isinstance(block, dict) and _is_call(block)]


def _is_call(block: str | Block) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_use"


def message_of(reply: Reply, model: str, request_size: int, cached: Cached = UNCACHED) -> Message:
    """Complete a reply: fresh ids, the stop reason, an estimate of the usage. `request_size` is bytes."""
    content = [_complete(block) for block in reply.content]
    return Message(
        id=f"msg_{uuid4().hex[:24]}",
        model=model,
        content=content,
        stop_reason=reply.stop_reason or ("tool_use" if any(map(_is_call, content)) else "end_turn"),
        stop_sequence=reply.stop_sequence,
        stop_details=reply.stop_details,
        usage={**_estimate(content, request_size, cached), **(reply.usage or {})},
    )


def _complete(block: str | Block) -> Block:
    if isinstance(block, str):
        return text(block)
    if block["type"] not in _WITH_INPUT:
        return block
    # The order of the API: type and id first.
    named = block if "id" in block else {"type": block["type"], "id": f"toolu_{uuid4().hex[:24]}", **block}
    return {**named, "input": _input_json(block["input"])}


def _estimate(content: Sequence[Block], request_size: int, cached: Cached) -> dict[str, Json]:
    size = sum(len(_streamed(block)[1]) for block in content)
    return {
        **cached.usage(tokens(request_size)),
        "output_tokens": max(1, tokens(size)),
        "service_tier": "standard",
    }


def body(message: Message) -> bytes:
    """The message as one JSON document. A call's raw input goes in as it is, malformed or not."""
    content = [
        {**block, "input": orjson.Fragment(block["input"])} if block["type"] in _WITH_INPUT else block
        for block in message.content
    ]
    return orjson.dumps({
        **_head(message, message.usage),
        "content": content,
        "stop_reason": message.stop_reason,
        "stop_sequence": message.stop_sequence,
        "stop_details": message.stop_details,
        "container": message.container,
    })  # fmt: skip


def _head(message: Message, usage: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": message.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _input_json(value: Json) -> str:
    """The input of a call as JSON text. A string is JSON already."""
    return value if isinstance(value, str) else _ENCODER.encode(value)


def events(message: Message) -> list[bytes]:
    """The SSE events of a message, one piece each."""
    written = [
        _event("message_start", {"message": _head(message, {**message.usage, "output_tokens": 1})}),
        _event("ping", {}),
    ]
    for index, block in enumerate(message.content):
        written.extend(_block_events(index, block))
    written.append(_event("message_delta", _last_delta(message)))
    written.append(_event("message_stop", {}))
    return written


def _last_delta(message: Message) -> dict[str, Json]:
    delta = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
    if message.stop_details is not None:
        delta["stop_details"] = message.stop_details
    if message.container is not None:
        delta["container"] = message.container
    usage = {name: value for name, value in message.usage.items() if name != "service_tier"}
    return {"delta": delta, "usage": usage}


def _block_events(index: int, block: Block) -> Iterator[bytes]:
    start, _ = _streamed(block)
    yield _event("content_block_start", {"index": index, "content_block": start})
    for delta in _deltas(block):
        yield _event("content_block_delta", {"index": index, "delta": delta})
    yield _event("content_block_stop", {"index": index})


def _streamed(block: Block) -> tuple[Block, str]:
    """A block as it starts, and what its deltas add; a type that has no deltas starts complete."""
    match block["type"]:
        case "text":
            empty: Block = {"text": ""} | ({"citations": []} if block.get("citations") else {})
            return {**block, **empty}, block["text"]
        case "thinking":
            return {**block, "thinking": "", "signature": ""}, block["thinking"]
        case type_ if type_ in _WITH_INPUT:
            return {**block, "input": {}}, block["input"]
        case _:
            return block, ""


def _deltas(block: Block) -> Iterator[Block]:
    pieces = _split(_streamed(block)[1])
    match block["type"]:
        case "text":
            yield from ({"type": "text_delta", "text": piece} for piece in pieces)
            for citation in block.get("citations") or ():
                yield {"type": "citations_delta", "citation": citation}
        case "thinking":
            yield from ({"type": "thinking_delta", "thinking": piece} for piece in pieces)
            yield {"type": "signature_delta", "signature": block["signature"]}
        case type_ if type_ in _WITH_INPUT:
            # The API opens every input with an empty piece.
            yield from ({"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces])


def _split(value: str) -> list[str]:
    size = max(MIN_DELTA, math.ceil(len(value) / DELTAS))
    return [value[at : at + size] for at in range(0, len(value), size)]


def _event(name: str, data: Mapping[str, Json]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


def streamed(reply: Reply, written: Sequence[bytes]) -> Delivery:
    """The events that the reply's fault lets through."""
    if reply.sse_error is not None:
        after = len(written) // 2 if reply.sse_error_after is None else reply.sse_error_after
        type_, message = reply.sse_error
        error = _event("error", {"error": {"type": type_, "message": message}})
        return Delivery([*written[:after], error], "end")
    count, ending = _fault(reply)
    return Delivery(list(written[:count]), ending)


def told(reply: Reply, message: Message) -> dict[str, Json]:
    """What a stream says of its usage before its fault: the input first, and the output at its end."""
    if reply.raw is not None:
        return message.usage
    written = events(message)
    sent = len(streamed(reply, written).pieces) - (reply.sse_error is not None)
    if sent >= len(written) - 1:
        return message.usage
    return {**message.usage, "output_tokens": 1} if sent else {}


def unstreamed(reply: Reply, document: bytes) -> Delivery:
    """The body, or its first half if the reply is cut, dropped or hangs."""
    count, ending = _fault(reply)
    return Delivery([document if count is None else document[: len(document) // 2]], ending)


def _fault(reply: Reply) -> tuple[int | None, Ending]:
    if reply.drop_after is not None:
        return reply.drop_after, "abort"
    if reply.hang_after is not None:
        return reply.hang_after, "hang"
    return reply.cut_after, "end"
