"""Which thinking blocks the server issued, so that one that comes back changed is refused.

It must never refuse what it cannot know: a block of another server, or one from before a restart. The server
alone uses it, from one event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anabranch.testing.refusal import refuse

Json = Any  # the provider's blocks, not ours


class Signatures:
    """Pairs of text and signature, as hashes. Past `keep` pairs it forgets them all and begins anew."""

    def __init__(self, keep: int = 100_000) -> None:
        self._keep = keep
        self._pairs: set[tuple[int, int]] = set()
        self._known: set[int] = set()

    def issued(self, content: Iterable[Mapping[str, Json]]) -> None:
        """Remember the thinking blocks of a reply."""
        for block in content:
            if block["type"] == "thinking":
                if len(self._pairs) >= self._keep:
                    self._pairs.clear()
                    self._known.clear()
                pair = _pair(block)
                self._pairs.add(pair)
                self._known.update(pair)

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


def _pair(block: Mapping[str, Json]) -> tuple[int, int]:
    # The tags keep a text apart from a signature that reads the same.
    return hash(("text", block["thinking"])), hash(("signature", block["signature"]))
