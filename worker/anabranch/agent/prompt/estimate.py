"""How many tokens a model call will be, before it is made. PURE.

What the provider has counted is known exactly: the last reply's prompt, and the reply. Only what has come since is
estimated, from its bytes: the results of the last batch, or all of a run's first request. `fitting.py` decides by it;
`dropping.py` asks for old results.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import orjson

from anabranch.agent.reply.content import head_of
from anabranch.agent.state import Run, Turn
from anabranch.messages import Usage

MOST: Final = 2.5
"""Bytes of a token where there are many: code, numbers, scripts of three bytes a character."""
LEAST: Final = 6.0
"""Bytes of a token where there are few: more than plain prose has."""
USUAL: Final = 3.5
IMAGE: Final = 5000
"""Tokens of the largest image."""
_PDF: Final = 10.0
"""Bytes of a document's base64 that are a token where there are many."""
_REPLY: Final = b'{"role":"assistant","content":'
_MEDIA: Final = b'"base64"'


class Size(NamedTuple):
    """Bytes of text, and how many tokens images and documents have at most."""

    text: int
    media: int = 0

    @property
    def most(self) -> int:
        return math.ceil(self.text / MOST) + self.media

    @property
    def least(self) -> int:
        return int(self.text / LEAST)

    @property
    def usual(self) -> int:
        return math.ceil(self.text / USUAL) + self.media // 3


def size_of(data: bytes) -> Size:
    """Of JSON; the base64 in it is not text."""
    if _MEDIA not in data:
        return Size(len(data))
    try:
        media, base64 = _media_in(orjson.loads(data))
    except orjson.JSONDecodeError:
        return Size(len(data))
    return Size(max(0, len(data) - base64), media)


def _media_in(value: Any) -> tuple[int, int]:
    """Tokens at most, and bytes of base64."""
    if isinstance(value, dict):
        source = value.get("source")
        if isinstance(source, dict) and source.get("type") == "base64":
            size = len(str(source.get("data") or ""))
            return (IMAGE if value.get("type") == "image" else math.ceil(size / _PDF)), size
        value = list(value.values())
    if not isinstance(value, list):
        return 0, 0
    found = [_media_in(item) for item in value if isinstance(item, dict | list)]
    return sum(media for media, _ in found), sum(size for _, size in found)


class Known(NamedTuple):
    """What the provider has counted of a conversation: tokens of the last prompt and reply, of these in its cache."""

    tokens: int = 0
    cached: int = 0


NOTHING: Final = Known()


def known_of(run: Run) -> Known:
    """As of the last reply."""
    return counted(run.turns[-1]) if run.turns else NOTHING


def counted(turn: Turn) -> Known:
    """The conversation up to and with this reply."""
    used = _last_iteration(turn)
    cached = used.cache_read_input_tokens + used.cache_creation_input_tokens
    return Known(used.prompt_tokens + used.output_tokens, cached)


def _last_iteration(turn: Turn) -> Usage:
    """What the reply was charged for, but for the provider's own tools: their loop reads the prompt again and again."""
    if b'"iterations"' not in turn.body[:_HEAD]:
        return turn.usage
    try:
        iterations = orjson.loads(head_of(turn.body))["usage"]["iterations"]
        last = [each for each in iterations if each.get("type") == "message"][-1]
        return Usage(*(int(last.get(name) or 0) for name in _COUNTED))
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return turn.usage


_HEAD: Final = 65_536
_COUNTED: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def fresh_in(body: bytes, known: Known) -> Size:
    """What of a request the provider has not counted yet. `body` is as `conversation.request_body` writes it."""
    if not known.tokens:
        return size_of(body)
    at = body.rfind(b'{"role":"user","content":')  # unescaped: in no text of the conversation
    if at < 0 or body.find(_REPLY, at) >= 0:
        return Size(0)  # it ends with a reply, to go on from
    return size_of(body[at:].removesuffix(b"]}"))
