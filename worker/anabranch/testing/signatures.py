"""Which thinking blocks the server issued, so that one that comes back changed is refused; and if the server binds
them, one that comes back behind something else than it was thought of.

It must never refuse what it cannot know: a block of another server, or one from before a restart. The server
alone uses it, from one event loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from anabranch.testing.caching import Block, block_of, blocks_of
from anabranch.testing.refusal import refuse
from anabranch.testing.replies import text

Hash = Any  # hashlib has no public name for what its functions return

Json = Any  # the provider's blocks, not ours


class Signatures:
    """Pairs of text and signature, as hashes. Past `keep` pairs it forgets them all and begins anew.

    If it `binds`, what stood before a block must stay: system prompt, tools and messages, but for what was thought.
    https://docs.claude.com/en/docs/build-with-claude/preserved-thinking
    """

    def __init__(self, keep: int = 100_000, binds: bool = False) -> None:
        self._keep, self._binds = keep, binds
        self._pairs: set[tuple[int, int]] = set()
        self._known: set[int] = set()
        self._before: dict[tuple[int, int], set[bytes]] = {}

    def issued(self, content: Iterable[Mapping[str, Json]], request: Mapping[str, Json] | None = None) -> None:
        """Remember the thinking blocks of a reply to `request`."""
        before = _hash_of(blocks_of(request)) if self._binds and request is not None else None
        for block in content:
            if block["type"] == "thinking":
                if len(self._pairs) >= self._keep:
                    self._pairs.clear()
                    self._known.clear()
                    self._before.clear()
                pair = _pair(block)
                self._pairs.add(pair)
                self._known.update(pair)
                if before is not None:
                    self._before.setdefault(pair, set()).add(before.digest())
            elif before is not None:
                _add(before, "assistant", block)

    def check_binding(self, request: Mapping[str, Json]) -> None:
        """Refuse a request that has changed what stands before a thinking block."""
        if not self._before:
            return
        before = _hash_of(blocks_of({**request, "messages": []}))
        for place, message in enumerate(request["messages"]):
            content = message["content"]
            for index, block in enumerate(content if isinstance(content, list) else [text(content)]):
                if block["type"] != "thinking":
                    _add(before, message["role"], block)
                elif before.digest() not in self._before.get(_pair(block), {before.digest()}):
                    refuse(
                        f"messages.{place}.content.{index}: Invalid `signature` in `thinking` block. The block is "
                        "bound to a different conversation. Remove the block, or set "
                        '`thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
                    )

    def check(self, messages: Iterable[Mapping[str, Json]]) -> None:
        """Refuse messages with a thinking block whose text or signature is not as it was issued."""
        if not self._pairs:
            return
        for place, message in enumerate(messages):
            content = message["content"] if isinstance(message["content"], list) else ()
            for index, block in enumerate(content):
                if block["type"] == "thinking" and self._changed(_pair(block)):
                    refuse(
                        f"messages.{place}.content.{index}: Invalid `signature` in `thinking` block: "
                        "thinking blocks must remain as they were in the original response"
                    )

    def _changed(self, pair: tuple[int, int]) -> bool:
        return pair not in self._pairs and not self._known.isdisjoint(pair)


def _hash_of(blocks: Iterable[Block]) -> Hash:
    """Of all that is said, but for what was thought."""
    known = blake2b(digest_size=16)
    for block in blocks:
        if b'"type": "thinking"' not in block.said[:60]:
            known.update(block.said)
    return known


def _add(before: Hash, role: str, block: Mapping[str, Json]) -> None:
    value = block.get("input")
    before.update(block_of(role, {**block, "input": json.loads(value)} if isinstance(value, str) else block).said)


def _pair(block: Mapping[str, Json]) -> tuple[int, int]:
    # The tags keep a text apart from a signature that reads the same.
    return hash(("text", block["thinking"])), hash(("signature", block["signature"]))
