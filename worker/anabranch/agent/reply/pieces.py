"""What a model says, while it speaks: the provider's stream of events as pieces of text and calls. PURE.

A call is *complete* when a later block has started, or when the message says that it stops for its calls: a block's own
stop proves nothing, for a reply that was cut off closes its last block too. `reply.py` alone decides what the whole
reply is; whoever uses a piece before that must be ready for a reply in which it does not stand. Called by `hearing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from anabranch.values import frozen

PieceKind = Literal["text", "thinking", "tool_use", "tool_input"]


@frozen()
class Piece:
    """A piece of text or thinking; a call that has begun (`tool_use`), or is complete (`tool_input`).

    `index` is the block's in the reply, `call` the call's among its calls, `text` of a complete call the JSON of its
    input as it was streamed, and `block` the block of a call as it began.
    """

    kind: PieceKind
    index: int
    text: str = ""
    call: int = 0
    block: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    number: int
    block: dict[str, Any]
    partial: list[str] = field(default_factory=list)


class Pieces:
    """Those of one attempt. It is fed its events in their order, once they have passed `reply.py`."""

    def __init__(self) -> None:
        self._open: dict[int, _Call] = {}  # by block, those that are not complete
        self._stopped: set[int] = set()  # of them, those that are once something follows
        self._calls = 0

    def feed(self, event: dict[str, Any]) -> list[Piece]:
        """What is new with this event."""
        match event["type"]:
            case "content_block_start":
                return [*self._complete(), *self._begin(event["index"], event["content_block"])]
            case "content_block_delta":
                return self._delta(event["index"], event["delta"])
            case "content_block_stop" if event["index"] in self._open:
                self._stopped.add(event["index"])
            case "message_delta" if event["delta"].get("stop_reason") == "tool_use":
                return self._complete()
        return []

    def _begin(self, index: int, block: dict[str, Any]) -> list[Piece]:
        kind = block.get("type")
        if kind == "tool_use":
            call = self._open[index] = _Call(self._calls, block)
            self._calls += 1
            return [Piece("tool_use", index, call=call.number, block=block)]
        if kind in ("text", "thinking") and block.get(kind):
            return [Piece(kind, index, block[kind])]
        return []

    def _delta(self, index: int, delta: dict[str, Any]) -> list[Piece]:
        match delta["type"]:
            case "text_delta":
                return [Piece("text", index, delta["text"])] if delta["text"] else []
            case "thinking_delta":
                return [Piece("thinking", index, delta["thinking"])] if delta["thinking"] else []
            case "input_json_delta" if index in self._open:
                self._open[index].partial.append(delta["partial_json"])
        return []

    def _complete(self) -> list[Piece]:
        """The calls whose blocks have stopped, now that something follows them."""
        complete = sorted(self._stopped)
        self._stopped.clear()
        return [_complete(index, self._open.pop(index)) for index in complete]


def _complete(index: int, call: _Call) -> Piece:
    raw = "".join(call.partial) or orjson.dumps(call.block.get("input", {})).decode()
    return Piece("tool_input", index, raw, call.number, call.block)
