"""The content of a reply as the log has it: the bytes of a JSON list, wherever it lies. PURE.

It is the last of a reply's fields (`reply.py` writes it there), so that it can be cut out without being read, and what
stands before it is read without it. It goes back to the provider as it came, but for blocks that are left out of it:
those that say nothing, and what another model thought. Called by whoever needs a reply again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from anabranch.agent.reply.referring import content_elsewhere
from anabranch.agent.reply.verbatim import is_json, items, members, written

Found = Mapping[str, bytes]
"""What was fetched from the store and opened, by what stands in its place: all that `agent.large.needed` names."""
NOTHING: Final[Found] = {}
_BEGINS: Final = b',"content":['
_THINKING: Final = ("thinking", "redacted_thinking")
_BLANK: Final = re.compile(rb'"text"\s*:\s*"(?: |\\[fnrt]|\\u[0-9a-fA-F]{4})*"')
"""Where a text may have nothing in it."""


def head_of(body: bytes) -> bytes:
    """A reply without its content."""
    at = body.find(_BEGINS)
    return body if at < 0 else body[:at] + b"}"


def content_of(body: bytes, found: Found = NOTHING) -> bytes:
    """The content of a reply."""
    if (elsewhere := content_elsewhere(body)) is not None:
        return found[elsewhere]
    at = body.find(_BEGINS)
    if at >= 0 and body.endswith(b"]}") and is_json(body[:at] + b"}"):  # else it is inside of something
        return body[at + len(_BEGINS) - 1 : -1]
    return members(body.decode())["content"].encode()


def without_blanks(content: bytes) -> bytes:
    """Without texts that say nothing: the provider gives such, and refuses to get them back. See
    https://github.com/anthropics/anthropic-sdk-python/issues/461.
    """
    return content if _BLANK.search(content) is None else _without(_is_blank, content)


def without_thinking(content: bytes) -> bytes:
    """Without the blocks that think."""
    return content if b"thinking" not in content else _without(_thinks, content)


def _without(is_out: Callable[[Any], bool], content: bytes) -> bytes:
    """The blocks that stay are the bytes that they were."""
    blocks = list(items(content.decode()))
    kept = [block for block in blocks if not is_out(json.loads(block))]
    return f"[{','.join(kept)}]".encode() if len(kept) < len(blocks) else content


def _is_blank(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and not str(block.get("text")).strip()


def _thinks(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in _THINKING


def without_thoughts(request: bytes) -> bytes:
    """A whole request without anything that was thought; the rest stays the bytes that it is."""
    fields = members(request.decode())
    kept = [message for message in map(_without_thoughts, items(fields["messages"])) if message is not None]
    return written({**fields, "messages": f"[{','.join(kept)}]"}).encode()


def _without_thoughts(message: str) -> str | None:
    """None if it was all thinking."""
    fields = members(message)
    content = without_thinking(fields["content"].encode()).decode() if fields["content"][0] == "[" else ""
    return None if content == "[]" else written({**fields, "content": content}) if content else message
