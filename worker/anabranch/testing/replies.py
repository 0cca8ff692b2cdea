"""What a script says: replies, the blocks in them, and the faults of their delivery; and what it can ask of
a request.

Values and pure functions; scripts and the server use them. It must never know how a reply travels: `sse`
builds the events and `server` sends them.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from anabranch.errors import DefinitionError
from anabranch.testing.refusal import type_of

Json = Any  # the provider's JSON, not ours
Block = dict[str, Json]

CODE_TYPE = "code_execution_20260120"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of the API: its type, message, and what the SDK shows as `details`."""

    type: str
    message: str
    details: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of the model, and how it is delivered.

    `content` holds blocks; a string in it is a text block. `stop_reason` defaults to `tool_use` if there is a
    `tool_use` block, else `end_turn`. `usage` overrides single figures of the estimate. A reply with code has
    the `container` of its request, or a new one, unless it says which: `{"id": ..., "expires_at": ...}`.
    `latency_s` passes before the first byte, `chunk_s` between two events of a stream. A `status` of 400 or more
    answers with the error that `failure` says; `Reply.error` makes one.

    At most one fault; N counts SSE events, pings included:

    - `cut_after`: after N events the stream ends as if all were well
    - `drop_after`: after N events the connection is aborted
    - `hang_after`: after N events there is silence until the client leaves
    - `sse_error`: an `error` event `(type, message)`, after `sse_error_after` events (half of them by default)
    - `raw`: this body, verbatim, under `status` and `headers`

    A reply that is not streamed has no events: it is cut, dropped or hangs in the middle of its body, and an
    `sse_error` becomes the error response of that type.
    """

    content: Sequence[str | Block] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Json = None
    container: Mapping[str, Json] | None = None
    latency_s: float = 0.0
    usage: Mapping[str, Json] | None = None
    status: int = 200
    failure: Failure | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    drop_after: int | None = None
    hang_after: int | None = None
    sse_error: tuple[str, str] | None = None
    sse_error_after: int | None = None
    chunk_s: float = 0.0
    raw: bytes | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.content, list | tuple):
            raise DefinitionError(f"Reply.content is a list of blocks: put {self.content!r} in a list")
        for block in self.content:
            _check_block(block)
        for name, (is_right, said) in _DELIVERY.items():
            if (value := getattr(self, name)) is not None and not is_right(value):
                raise DefinitionError(f"Reply.{name}={value!r} must be {said}")
        faults = (self.cut_after, self.drop_after, self.hang_after, self.sse_error, self.raw)
        if sum(fault is not None for fault in faults) > 1:
            raise DefinitionError("a Reply has at most one of cut_after, drop_after, hang_after, sse_error and raw")
        if self.failure is not None and self.status < 400:
            raise DefinitionError(f"a Reply that fails needs a status of 400 or more, not {self.status}")

    @classmethod
    def error(
        cls,
        status: int,
        type: str | None = None,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        details: Json = None,
        headers: Mapping[str, str] | None = None,
        latency_s: float = 0.0,
    ) -> Reply:
        """An error response. `type` defaults to the API's for `status`; `retry_after` (seconds) is a header."""
        if not _DELIVERY["status"][0](status):
            raise DefinitionError(f"Reply.error({status!r}): needs an HTTP status, such as 529")
        if retry_after is not None and not _is_time(retry_after):
            raise DefinitionError(f"retry_after={retry_after!r} must be {_TIME[1]}")
        type = type or type_of(status)
        retry = {} if retry_after is None else {"retry-after": f"{retry_after:.10g}"}
        return cls(
            status=status,
            failure=Failure(type, message or type.replace("_", " "), details),
            headers={**retry, **(headers or {})},
            latency_s=latency_s,
        )


_NEEDED: Mapping[str, Mapping[str, type]] = {
    "text": {"text": str},
    "thinking": {"thinking": str, "signature": str},
    "tool_use": {"name": str, "input": object},
    "server_tool_use": {"name": str, "input": object},
    "mcp_tool_use": {"name": str, "input": object},
}
"""What a block cannot be sent without; of other types nothing is known."""


def _are_texts(value: object) -> bool:
    items = [text for pair in value.items() for text in pair] if isinstance(value, Mapping) else value
    return isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) < math.inf


