"""Bodies of records: JSON read into messages and written from them, and a request's looked at closely.

Pure, and the only place that decides what JSON from outside may be. What does not fit raises `WireError`, or
`InvalidRequest` with a message for whoever sent it. `codec` puts bodies together with headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import Any, Final, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from anabranch import messages as m
from anabranch.errors import InvalidRequest, WireError
from anabranch.fields import Json, is_name

MAX_DEPTH: Final = 100
"""How deep JSON from outside may nest: orjson reads 1,024 levels and writes 254, we add some of our own."""
METADATA_BYTES: Final = 4096

T = TypeVar("T")


@cache
def _validator(kind: Any) -> Callable[..., Any]:
    return TypeAdapter(kind).validator.validate_json


def read(kind: type[T], body: bytes | None) -> T:
    """`body` as a `kind`. Raises `WireError` with the path of the first wrong field."""
    try:
        value: T = _validator(kind)(body or b"", strict=True)  # type: ignore[arg-type]
        return value
    except ValidationError as error:
        raise WireError(explain(error)) from None
    except RecursionError:
        raise WireError("the JSON nests too deeply") from None


def explain(error: ValidationError) -> str:
    """The first problem in one line: `max_turns: Input should be a valid integer (got 'many')`."""
    first, *others = error.errors(include_url=False, include_context=False)
    path, said = first["loc"], first["msg"]
    if others and path[-1:] == ("str",) and others[0]["loc"][: len(path)] == (*path[:-1], _BLOCKS):
        first = others[0]  # of a text, or blocks, it is no text: what else is wrong with it says more
        path = (*path[:-1], *first["loc"][len(path) :])
        said = "Input should be a content block" if first["type"] == "dict_type" else _NO_CONTENT
    where = ".".join(map(str, path))
    given = repr(first["input"])
    shown = "" if first["type"] in ("json_invalid", "missing") else f"{_GIVEN}{given[:80]})"
    return f"{where + ': ' if where else ''}{said}{shown}"


def without_given(explained: str) -> str:
    """What `explain` says, but for the value: for a log that may not show what somebody said."""
    return explained.partition(_GIVEN)[0]


_GIVEN: Final = " (got "
_BLOCKS: Final = "list[dict[str,any]]"
"""What pydantic calls the second form of `Content`, in the path of a problem."""
_NO_CONTENT: Final = "Input should be a text, or a list of content blocks"


@cache
def _fields_of(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names of a dataclass's fields, and what gets them all at once."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind!r} is no JSON")
    names = tuple(field.name for field in fields(kind))
    get = attrgetter(*names)
    return names, get if len(names) > 1 else lambda value: (get(value),)


def _given(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not null: absent and null mean the same."""
    names, values_of = _fields_of(value.__class__)
    return {name: item for name, item in zip(names, values_of(value)) if item is not None}  # noqa: B905 - hot


def _told(value: Any) -> dict[str, Any]:
    names, values_of = _fields_of(value.__class__)
    return dict(zip(names, values_of(value)))  # noqa: B905 - hot


def lean(value: Any) -> Any:
    """A dataclass as JSON-able data without the fields that are null, in the dataclasses within it too."""
    if isinstance(value, list | tuple):
        return [lean(item) for item in value]
    return {name: lean(item) for name, item in _given(value).items()} if is_dataclass(value) else value


