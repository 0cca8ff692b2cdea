"""Where the provider is to keep what it has read: the breakpoints of a request's cache. PURE.

A prefix that was written at a breakpoint is found again from a breakpoint at the same place, or from one less than 20
blocks behind it. A turn of ten calls adds more than that, so each request has two at the end of the conversation: one
where the request before it had its last, which is read there exactly, and one behind what has come since, which is
written. A third stands behind the tools and the system prompt, which other runs of the agent read, too. A request may
have four; those that the user has placed count, and win. `conversation.py` asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import orjson

from anabranch.specs import AgentSpec
from anabranch.values import frozen

MOST: Final = 4
"""How many breakpoints the provider takes in one request."""
WORTH: Final = 2048
"""Bytes of a first message below which it is not worth a breakpoint: it would rarely be kept."""
_MARKABLE: Final = ("text", "image", "document", "search_result", "tool_result", "tool_use")
Mark = dict[str, str]
"""What a block says to be a breakpoint."""
Kept = Literal["5m", "1h"]
"""How long the provider keeps what it has read up to a breakpoint."""
MARKS: Final[Mapping[Kept, Mark]] = {"5m": {"type": "ephemeral"}, "1h": {"type": "ephemeral", "ttl": "1h"}}


@frozen()
class Breakpoints:
    """Those that we place; None: none there. `system` is behind tools and system prompt, `anchor` where the request
    before had its last one, `tail` behind all that is said.
    """

    system: Kept | None = None
    anchor: Kept | None = None
    tail: Kept | None = None


NONE: Final = Breakpoints()


def breakpoints(agent: AgentSpec, own: Sequence[Any], goes_on: bool) -> Breakpoints:
    """For a request whose first messages have breakpoints of their `own`; `goes_on`: more turns are to be expected."""
    if agent.caching == "off":
        return NONE
    top = agent.options.get("cache_control")
    others = [*_marks_of(agent.options.get("system")), *_marks_of(agent.server_tools)]
    left = MOST - len(own) - len(others) - (top is not None)
    # A longer one may not come behind a shorter one: the user's decide for those in front of them and behind them.
    before: Kept = "1h" if any(map(_is_hour, [*own, top])) else agent.caching
    behind: Kept = agent.caching if all(map(_is_hour, own)) else "5m"
    behind = "1h" if _is_hour(top) else behind
    marks = {"tail": behind, "anchor": behind, "system": before}
    if not goes_on:
        del marks["tail"], marks["anchor"]
    elif top is not None:
        del marks["tail"]  # the provider sets it by itself
    return Breakpoints(**{name: marks[name] for name in list(marks)[: max(0, left)]})


def _is_hour(mark: Any) -> bool:
    return isinstance(mark, dict) and mark.get("ttl") == "1h"


def marks_in(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """The breakpoints that the user has placed in messages."""
    return [mark for message in messages for mark in _marks_of(message.get("content"))]


def _marks_of(content: Any) -> list[Any]:
    found: list[Any] = []
    if not isinstance(content, list):
        return found
    for block in content:
        if isinstance(block, dict):
            if block.get("cache_control") is not None:
                found.append(block["cache_control"])
            found += _marks_of(block.get("content"))
    return found


def is_worth(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the messages that a run begins with are worth a breakpoint, and their last block can be one."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        last = content[-1] if content else None
        if not isinstance(last, dict) or last.get("type") not in _MARKABLE or "cache_control" in last:
            return False
        if last["type"] == "text" and not str(last.get("text") or "").strip():
            return False
    elif not isinstance(content, str) or not content.strip():
        return False
    return len(orjson.dumps(messages)) >= WORTH


def marked(messages: Sequence[dict[str, Any]], kept: Kept | None) -> list[dict[str, Any]]:
    """The messages with their last block as a breakpoint. A text becomes a block in any case: it must look the same
    in the turns after this one, which do not mark it.
    """
    last = messages[-1]
    content = last["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if kept is not None:
        blocks[-1] = {**blocks[-1], "cache_control": MARKS[kept]}
    return [*messages[:-1], {**last, "content": blocks}]
