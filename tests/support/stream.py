"""The provider's stream, event by event, as a test wants it: right, or wrong in one place.

Responsible for: events as values, and as the bytes of server-sent events.
Must never: check anything, or know how a reply is put together.
Called by: tests of replies, with and without a connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson

Event = dict[str, Any] | bytes
"""An event as a value, or as the JSON that it is to be on the wire."""


def start(**fields: Any) -> Event:
    head: dict[str, Any] = {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    return {"type": "message_start", "message": {**head, "usage": {"input_tokens": 7, "output_tokens": 1}, **fields}}


def block(index: int, content: Any, *deltas: dict[str, Any], stop: bool = True) -> list[Event]:
    events: list[Event] = [{"type": "content_block_start", "index": index, "content_block": content}]
    events += [delta(index, each) for each in deltas]
    return [*events, *([{"type": "content_block_stop", "index": index}] if stop else [])]


def delta(index: int, piece: dict[str, Any]) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": piece}


def said(index: int, *texts: str) -> list[Event]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def called(index: int, *partial: str, tool_use_id: str = "tu", name: str = "t", stop: bool = True) -> list[Event]:
    pieces = ({"type": "input_json_delta", "partial_json": piece} for piece in partial)
    return block(index, {"type": "tool_use", "id": tool_use_id, "name": name, "input": {}}, *pieces, stop=stop)


def end(stop: Any = "end_turn", **usage: Any) -> list[Event]:
    last = {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}
    return [last, {"type": "message_stop"}]


def json_of(event: Event) -> bytes:
    return event if isinstance(event, bytes) else orjson.dumps(event)


def sse(events: Iterable[Event]) -> bytes:
    """The events as the API sends them, each with its name."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (_name(event), json_of(event)) for event in events)


def _name(event: Event) -> bytes:
    value = json.loads(event) if isinstance(event, bytes) else event  # not orjson: it may hold half of a character
    return str(value["type"]).encode()
