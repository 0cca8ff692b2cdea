"""Whole replies of the Messages API, in every way in which a server may write them, over a real connection.

Responsible for: that `AnthropicModel` takes each, and keeps every byte of what comes back to the provider.
Must never: run a fleet or start a broker.
Called by: pytest.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable

import orjson
import pytest
from tests.support.attempt import HELLO, asked, asked_each, streamed
from tests.support.stream import Event, block, called, delta, end, json_of, said, sse, start
from tests.support.wire import chunked, head, http

from anabranch.agent.reply.content import content_of

PING = b'event: ping\ndata: {"type": "ping"}\n\n'


# --- how a stream may look and still be right -----------------------------------------------------------------------

WHOLE = sse(HELLO)


def without_names(events: Iterable[Event]) -> bytes:
    return b"".join(b"data: %b\n\n" % json_of(event) for event in events)


def only_names(events: Iterable[Event]) -> bytes:
    """The type stands in the event's name alone."""
    return sse(events).replace(b'"type":"message_stop"', b'"x":0').replace(b'"type":"content_block_stop",', b"")


def on_many_lines(events: Iterable[Event]) -> bytes:
    return b"".join(
        b"".join(b"data: %b\n" % line for line in orjson.dumps(event, option=orjson.OPT_INDENT_2).split(b"\n")) + b"\n"
        for event in events
    )


WRITTEN = {
    "with its length": http(WHOLE),
    "in chunks": chunked([WHOLE[:100], WHOLE[100:]]),
    "a byte a chunk": chunked(WHOLE[i : i + 1] for i in range(len(WHOLE))),
    "until the connection closes": head() + WHOLE,
    "with CRLF": http(WHOLE.replace(b"\n", b"\r\n")),
    "with CR": http(WHOLE.replace(b"\n", b"\r")),
    "without a space behind the colon": http(WHOLE.replace(b": ", b":")),
    "without names": http(without_names(HELLO)),
    "with types in the names alone": http(only_names(HELLO)),
    "on many lines": http(on_many_lines(HELLO)),
    "with comments, ids and retries": http(b": hello\n\nid: 7\nretry: 5\n" + WHOLE.replace(b"\n\n", b"\n\n: so\n\n")),
    "with pings": http(PING + WHOLE.replace(b"\n\n", b"\n\n" + PING)),
    "with pings that have no name": http(WHOLE.replace(b"\n\n", b'\n\ndata: {"type": "ping"}\n\n')),
    "behind a byte order mark": http(b"\xef\xbb\xbf" + without_names(HELLO)),
    "behind a byte order mark in pieces": chunked([b"\xef", b"\xbb", b"\xbf", without_names(HELLO)]),
    "gzipped": http(gzip.compress(WHOLE), headers={"content-encoding": "gzip"}),
    "gzipped in chunks": chunked(
        [gzip.compress(WHOLE)[:50], gzip.compress(WHOLE)[50:]], headers={"content-encoding": "gzip"}
    ),
    "deflated": http(zlib.compress(WHOLE), headers={"content-encoding": "deflate"}),
    "without a content type": http(WHOLE, kind=None),
    "as plain text": http(WHOLE, kind="text/plain"),
    "with events that nobody knows": http(WHOLE.replace(b"\n\n", b'\n\nevent: new\ndata: {"type": "new"}\n\n', 3)),
    "with more behind its end": http(WHOLE + sse([*said(1, "more"), {"type": "error", "error": {"type": "x"}}])),
    "without its last event": http(sse(HELLO[:-1])),
    "without the end of its last event": http(WHOLE + b"data: {"),
    "with two ends that agree": http(sse([*HELLO[:-1], *end(output_tokens=9)])),
    "with a second end that says only more usage": http(
        sse([start(), *said(0, "Hel", "lo"), end(output_tokens=3)[0], *end(None, output_tokens=9)])
    ),
    "broken off behind its end": head(headers={"content-length": "9999"}) + sse(HELLO[:-1]),
    "cut off behind its end, in chunks": chunked([sse(HELLO[:-1])], ends=False),
    "as one document": http(
        b'{"id":"msg","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"Hello"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":7,"output_tokens":9}}',
        kind="application/json",
    ),
}


