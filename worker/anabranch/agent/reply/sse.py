"""Server-sent events, from the pieces of bytes as they came. PURE.

A piece may hold many events, a part of one, or the half of a character or of a line's end; what a stream begins
without a blank line behind it is no event. Called by `agent/model/anthropic_model.py` for the stream of a reply.
Source: the HTML standard, "Interpreting an event stream".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_MARK: Final = b"\xef\xbb\xbf"
"""A byte order mark, which may stand before a stream."""


class Event(NamedTuple):
    """What one said: its name, if it has one, and its data, lines joined."""

    name: str | None
    data: str


class Events:
    """The events of one stream."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._returned = False  # the last byte was a carriage return, of which a line feed is a part
        self._began = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        """What is complete with this piece; to be exhausted before the next one. Raises `UnicodeDecodeError`."""
        if self._returned or b"\r" in piece:
            piece = self._with_line_feeds(piece)
        held = self._held
        searched = max(0, len(held) - 1)
        held += piece
        end = held.rfind(b"\n\n", searched)
        if end < 0:
            return
        whole = bytes(held[:end])
        del held[: end + 2]
        if not self._began:
            self._began, whole = True, whole.removeprefix(_MARK)
        for block in whole.split(b"\n\n"):
            if (event := _event(block.decode())) is not None:
                yield event

    def _with_line_feeds(self, piece: bytes) -> bytes:
        if self._returned and piece:
            self._returned, piece = False, piece.removeprefix(b"\n")
        self._returned = self._returned or piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _event(block: str) -> Event | None:
    """The event of these lines; None if they carry no data, such as a comment that keeps a connection alive."""
    first, mark, text = block.partition("\ndata: ")
    if mark and "\n" not in text and first[:7] == "event: " and "\n" not in first:  # what nearly all look like
        return Event(first[7:] or None, text) if text else None
    name: str | None = None
    data: list[str] = []
    for line in block.split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value[1:] if value[:1] == " " else value)
        elif field == "event":
            name = (value[1:] if value[:1] == " " else value) or None
    text = "\n".join(data)
    return Event(name, text) if text else None
