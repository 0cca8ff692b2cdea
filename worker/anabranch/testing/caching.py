"""The prompt cache of the API, so that a script's usage says what a real one would: what was read, what was written.

The time is given. A request is a row of blocks, tools first, then the system prompt, then the messages; a prefix of it
is known by the hash of all its blocks. A breakpoint finds a prefix that was written at its own place, or up to 19
blocks before it; what is read lives on, and the rest up to the last breakpoint is written. Prefixes of fewer than
`least` tokens are not kept, without a word. `server` asks for each request that it answers.
https://docs.claude.com/en/docs/build-with-claude/prompt-caching
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Final

Json = Any  # a client's request, not ours

LOOK_BACK: Final = 20
"""How many blocks a breakpoint looks at: its own, and those before it."""
KEPT_S: Final = {"5m": 300.0, "1h": 3600.0}


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a prompt: what it says, without its breakpoint, and for how long that one keeps; None: it has none."""

    said: bytes
    ttl: str | None = None


@dataclass(frozen=True, slots=True)
class Cached:
    """Tokens of one request: read, and written for five minutes or an hour."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    def usage(self, tokens: int) -> dict[str, Json]:
        """As the API tells it, of a prompt of so many `tokens`."""
        written = self.written_5m + self.written_1h
        return {
            "input_tokens": max(0, tokens - self.read - written),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": self.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.written_5m,
                "ephemeral_1h_input_tokens": self.written_1h,
            },
        }


UNCACHED: Final = Cached()


class Cache:
    """What was written, by model and prefix, until when. `least` tokens are kept at least, `keep` prefixes at most."""

    def __init__(self, least: int = 1024, keep: int = 100_000) -> None:
        self._least, self._keep = least, keep
        self._until: dict[bytes, tuple[float, str]] = {}

    def use(self, request: Mapping[str, Json], tokens: int, now: float) -> Cached:
        """Look a request of so many `tokens` up, and write what it asks for. `now` is seconds of any clock."""
        if tokens < self._least:
            return UNCACHED
        blocks = list(blocks_of(request))
        sizes = list(accumulate(_tokens(block.said) for block in blocks))
        prefixes = list(_prefixes(request["model"], blocks))
        points = [place for place, block in enumerate(blocks) if block.ttl is not None]
        found = max((place for point in points for place in self._found(prefixes, point, now)), default=-1)
        read = sizes[found] if found >= 0 else 0
        written = {"5m": 0, "1h": 0}
        above = read
        for point in points:
            ttl = blocks[point].ttl or "5m"
            if sizes[point] >= self._least:
                if point > found:
                    written[ttl] += sizes[point] - above
                    above = sizes[point]
                self._write(prefixes[point], ttl, now)
        return Cached(read, written["5m"], written["1h"])

    def _found(self, prefixes: list[bytes], point: int, now: float) -> Iterator[int]:
        """The longest prefix that `point` finds, which lives on by that."""
        for place in range(point, max(-1, point - LOOK_BACK), -1):
            until, ttl = self._until.get(prefixes[place], (0.0, ""))
            if until > now:
                self._write(prefixes[place], ttl, now)
                yield place
                return

    def _write(self, prefix: bytes, ttl: str, now: float) -> None:
        known = self._until.pop(prefix, None)
        if len(self._until) >= self._keep:
            del self._until[next(iter(self._until))]
        until, kept = now + KEPT_S[ttl], ttl
        if known is not None and known[0] > until:
            until, kept = known
        self._until[prefix] = (until, kept)


def blocks_of(request: Mapping[str, Json]) -> Iterator[Block]:
    """The blocks of a request in the order in which they count, with the automatic breakpoint set."""
    blocks = [*_tools(request), *_system(request), *_messages(request)]
    top = request.get("cache_control")
    if top is not None and blocks and blocks[-1].ttl is None:
        blocks[-1] = Block(blocks[-1].said, top.get("ttl", "5m"))
    yield from blocks


def _tools(request: Mapping[str, Json]) -> Iterator[Block]:
    for tool in request.get("tools") or ():
        yield block_of("tool", tool)


def _system(request: Mapping[str, Json]) -> Iterator[Block]:
    yield from _content("system", request.get("system") or [])


def _messages(request: Mapping[str, Json]) -> Iterator[Block]:
    for message in request["messages"]:
        yield from _content(message["role"], message["content"])


def _content(role: str, content: Json) -> Iterator[Block]:
    """A text is a text block: the API renders both alike."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for block in blocks:
        yield block_of(role, block)


def block_of(role: str, value: Mapping[str, Json]) -> Block:
    """One block of a message of `role`, or of the tools or the system prompt."""
    mark = value.get("cache_control")
    said = {name: item for name, item in value.items() if name != "cache_control"}
    return Block(f"{role}{json.dumps(said)}".encode(), None if mark is None else mark.get("ttl", "5m"))


def _prefixes(model: str, blocks: list[Block]) -> Iterator[bytes]:
    known = blake2b(model.encode(), digest_size=16)
    for block in blocks:
        known.update(b"%d:" % len(block.said) + block.said)
        yield known.digest()


def _tokens(said: bytes) -> int:
    return -(-len(said) // 4)