@pytest.mark.parametrize("how", WRITTEN)
async def test_a_whole_reply_is_taken_however_it_is_written(how: str) -> None:
    found = await asked(WRITTEN[how])
    assert found.content == [{"type": "text", "text": "Hello"}]
    assert (found.reply.outcome, found.reply.stop_reason) == ("final", "end_turn")
    assert found.reply.usage == {"input_tokens": 7, "output_tokens": 9}
    assert all(event["type"] != "ping" for event in found.heard)


async def test_a_character_may_be_cut_between_two_chunks() -> None:
    stream = sse([start(), *said(0, "é世界😀"), *end()])
    cuts = [chunked([stream[:at], stream[at:]]) for at in range(1, len(stream), 5)]
    assert {found.content[0]["text"] for found in await asked_each(cuts)} == {"é世界😀"}


@pytest.mark.parametrize("kind", ["text", "thinking", "input"])
async def test_a_character_that_was_cut_between_two_events_is_one_again(kind: str) -> None:
    """A server that counts in UTF-16 sends half of a surrogate pair in one delta, and half in the next."""
    key = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"), "input": ("input_json_delta",
           "partial_json")}[kind]  # fmt: skip
    content = {"text": {"type": "text", "text": ""}, "thinking": {"type": "thinking", "thinking": "", "signature": "s"},
               "input": {"type": "tool_use", "id": "tu", "name": "t", "input": {}}}[kind]  # fmt: skip
    pieces = ('{"a":"' if kind == "input" else "so ", "\ud83d", "\ude00", '"}' if kind == "input" else "!")
    deltas = [json.dumps(delta(0, {"type": key[0], key[1]: piece})).encode() for piece in pieces]
    begin, stop = block(0, content)
    found = await streamed([start(), begin, *deltas, stop, *end("tool_use" if kind == "input" else "end_turn")])
    assert found.content[0][kind] == ({"a": "😀"} if kind == "input" else "so 😀!")
    assert orjson.dumps(found.heard), "those who watch get what can be written"


# --- what is kept, to the byte --------------------------------------------------------------------------------------

EXACT = '{"price": 1.10, "id":12345678901234567890123,\n "s":"\\u00e9\\ud83d\\ude00", "b":2, "a":1e5, "b":3}'
BLOCKS = {
    "an input": (b'{"type":"tool_use","id":"tu","name":"t","input":{},"caller":{"type":"direct","n":1.0}}', EXACT),
    "no input": (b'{"type":"tool_use","id":"tu","name":"t","input":{}}', ""),
    "an input with its start": (b'{"type":"tool_use","id":"x","name":"t","input":{ "n": 1.10, "\\u00e9":1,"n":2}}', ""),
    "an input of a server tool": (b'{"type":"server_tool_use","id":"srvtoolu_1","name":"w","input":{}}', EXACT),
    "an input of an mcp tool": (b'{"type":"mcp_tool_use","id":"m","name":"w","server_name":"s","input":{}}', EXACT),
    "an mcp result": (b'{"type":"mcp_tool_result","tool_use_id":"m","is_error":false,"content":[{"n":1.10}]}', ""),
    "a search result": (b'{"type":"web_search_tool_result","tool_use_id":"s","content":[{"e":"x==","n":1.0}]}', ""),
    "a code result": (b'{"type":"code_execution_tool_result","content":{"stdout":"\\u0000","return_code":0}}', ""),
    "a key in disguise": (b'{"type":"hologram","\\u0069nput":{"input":{}},"x":"input"}', ""),
    "redacted thinking": (b'{"type":"redacted_thinking","data":"EmwKAhgB=="}', ""),
    "an unknown block": (b'{"type":"hologram","depth":1.10,"n":12345678901234567890123,"deep":[{"x":[1e5,null]}]}', ""),
    "a block with unknown fields": (b'{"type":"text","text":"x","citations":null,"mood":{"level":0.10}}', ""),
}  # fmt: skip


