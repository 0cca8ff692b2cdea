"""A reply, from the provider's events to what goes into the log and, byte for byte, back to the provider.

Responsible for: `agent/reply/reply.py`, and that what it writes comes back in the next request.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b
from tests.support.stream import Event, block, called, end, json_of, said, start

from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer
from anabranch.agent.reply.content import content_of
from anabranch.agent.reply.reply import BrokenReply, ProviderError, Reply, ReplyBuilder, reply_of

EXACT = '{"price": 1.10, "id":12345678901234567890123,\n "s":"\\u00e9\\ud83d\\ude00"}'


def fed(*events: Event) -> ReplyBuilder:
    builder = ReplyBuilder()
    for event in events:
        builder.feed(json_of(event))
    return builder


def reply(*events: Event) -> Reply:
    return fed(*events).finish()


def content(found: Reply) -> Any:
    return orjson.loads(found.body)["content"]


def broken(events: Iterable[Event]) -> str:
    with pytest.raises(BrokenReply) as caught:
        reply(*events)
    return caught.value.reason


def test_a_reply_that_was_broken_is_never_whole_again() -> None:
    """Whatever goes wrong while its cost is read, or while its connection is closed."""
    builder = fed(start(), *said(0, "hello"), *end("end_turn")[:1])
    assert builder.whole
    with pytest.raises(BrokenReply, match="goes on after its end") as caught:
        builder.feed(json_of(said(1, "more")[0]))
    builder.count(json_of({"type": "message_stop"}))
    with pytest.raises(BrokenReply) as again:
        builder.finish()
    assert again.value is caught.value


# --- stop reasons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "outcome"),
    [
        ("end_turn", "final"),
        ("stop_sequence", "final"),
        ("pause_turn", "pause"),
        ("max_tokens", "stopped"),
        ("model_context_window_exceeded", "stopped"),
        ("refusal", "stopped"),
        ("compaction", "stopped"),
        ("levitation", "stopped"),
        (None, "stopped"),
        ("tool_use", "stopped"),
    ],
)
def test_every_stop_reason_has_an_outcome(stop: str | None, outcome: str) -> None:
    assert reply(start(), *said(0, "hi"), *end(stop)).outcome == outcome


@pytest.mark.parametrize("stop", ["max_tokens", "refusal", "model_context_window_exceeded", "end_turn", None])
def test_calls_are_run_only_if_the_turn_ended_for_them(stop: str | None) -> None:
    found = reply(start(), *called(0, "{}"), *end(stop))
    assert found.calls == ()
    assert content(found)[0]["type"] == "tool_use"


def test_calls_of_a_pause_are_run_for_it_cannot_go_on_without_their_results() -> None:
    found = reply(start(), *said(0, "hi"), *called(1, "{}"), *end("pause_turn"))
    assert (found.outcome, [call.tool_use_id for call in found.calls]) == ("calls", ["tu"])


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_a_tools_name_that_the_provider_would_not_take_back_breaks_the_reply(name: str) -> None:
    with pytest.raises(BrokenReply, match=f"names a tool with {len(name)} characters") as caught:
        reply(start(), *called(0, "{}", name=name), *end("tool_use"))
    assert caught.value.curable


def test_texts_usage_and_head_are_put_together() -> None:
    found = reply(start(), *said(0, "a", "ä", "b"), *end(output_tokens=9))
    body = orjson.loads(found.body)
    assert body["content"] == [b.text("aäb")]
    assert (body["id"], body["stop_reason"]) == ("msg", "end_turn")
    assert found.usage == {"input_tokens": 7, "output_tokens": 9}
    assert list(body)[-1] == "content"


def test_a_signature_is_kept_to_the_byte() -> None:
    signature = "EqQB/+aZ=="
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": signature[:4]}]
    deltas.append({"type": "signature_delta", "signature": signature[4:]})
    found = reply(
        start(), *block(0, thinking, *deltas), *block(1, {"type": "redacted_thinking", "data": "x=="}), *end()
    )
    assert content(found) == [
        {"type": "thinking", "thinking": "hm", "signature": signature},
        {"type": "redacted_thinking", "data": "x=="},
    ]


def test_an_unknown_block_survives_with_the_very_numbers_that_it_had() -> None:
    raw = b'{"type":"hologram","depth":1.10,"n":12345678901234567890123,"deep":[{"x":[1e5,null]}]}'
    event = b'{"type":"content_block_start","index":0,"content_block":' + raw + b"}"
    found = reply(start(), event, {"type": "content_block_stop", "index": 0}, *end())
    assert content_of(found.body) == b"[" + raw + b"]"


def test_citations_are_collected() -> None:
    citation = {"type": "char_location", "start_char_index": 3}
    found = reply(start(), *block(0, b.text("x"), {"type": "citations_delta", "citation": citation}), *end())
    assert content(found) == [{**b.text("x"), "citations": [citation]}]


# --- inputs, to the byte -----------------------------------------------------------------------------------


def test_an_input_goes_back_to_the_provider_as_it_came() -> None:
    found = reply(start(), *called(0, EXACT[:20], EXACT[20:], tool_use_id="tu10"), *end("tool_use"))
    assert found.calls[0].input == json.loads(EXACT)
    run = b.run_after(b.calls(body=found.body), b.returned())
    sent = request_body(run, Offer(b.agent(), [b.tool()]))
    assert EXACT.encode() in sent
    assert content_of(found.body) in sent


def test_the_numbers_of_a_whole_document_are_kept_too() -> None:
    raw = b'{"id":"m","stop_reason":"tool_use","usage":{"input_tokens":3},"content":[{"type":"tool_use","id":"tu",'
    raw += b'"name":"t","input":{"price":1.10,"id":12345678901234567890123}}]}'
    found = reply_of(raw)
    assert found.outcome == "calls"
    assert found.usage == {"input_tokens": 3}
    assert found.calls[0].input == {"price": 1.1, "id": 12345678901234567890123}
    assert b'"input":{"price":1.10,"id":12345678901234567890123}' in found.body


def test_an_input_that_came_whole_with_its_block_is_kept() -> None:
    event = b'{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"u","name":"t","input":'
    event += b'{"n":12345678901234567890123}}}'
    found = reply(start(), event, {"type": "content_block_stop", "index": 0}, *end("tool_use"))
    assert found.calls[0].input == {"n": 12345678901234567890123}


@pytest.mark.parametrize("raw", ["", "{}"])
def test_no_input_is_an_empty_object(raw: str) -> None:
    assert reply(start(), *called(0, raw), *end("tool_use")).calls[0].input == {}


@pytest.mark.parametrize(
    "raw",
    [
        *['{"a": 1', "[1, 2]", "null", '"x"', "12", "{'a': 1}", " "],
        *['{"a": Infinity}', '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 101 + "1" + "}" * 101, "[" * 5000],
    ],
)
def test_an_input_that_is_no_object_is_refused_and_never_repaired(raw: str) -> None:
    found = reply(start(), *called(0, raw), *end("tool_use"))
    assert found.outcome == "calls"
    assert found.calls[0].refused
    assert content(found)[0]["input"] == {}


def test_an_input_of_a_server_tool_that_is_not_json_breaks_the_reply() -> None:
    start_of = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": '{"q": '}
    assert "not JSON" in broken([start(), *block(0, start_of, delta), *end()])


def test_a_server_tool_is_no_call_of_ours() -> None:
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    found = reply(start(), *block(0, use), *called(1, "{}"), *end("tool_use"))
    assert [call.tool_use_id for call in found.calls] == ["tu"]


# --- what is broken ---------------------------------------------------------------------------------------


def test_a_stream_that_is_cut_anywhere_is_broken() -> None:
    events = [start(), *said(0, "hm"), *called(1, '{"a": ', "1}"), *end("tool_use")]
    for length in range(len(events) - 1):
        if events[length - 1 : length] != [events[-2]]:
            assert broken(events[:length])


def test_a_stream_that_ends_after_its_stop_reason_is_whole() -> None:
    assert reply(start(), *called(0, "{}"), *end("tool_use")[:1]).outcome == "calls"


@pytest.mark.parametrize(
    "events",
    [
        said(0, "no start"),
        [start(), *said(1, "a gap")],
        [start(), *said(0, "a"), *said(0, "again")],
        [start(), {"type": "content_block_delta", "index": 3, "delta": {"type": "text_delta", "text": ""}}],
        [start(), {"type": "content_block_delta", "index": -1, "delta": {"type": "text_delta", "text": ""}}],
        [start(), *block(0, b.text(""), {"type": "levitation_delta", "height": 3}), *end()],
        [start(), *called(0, "{}"), *called(1, "{}"), *end("tool_use")],
        [start(), *block(0, {"type": "tool_use", "name": "t", "input": {}}), *end("tool_use")],
        [start(), *block(0, {"type": "tool_use", "id": "", "name": "t", "input": {}}), *end("tool_use")],
        [start(), *block(0, {"type": "tool_use", "id": "x", "name": 5, "input": {}}), *end("tool_use")],
        [start(), b"{not json"],
        [start(), b"[1]"],
        [start(), b"null"],
        [start(), b'{"type":"content_block_start","index":0,"content_block":"text"}'],
        [start(), b'{"type":"content_block_start","index":"0","content_block":{}}'],
        [b'{"type":"message_start","message":"hello"}'],
        [start(usage=[1])],
        [start(), *block(0, b.text(""), {"type": "text_delta", "text": None}), *end()],
        [start(), *block(0, b.text(""), {"type": "text_delta"}), *end()],
        [start(), *block(0, {"type": "text", "text": 5}, {"type": "text_delta", "text": "x"}), *end()],
        [start(), *called(0, 5), *end("tool_use")],  # type: ignore[arg-type]
        [start(), *end(["end_turn"])],
    ],
)
def test_what_contradicts_itself_is_broken_and_nothing_else(events: list[Event]) -> None:
    assert broken(events)


def test_a_broken_reply_says_what_it_has_cost() -> None:
    with pytest.raises(BrokenReply) as caught:
        reply(start(), *said(0, "a"), {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 40}})
    assert caught.value.usage == {"input_tokens": 7, "output_tokens": 40}


def test_an_error_in_the_stream_is_the_providers() -> None:
    with pytest.raises(ProviderError) as caught:
        fed(start(), {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})
    assert (caught.value.kind, caught.value.usage["input_tokens"]) == ("overloaded_error", 7)


def test_events_of_a_later_version_are_skipped() -> None:
    assert reply(start(), {"type": "ping"}, {"type": "levitated"}, *said(0, "a"), *end()).outcome == "final"


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"7", b"{}", b'{"content":"x"}', b'{"content":[1]}', b'{"content":[{"input":NaN}]}']
)
def test_a_document_that_is_no_message_is_broken(raw: bytes) -> None:
    with pytest.raises(BrokenReply):
        reply_of(raw)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["text", "tool_use", "end_turn"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "index", "delta", "text", "id", "name", "input", "usage", "content", "message"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
_KINDS = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error"]


@given(st.lists(st.tuples(st.sampled_from(_KINDS), st.dictionaries(st.sampled_from(
    ["index", "message", "content_block", "delta", "usage", "error"]), _JSON)), max_size=6))  # fmt: skip
def test_no_stream_raises_anything_but_what_it_may(events: list[tuple[str, dict[str, Any]]]) -> None:
    builder = ReplyBuilder()
    with contextlib.suppress(BrokenReply, ProviderError):
        for kind, fields in events:
            builder.feed(json.dumps({"type": kind, **fields}))
        builder.finish()


@given(_JSON)
def test_no_document_raises_anything_but_what_it_may(document: Any) -> None:
    with contextlib.suppress(BrokenReply):
        reply_of(json.dumps({"stop_reason": "end_turn", "content": document}))