_TIME = (_is_time, "seconds, 0 or more")
_EVENTS = (lambda value: type(value) is int and value >= 0, "how many events, 0 or more")
_DELIVERY: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "latency_s": _TIME,
    "chunk_s": _TIME,
    "status": (lambda value: type(value) is int and 200 <= value <= 599, "an HTTP status, such as 529"),
    "headers": (lambda value: isinstance(value, Mapping) and _are_texts(value), "a dict of texts"),
    "usage": (lambda value: isinstance(value, Mapping), "a dict, such as {'output_tokens': 7}"),
    "cut_after": _EVENTS,
    "drop_after": _EVENTS,
    "hang_after": _EVENTS,
    "sse_error_after": _EVENTS,
    "sse_error": (lambda value: _are_texts(value) and len(value) == 2, "an error's type and its message"),
}
"""How a reply is delivered: what that takes, where it is given."""


def _check_block(block: object) -> None:
    if isinstance(block, str):
        return
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise DefinitionError(
            f"{block!r} is no block of a reply, which has a type: make one with text(), tool_use() or thinking(), or "
            "write a string"
        )
    for name, kind in _NEEDED.get(block["type"], {}).items():
        if name not in block or not isinstance(block[name], kind):
            raise DefinitionError(f"{block!r} has no {name!r}, which a block of its type needs")


Answer = Reply | str | Block | Sequence[str | Block]
"""What a script may give for one request: a reply, a text, a block, or several of them."""


def text(value: str) -> Block:
    """A text block."""
    return {"type": "text", "text": value}


def tool_use(
    name: str, input: Mapping[str, Json] | str, id: str | None = None, *, code: str | None = None,
    code_type: str = CODE_TYPE,
) -> Block:  # fmt: skip
    """A call of tool `name`. Without an `id` each reply that holds the block gives it a fresh one.

    An `input` that is a string is sent as it is, so that it may be malformed, an array, or hold `Infinity`. `code` is
    the id of the `code_execution` block whose code makes the call.
    """
    block: Block = {"type": "tool_use", "name": name, "input": input if isinstance(input, str) else dict(input)}
    if code is not None:
        block["caller"] = {"type": code_type, "tool_id": code}
    return block if id is None else {**block, "id": id}


def code_execution(source: str, id: str) -> Block:
    """Code that the provider runs; what it calls follows as `tool_use(..., code=id)`."""
    return {"type": "server_tool_use", "id": id, "name": "code_execution", "input": {"code": source}}


def code_result(id: str, stdout: str) -> Block:
    """What the code of block `id` has printed, once it has come to its end."""
    content = {"type": "code_execution_result", "stdout": stdout, "stderr": "", "return_code": 0, "content": []}
    return {"type": "code_execution_tool_result", "tool_use_id": id, "content": content}


def thinking(value: str, signature: str | None = None) -> Block:
    """A thinking block; the signature is derived from the text unless given."""
    if signature is None:
        signature = base64.b64encode(hashlib.sha256(value.encode()).digest()).decode()
    return {"type": "thinking", "thinking": value, "signature": signature}


def as_reply(answer: Answer) -> Reply:
    """The reply that an answer stands for.

    Raises:
        DefinitionError: it is none of the things that an answer may be.
    """
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, str | dict):
        return Reply(content=[answer])
    if isinstance(answer, list | tuple) and all(isinstance(item, str | dict) for item in answer):
        return Reply(content=answer)
    raise DefinitionError(
        f"a script gave {answer!r}: it gives a Reply, a string, a block, or a list of strings and blocks"
    )


def turn_of(request: Mapping[str, Json]) -> int:
    """Which turn of its conversation a request asks for, from 1."""
    return 1 + sum(1 for message in request["messages"] if message["role"] == "assistant")


def last_results(request: Mapping[str, Json]) -> dict[str, Block]:
    """The `tool_result` blocks of the last message, by `tool_use_id`; empty if it holds none."""
    content = request["messages"][-1]["content"]
    blocks = content if isinstance(content, list) else []
    return {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}


def prompt_of(request: Mapping[str, Json]) -> str:
    """The text of the first user message: what the run was asked."""
    return _joined(request["messages"][0]["content"])


def result_text(result: Block) -> str:
    """The text of a `tool_result` block; other blocks in it are left out."""
    return _joined(result.get("content") or "")


def _joined(content: Json) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")