def dump(value: Any) -> bytes:
    """JSON of a dataclass or of plain data, null fields of dataclasses left out."""
    try:
        return orjson.dumps(value, _given, orjson.OPT_PASSTHROUGH_DATACLASS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise WireError(f"cannot be written as JSON: {error}") from None


def whole(value: Any, *but: str) -> bytes:
    """JSON of a dataclass with every field there, null or not: what is read by people's scripts.

    Only the fields `but` are left out if they are null: they came later, and what was written before stays the same.
    """
    named = _told(value)
    if (error := named.get("error")) is not None:
        named["error"] = _given(error)
    for name in but:
        if named[name] is None:
            del named[name]
    try:
        return orjson.dumps(named, _told, orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return _slowly(named)


def _slowly(named: dict[str, Any]) -> bytes:
    try:
        return json.dumps(named, default=asdict, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"cannot be written as JSON: {error}") from None


def depth_of(value: Any, limit: int = MAX_DEPTH) -> int:
    """How deep `value`, which a parser has made, nests; stops counting above `limit`."""
    level: list[Any] = [value]
    depth = 0
    while depth <= limit:
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return depth
        depth += 1
        level = []
        for item in nested:
            level += item.values() if isinstance(item, dict) else item
    return depth


def nests_deeper(value: Any, body: bytes, limit: int) -> bool:
    """Whether `value`, read from `body`, nests deeper than `limit`: not, if the body opens no more than that."""
    return body.count(b"{") + body.count(b"[") > limit and depth_of(value, limit) > limit


def read_request(body: bytes | None) -> m.RunRequest:
    """A request's body. Raises `InvalidRequest` with a message for whoever sent it."""
    try:
        data = orjson.loads(body or b"")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(data).__name__}")
    if nests_deeper(data, body or b"", MAX_DEPTH):
        raise InvalidRequest(f"the body nests deeper than {MAX_DEPTH} levels")
    try:
        request: m.RunRequest = _validator(m.RunRequest)(body or b"", strict=True)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None
    _refuse_unwritable(request)
    return request


def refuse_incomplete(request: m.RunRequest) -> str:
    """A request that opens a run names its agent, which is returned, and what the run begins with. Raises
    `InvalidRequest`.
    """
    if request.agent is None:
        raise InvalidRequest("agent: is missing: name the agent that is to run")
    if beginnings(request) != 1:
        raise InvalidRequest("give either input or messages: the first user message, or a conversation to go on with")
    if request.input == []:
        raise InvalidRequest("input: is empty")
    if isinstance(request.input, str) and not request.input.strip():
        raise InvalidRequest("input: is blank, which no model takes")
    if request.messages is not None:
        refuse_messages(request.messages)
    return request.agent


def beginnings(request: m.RunRequest) -> int:
    """How many things it names that a run could begin with."""
    given = (request.input, request.messages, request.messages_ref, request.messages_sealed)
    return len(given) - given.count(None)


def refuse_messages(messages: Json) -> None:
    """A conversation has the form of one; what it may say is the provider's to judge. Raises `InvalidRequest`."""
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages: must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise InvalidRequest("messages: is empty: the last one is what the model is to answer")
    for place, message in enumerate(messages):
        if (mistake := _mistake_in(message)) is not None:
            raise InvalidRequest(f"messages.{place}{mistake}")


def _mistake_in(message: Json) -> str | None:
    """Why no provider takes it as a message."""
    if not isinstance(message, dict):
        return f": must be an object with a role and a content, not {type(message).__name__}"
    role, content = message.get("role"), message.get("content")
    if role is None:
        return f".role: is missing: it is one of {_ROLES_SHOWN}"
    if role not in _ROLES:
        return f".role: must be one of {_ROLES_SHOWN}{_GIVEN}{role!r:.80})"
    if content is None:
        return ".content: is missing: it is a text, or a list of content blocks"
    if not isinstance(content, str | list):
        return f".content: must be a text, or a list of content blocks, not {type(content).__name__}"
    for place, block in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(block, dict):
            return f".content.{place}: must be a content block, not {type(block).__name__}"
    return None


_ROLES: Final = ("user", "assistant", "system")
"""Whether the model takes a `system` message, and where, is the provider's to say."""
_ROLES_SHOWN: Final = ", ".join(map(repr, _ROLES))


def sender_of(body: bytes | None) -> tuple[str | None, m.ReplyTo | None]:
    """The run id and the inbox that a bad request names all the same, so that its sender can be told."""
    try:
        data = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        data = {"run_id": _run_id_in(body or b"")}
    named = data if isinstance(data, dict) else {}
    run_id, inbox = named.get("run_id"), named.get("reply_to")
    partition = inbox.get("partition") if isinstance(inbox, dict) else None
    told = run_id if isinstance(run_id, str) and is_name(run_id) else None
    if isinstance(partition, int) and not isinstance(partition, bool) and partition >= 0:
        return told, m.ReplyTo(partition)
    return told, None


_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]')
"""Of a text that has no end, all of it: else the end would be looked for again from each quote within."""

_LOOK: Final = 50_000
"""After so many tokens, a tenth of a second, no run id is looked for any more: a record has room for a million."""


def _run_id_in(body: bytes) -> str | None:
    """The run id at the top of what is too deep for a parser, or is no JSON further on; a look, no reading."""
    depth, before = 0, (b"", b"")
    for found in islice(_TOKEN.finditer(body), _LOOK):
        token = found[0]
        if depth == 1 and before == (b'"run_id"', b":"):
            return str(token[1:-1], "utf-8", "replace") if token[:1] == token[-1:] == b'"' else None
        depth += (token in b"{[") - (token in b"}]")
        before = before[1], token
    return None


def _is_writable(value: Json) -> bool:
    try:
        dump(value)
    except WireError:
        return False
    return True


_NUMBERS: Final = ("input", "messages", "max_turns", "metadata", "reply_to")
_numbers_of: Final = attrgetter(*_NUMBERS)
"""The fields of a request in which an integer may be, of any size."""


def _refuse_unwritable(request: m.RunRequest) -> None:
    """What is read here is written again, into the log and the answer: an integer beyond 64 bits could not be."""
    try:
        orjson.dumps(_numbers_of(request), _given, orjson.OPT_PASSTHROUGH_DATACLASS)
        if request.metadata is not None and len(orjson.dumps(request.metadata)) > METADATA_BYTES:
            raise InvalidRequest(f"metadata: is larger than {METADATA_BYTES} bytes")
    except orjson.JSONEncodeError as error:
        field = next(name for name in _NUMBERS if not _is_writable(getattr(request, name)))
        raise InvalidRequest(f"{field}: cannot be kept: {error}") from None
    if request.metadata_sealed is not None and len(request.metadata_sealed) > 2 * METADATA_BYTES:
        raise InvalidRequest(f"metadata_sealed: is larger than {2 * METADATA_BYTES} bytes")
