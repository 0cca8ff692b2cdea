"""What the Messages API takes in the content blocks of a result, field by field. PURE.

It refuses the whole conversation for one block that it does not take, and that would end the run. Asked first, only the
call of that block fails. Must never repair or drop anything. Called by `content.py` where a tool returns them, and by
`agent/prompt/conversation.py`, for a result may be of somebody else's tool worker.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Mapping
from typing import Final

from anabranch.fields import Json

Block = Mapping[str, Json]

IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")

SHAPES: Final[Mapping[str, Mapping[str, type]]] = {
    "text": {"text": str},
    "image": {"source": dict},
    "document": {"source": dict},
    "search_result": {"source": str, "title": str, "content": list},
}
"""The blocks that a `tool_result` may hold, and the fields without which they are none."""

Check = tuple[Callable[[Json], bool], str]

_ANY: Final[Check] = (lambda value: True, "anything")
_TEXT: Final[Check] = (lambda value: isinstance(value, str), "a text")
_OBJECT: Final[Check] = (lambda value: isinstance(value, dict), "an object")
_SWITCH: Final[Check] = (
    lambda value: value in ({}, {"enabled": True}, {"enabled": False}),
    "{'enabled': True or False}",
)
_CITED: Final[Check] = (
    lambda value: isinstance(value, list) and all(map(_is_citation, value)),
    "a list of citations, as the API gives them",
)
OTHERS: Final[Mapping[str, Mapping[str, Check]]] = {
    "text": {"cache_control": _ANY, "citations": _CITED},
    "image": {"cache_control": _ANY, "transformations": _OBJECT},
    "document": {"cache_control": _ANY, "citations": _SWITCH, "title": _TEXT, "context": _TEXT},
    "search_result": {"cache_control": _ANY, "citations": _SWITCH},
}
"""The fields that they may have besides, or leave null. Breakpoints are left out when the request is made."""

_MEDIA: Final[Mapping[tuple[str, str], Collection[str]]] = {
    ("image", "base64"): IMAGE_TYPES,
    ("document", "base64"): ("application/pdf",),
    ("document", "text"): ("text/plain",),
}
_SOURCES: Final[Mapping[str, Mapping[str, Collection[str]]]] = {
    "image": {"base64": ("media_type", "data"), "url": ("url",), "file": ("file_id",)},
    "document": {
        "base64": ("media_type", "data"),
        "text": ("media_type", "data"),
        "content": ("content",),
        "url": ("url",),
        "file": ("file_id",),
    },
}
_BASE64: Final = (string.ascii_letters + string.digits + "+/").encode()
_URL: Final = re.compile(r"https?://\S+", re.IGNORECASE)


def is_taken(value: Json) -> bool:
    """Whether it is a block that the API takes in a result."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str) or value["type"] not in SHAPES:
        return False
    return _mistake_in_shape(value) is None and mistake_in(value) is None


def mistake_in(block: Block) -> str | None:
    """Why the API would refuse a block that has its `SHAPES`; None: it takes it."""
    kind = block["type"]
    if unknown := sorted(set(block) - {"type", *SHAPES[kind], *OTHERS[kind]}):
        return f"a block of type {kind!r} has no {', '.join(map(repr, unknown))}: leave it out"
    for name, (is_right, said) in OTHERS[kind].items():
        value = block.get(name)
        if value is not None and not is_right(value):
            return f"{name}={value!r:.80} must be {said}"
    match kind:
        case "text":
            return None
        case "search_result":
            return _mistake_in_content(block["content"], ("text",))
        case _:
            return _mistake_in_source(kind, block["source"])


def mistake_in_type(media_type: Json, allowed: Collection[str] = IMAGE_TYPES) -> str | None:
    """Why the API takes nothing of this media type."""
    if media_type in allowed:
        return None
    what = "an image" if allowed is IMAGE_TYPES else "a document"
    return f"{what} of type {media_type!r} is not taken: use one of {', '.join(allowed)}"


def _is_citation(value: Json) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("cited_text"), str)
        and str(value.get("type")).endswith("_location")
    )


def _mistake_in_content(content: Json, kinds: Collection[str]) -> str | None:
    """Of the blocks inside of a block."""
    for place, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") not in kinds:
            return f"content.{place} must be a block of type {' or '.join(kinds)}"
        if (mistake := _mistake_in_shape(block) or mistake_in(block)) is not None:
            return f"content.{place}: {mistake}"
    return None


def _mistake_in_shape(block: Block) -> str | None:
    shape = SHAPES[block["type"]]
    if not all(isinstance(block.get(name), kind) for name, kind in shape.items()):
        return f"it must have {', '.join(shape)}"
    if block["type"] == "text" and not block["text"].strip():
        return "its text is blank: leave it out"
    return None


def _mistake_in_source(kind: str, source: Block) -> str | None:
    sources, given = _SOURCES[kind], source.get("type")
    if not isinstance(given, str) or given not in sources:
        return f"source.type={given!r} must be one of {', '.join(map(repr, sources))}"
    if set(source) != {"type", *sources[given]}:
        return f"a source of type {given!r} must have {' and '.join(sources[given])}, and nothing else"
    if given == "content" and isinstance(source["content"], list):
        mistake = _mistake_in_content(source["content"], ("text", "image"))
        return None if mistake is None else f"source.{mistake}"
    for name in sources[given]:
        if not isinstance(source[name], str) or not source[name].strip():
            return f"source.{name} must be a text, and not an empty one"
    if (media := _MEDIA.get((kind, given))) and (mistake := mistake_in_type(source["media_type"], media)):
        return mistake
    if given == "base64" and not _is_base64(source["data"]):
        return "source.data must be base64, and nothing else (no 'data:' in front)"
    if given == "url" and not _URL.fullmatch(source["url"]):
        return f"source.url={source['url']!r} must be an address that begins with https://"
    return None


def _is_base64(text: str) -> bool:
    data = text.encode("utf-8", "replace")
    padding = len(data) - len(data.rstrip(b"="))
    return len(data) % 4 == 0 and padding <= 2 and not data[: len(data) - padding].translate(None, _BASE64)
