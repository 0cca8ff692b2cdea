"""Turns what a tool returns into the content of its result: a text, or content blocks.

Pure. Whatever leaves here can be written as JSON in UTF-8 and is a form that the Messages API takes in a
`tool_result`. Must never drop anything silently: what is cut says so. Called by users' tools (`text`,
`image`), and by the tool executor where a tool runs (`to_content`, `cut`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from types import GeneratorType
from typing import Any, Final, TypeGuard

import orjson
from pydantic_core import PydanticSerializationError, to_json

from anabranch.errors import AnabranchError
from anabranch.fields import Content, Json
from anabranch.result_blocks import OTHERS, SHAPES, mistake_in, mistake_in_type

Block = dict[str, Json]

_EXTRAS: Final = frozenset(extra for extras in OTHERS.values() for extra in extras)


class ResultError(AnabranchError):
    """A tool returned what cannot be given to the model; the message says which type and what to return."""


def text(value: str) -> Block:
    """A text block."""
    return {"type": "text", "text": _clean(value)}


def image(data: bytes, media_type: str) -> Block:
    """An image block with the image in it; `media_type` is that of a JPEG, PNG, GIF or WebP, else `ResultError`."""
    _refuse(mistake_in_type(media_type))
    if not isinstance(data, bytes | bytearray | memoryview) or not data:
        raise ResultError(f"an image needs its bytes, not {type(data).__name__!r} or nothing")
    encoded = base64.standard_b64encode(data).decode("ascii")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}


def to_content(value: object) -> Content:
    """A tool's return value as the content of its result.

    A text stays as it is, a content block or a list of them (texts among them become blocks) stay blocks;
    anything else becomes JSON: `None` is `null`, and so are NaN and the infinities. A lone surrogate in a
    text becomes U+FFFD. It may run code of the tool's own (a generator in a list, a serializer), so it belongs where
    the tool runs, under its timeout. Raises `ResultError` for what has no JSON, and for a generator.
    """
    if isinstance(value, str):
        return _clean(value)
    if _is_block(value):
        return _blocks([value])
    if isinstance(value, list | tuple) and _are_blocks(value):
        return _blocks(value)
    if isinstance(value, GeneratorType):
        raise ResultError(
            "the tool returned a generator, whose values are not there yet: it should return a list of them"
        )
    return _json(value)


def cut(content: Content, max_bytes: int) -> Content:
    """`content` with at most `max_bytes` bytes of it, and a notice with the original size where it was cut.

    Texts are cut between two characters. A block of another type counts as the JSON that it is, and one that
    does not fit is replaced by a text that says so. The notices come on top of `max_bytes`.
    """
    if isinstance(content, str):
        return _cut_text(content, max_bytes)
    shown: list[Block] = []
    left = max_bytes
    for place, block in enumerate(content):
        size = _size(block)
        if size <= left:
            shown.append(block)
            left -= size
        elif left == 0 and shown:
            shown.append(text(f"[cut: {len(content) - place:,} more blocks are not shown]"))
            break
        elif block["type"] == "text":
            shown.append({**block, "text": _cut_text(block["text"], left)})
            left = 0
        else:
            shown.append(text(f"[{_kind(block)} of {size:,} bytes not shown: the limit is {max_bytes:,} bytes]"))
    return shown


# --- blocks -----------------------------------------------------------------------------------------


def _is_block(value: object) -> TypeGuard[Block]:
    """Whether a dict has the shape of a block: a tool's own `{"type": "text", ...}` with other fields has not."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    kind = value["type"]
    shape = SHAPES.get(kind)
    if shape is None or not all(isinstance(value.get(name), kind) for name, kind in shape.items()):
        return False
    source = value.get("source")
    extras = OTHERS[kind] if kind == "text" else _EXTRAS  # what else has its shape is hardly a tool's own
    return set(value) <= {"type", *shape, *extras} and (not isinstance(source, dict) or "type" in source)


def _are_blocks(values: Sequence[object]) -> bool:
    return any(map(_is_block, values)) and all(isinstance(v, str) or _is_block(v) for v in values)


def _blocks(values: Sequence[Any]) -> Content:
    """The API refuses a text block without text, so these are left out; nothing left is the empty text."""
    blocks = [text(value) if isinstance(value, str) else value for value in values]
    blocks = [{**b, "text": _clean(b["text"])} if b["type"] == "text" else b for b in blocks]
    kept = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
    try:
        orjson.dumps(kept)
    except orjson.JSONEncodeError as error:
        raise ResultError(f"a content block that the tool returned cannot be written as JSON: {error}") from error
    for block in kept:
        _refuse(mistake_in(block), f"a block of type {block['type']!r}: ")
    return kept or ""


def _refuse(mistake: str | None, where: str = "") -> None:
    if mistake is not None:
        raise ResultError(f"{where}{mistake}")


def _size(block: Block) -> int:
    return len(block["text"].encode()) if block["type"] == "text" else len(orjson.dumps(block))


def _kind(block: Block) -> str:
    source = block.get("source")
    media = source.get("media_type") if isinstance(source, dict) else None
    return str(media or block["type"])


# --- texts ------------------------------------------------------------------------------------------


def _clean(value: str) -> str:
    """Python's strings may hold half a character (a lone surrogate), which UTF-8 and so JSON cannot."""
    if value.isascii():
        return str.__str__(value)
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _cut_text(value: str, max_bytes: int) -> str:
    data = value.encode()
    if len(data) <= max_bytes:
        return value
    kept = data[:max_bytes].decode("utf-8", "ignore")
    return f"{kept}... [cut: {len(kept.encode()):,} of {len(data):,} bytes shown]"


def _json(value: object) -> str:
    try:
        data = to_json(value, inf_nan_mode="null")
        if b"NaN" in data or b"Infinity" in data:
            data = _without_constants(data)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(
            f"the tool returned a {_type_name(value)}, which cannot be turned into JSON ({_reason(error)}); it should "
            "return a string, a pydantic model or dataclass, a value of JSON, or content blocks"
        ) from error
    return data.decode()


def _without_constants(data: bytes) -> bytes:
    """A model configured to write `NaN` writes what is no JSON. The words may also stand in a text."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return to_json(json.loads(data, parse_constant=lambda _: None))
    return data


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _reason(error: Exception) -> str:
    lines = _clean(str(error)).splitlines()
    return lines[0][:300] if lines else type(error).__name__
