"""One block of a reply while it is streamed: which pieces belong to it, and what they make together. PURE.

Nothing is guessed: a piece that does not belong to its block, or of a kind that nobody here knows, is a `Misfit`,
for the block could not go back to the provider as it was. `reply.py` puts the blocks together, and alone calls this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from anabranch.agent.reply.verbatim import items, member, members, with_member


class Misfit(Exception):
    """What cannot be part of a reply. `curable`: another reply may do without it."""

    def __init__(self, reason: str, curable: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.curable = reason, curable


_TEXTS: Final = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("input", "partial_json"),
}
"""What grows by pieces: the kind of a piece, the block's field, and the piece's."""
_FIELD_OF: Final = {kind: name for kind, (name, _) in _TEXTS.items()} | {
    "citations_delta": "citations",
    "compaction_delta": "content",
}
_FIELDS: Final = {
    "text": frozenset({"text", "citations"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset[str](),
    "tool_use": frozenset({"input"}),
    "server_tool_use": frozenset({"input"}),
    "mcp_tool_use": frozenset({"input"}),
    "compaction": frozenset({"content"}),
}
"""Which fields of a block may grow. Of a block that is not listed: those that it began with."""


class Whole(NamedTuple):
    """A block that is whole: what is told of it, its JSON, and what its input is: JSON perhaps, None if it has none."""

    start: dict[str, Any]
    text: str
    input: str | None
    began: str

    def without_input(self) -> str:
        """Its JSON with an empty input, for one that is no JSON."""
        return with_member(self.began, "input", "{}", self.start)


@dataclass(slots=True)
class Block:
    """A block as it began, its JSON, and the pieces that have come since."""

    start: dict[str, Any]
    text: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    citations: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    grown: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """By the kinds of the pieces that have come: the piece's field, and the texts of the field that grows."""
    stopped: bool = False

    def add(self, delta: dict[str, Any], event: str) -> None:
        """Take the piece of an `event`. Raises `Misfit`, or what comes of a wrong shape."""
        kind = delta["type"]
        if self.stopped:
            raise Misfit(f"a {kind} comes after the end of its block")
        if (known := self.grown.get(kind)) is not None:  # as for nearly all
            known[1].append(text_of(delta[known[0]]))
            return
        name = self._grows(kind)
        if kind == "citations_delta":
            self.citations.append(members(members(event)["delta"])["citation"])
        elif kind == "compaction_delta":
            self.replaced.update(members(members(event)["delta"]))
            del self.replaced["type"]
        else:
            piece = _TEXTS[kind][1]
            pieces = self.texts.setdefault(name, [])
            pieces.append(text_of(delta[piece]))
            self.grown[kind] = piece, pieces

    def _grows(self, kind: str) -> str:
        """The field that a piece of this kind makes longer."""
        if kind not in _FIELD_OF:
            raise Misfit(f"delta type {kind!r} is not known to this version of Anabranch", curable=False)
        name, type_ = _FIELD_OF[kind], self.start.get("type")
        if name not in _FIELDS.get(str(type_), self.start):
            raise Misfit(f"a {kind} does not belong to a block of type {type_!r}")
        return name

    def whole(self) -> Whole:
        """Raises `Misfit`. What no piece has changed is as it was written."""
        if not isinstance(self.start.get("type"), str):
            raise Misfit("a block has no type")
        text = self.text
        for name, value in self._grown():
            text = with_member(text, name, value, self.start)
        began = text
        streamed = _one_text(self.texts.get("input", ()))
        if not streamed:
            return Whole(self.start, text, member(text, "input", self.start) if "input" in self.start else None, began)
        if self.start.get("input") not in (None, {}, "") and member(text, "input", self.start) != streamed:
            raise Misfit(f"a {self.start.get('type')} block began with another input than the one that was streamed")
        return Whole(self.start, with_member(text, "input", streamed, self.start), streamed, began)

    def _grown(self) -> Iterator[tuple[str, str]]:
        """The fields that the pieces have changed, but for the input."""
        yield from self.replaced.items()
        for name, pieces in self.texts.items():
            if name != "input":
                text = _one_text([text_of(self.start.get(name) or ""), *pieces])
                yield name, orjson.dumps(text).decode()
        if self.citations:
            known = items(members(self.text)["citations"]) if self.start.get("citations") else ()
            yield "citations", f"[{','.join([*known, *self.citations])}]"


def text_of(value: Any) -> str:
    """A text that must be one. Raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _one_text(pieces: Iterable[str]) -> str:
    """The pieces as one text. A character that was cut in two between them is whole again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Misfit("a text holds half of a surrogate pair, which no text can") from None
