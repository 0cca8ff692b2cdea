"""Server-sent events, however the bytes are cut: the same events as the SDK's own decoder finds.

Called by: pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from anthropic import Stream
from hypothesis import given
from hypothesis import strategies as st

from anabranch.agent.reply.sse import Event, Events

ENDS = st.sampled_from(["\n", "\r\n", "\r"])
WORDS = st.text('ab: é\u2028\U0001f600{}"', max_size=6)
LINES = st.one_of(
    st.builds("data: {}".format, WORDS),
    st.builds("data:{}".format, WORDS),
    st.builds("event: {}".format, st.sampled_from(["", "ping", "message_stop"])),
    st.builds(": {}".format, WORDS),
    st.sampled_from(["", "", "data", "retry: 5", "unknown: x", "event"]),
)


@dataclass
class Whole:
    """As much of a response as the SDK's decoder asks for."""

    body: bytes

    def iter_bytes(self) -> Iterator[bytes]:
        yield self.body


def found(*pieces: bytes) -> list[Event]:
    events = Events()
    return [event for piece in pieces for event in events.feed(piece)]


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 10_000), max_size=8))
def test_a_stream_has_the_same_events_however_it_is_cut(lines: list[tuple[str, str]], at: list[int]) -> None:
    stream = "".join(line + end for line, end in lines).encode()
    assert found(*cut(stream, at)) == found(*(stream[i : i + 1] for i in range(len(stream)))) == found(stream)


@given(st.lists(LINES, max_size=12), ENDS)
def test_they_are_those_that_the_sdk_finds(lines: list[str], end: str) -> None:
    stream = "".join(line + end for line in lines).encode()
    theirs = Stream.raw_events(cast(Any, Whole(stream)))
    assert found(stream) == [Event(event.event, event.data) for event in theirs if event.data]


def test_an_event_is_told_of_as_soon_as_its_blank_line_is_there() -> None:
    events = Events()
    assert list(events.feed(b"event: a\r\ndata: 1\r\n\r")) == [Event("a", "1")]
    assert list(events.feed(b"\ndata: 2\n")) == []
    assert list(events.feed(b"\n")) == [Event(None, "2")]


def test_what_has_no_blank_line_behind_it_is_no_event() -> None:
    assert found(b"data: 1\n\ndata: 2\n") == [Event(None, "1")]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_byte_order_mark_before_the_stream_is_no_part_of_it(size: int) -> None:
    stream = "\ufeffdata: \ufeff1\n\n\ufeffdata: 2\n\n".encode()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert found(*pieces) == [Event(None, "\ufeff1")]


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        found(b"data: \xff\n\n")


def test_a_large_event_in_small_pieces_takes_time_in_proportion() -> None:
    data = b"data: " + b"x" * 4_000_000 + b"\n\n"
    [event] = found(*(data[i : i + 1000] for i in range(0, len(data), 1000)))
    assert len(event.data) == 4_000_000