@pytest.mark.parametrize("what", BLOCKS)
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_block_is_kept_to_the_byte(what: str, streaming: bool) -> None:
    raw, streamed_input = BLOCKS[what]
    expected = raw.replace(b'"input":{}', b'"input":' + streamed_input.encode()) if streamed_input else raw
    stop = "tool_use" if b'"tool_use"' in raw else "end_turn"
    if streaming:
        began = b'{"type":"content_block_start","index":0,"content_block":' + raw + b"}"
        pieces = [streamed_input[i : i + 7] for i in range(0, len(streamed_input), 7)]
        sent = ["", *pieces] if pieces else []
        deltas = [delta(0, {"type": "input_json_delta", "partial_json": piece}) for piece in sent]
        found = await streamed([start(), began, *deltas, {"type": "content_block_stop", "index": 0}, *end(stop)])
        assert content_of(found.reply.body) == b"[" + expected + b"]"
    else:
        document = b'{"id":"m","content":[' + raw + b'],"stop_reason":"' + stop.encode() + b'","usage":{}}'
        found = await asked(http(document, kind="application/json"))
        assert content_of(found.reply.body) == b"[" + raw + b"]"
    assert len(found.reply.calls) == (stop == "tool_use")


async def test_text_that_came_with_the_start_of_its_block_comes_first() -> None:
    pieces = [{"type": "text_delta", "text": "lo"}, {"type": "text_delta", "text": ""}]
    found = await streamed([start(), *block(0, {"type": "text", "text": "Hel"}, *pieces), *end()])
    assert found.content == [{"type": "text", "text": "Hello"}]


async def test_thinking_its_signature_and_citations_are_put_together() -> None:
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": "h"}, {"type": "thinking_delta", "thinking": "m"},
              *({"type": "signature_delta", "signature": piece} for piece in ("EqQB/+", "aZ=="))]  # fmt: skip
    cited = b'{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{"n":1.10}}}'
    text, stop = block(1, {"type": "text", "text": "", "citations": []})
    found = await streamed([start(), *block(0, thinking, *deltas), text, cited, stop, *end()])
    assert content_of(found.reply.body) == (
        b'[{"type":"thinking","thinking":"hm","signature":"EqQB/+aZ=="},'
        b'{"type":"text","text":"","citations":[{"n":1.10}]}]'
    )


async def test_a_compaction_is_kept_as_its_delta_says() -> None:
    block_start = (
        b'{"type":"content_block_start","index":0,"content_block":{"type":"compaction","content":null,"n":1.0}}'
    )
    piece = b'{"type":"content_block_delta","index":0,"delta":{"type":"compaction_delta","content":"so \\u00e9"}}'
    found = await streamed([start(), block_start, piece, {"type": "content_block_stop", "index": 0}, *end()])
    assert content_of(found.reply.body) == b'[{"type":"compaction","content":"so \\u00e9","n":1.0}]'


async def test_interleaved_blocks_are_told_apart_by_their_index() -> None:
    first, second = called(0, '{"a":', "1}", tool_use_id="x"), called(1, '{"b":', "2}", tool_use_id="y")
    mixed = [event for pair in zip(first, second, strict=True) for event in pair]
    found = await streamed([start(), *mixed, *end("tool_use")])
    assert [(call.tool_use_id, call.input) for call in found.reply.calls] == [("x", {"a": 1}), ("y", {"b": 2})]


async def test_every_field_of_the_message_is_kept_whatever_it_is() -> None:
    began = b'{"type":"message_start","message":{"id":"m","type":"message","aura":{"level":1.10},"content":[],"usage":{"input_tokens":7,"x":{"y":1.0}},"container":null}}'  # noqa: E501
    ended = b'{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_details":{"n":0.10},"container":{"id":"c1","expires_at":"soon"}},"context_management":{"applied_edits":[1.0]},"usage":{"output_tokens":9}}'  # noqa: E501
    found = await streamed([began, *said(0, "x"), ended, {"type": "message_stop"}])
    assert found.reply.body == (
        b'{"type":"message","id":"m","aura":{"level":1.10},"container":{"id":"c1","expires_at":"soon"},'
        b'"stop_reason":"end_turn","context_management":{"applied_edits":[1.0]},"stop_details":{"n":0.10},'
        b'"usage":{"input_tokens":7,"x":{"y":1.0},"output_tokens":9},"content":[{"type":"text","text":"x"}]}'
    )
    assert found.reply.usage == {"input_tokens": 7, "x": {"y": 1.0}, "output_tokens": 9}


async def test_ten_megabytes_are_taken_in_good_time() -> None:
    piece = "0123456789abcdef" * 512
    found = await asked(chunked(sse([each]) for each in [start(), *said(0, *[piece] * 1280), *end()]))
    assert len(found.content[0]["text"]) == 10 * 1024 * 1024
    assert found.took_s < 5
    one = await asked(http(sse([start(), *said(0, piece * 1280), *end()])))
    assert one.content == found.content
