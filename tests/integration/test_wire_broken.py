"""Replies of the Messages API that break, contradict themselves or end in the wrong way, over a real connection.

Responsible for: that no call runs which the model did not finish asking for, and that what was paid is known.
Must never: run a fleet or start a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.support.attempt import CALL, HELLO, TWO, asked, asked_each, streamed
from tests.support.stream import Event, block, called, delta, end, said, sse, start
from tests.support.wire import head, http

SERVER_TOOL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}


# --- no call runs that the model did not finish asking for ----------------------------------------------------------

STOPS = ["max_tokens", "refusal", "model_context_window_exceeded", "end_turn", "stop_sequence",
         "compaction", "levitation", None]  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
async def test_calls_are_run_only_if_the_reply_ended_for_them(stop: str | None) -> None:
    found = await streamed([start(), *called(0, '{"a": 1}'), *end(stop)])
    assert found.reply.calls == ()
    assert found.content[0]["input"] == {"a": 1}


@pytest.mark.parametrize("input", ['{"a": [1, 2', "{", '{"a": "'])
async def test_max_tokens_inside_a_calls_json_runs_nothing(input: str) -> None:
    found = await streamed([start(), *called(0, input), *end("max_tokens")])
    assert (found.reply.outcome, found.reply.calls) == ("stopped", ())


@pytest.mark.parametrize("stop", ["tool_use", "levitation", None])
async def test_a_stop_reason_that_nothing_follows_from_ends_the_run(stop: str | None) -> None:
    for events in ([start(), *end(stop)], [start(), *said(0, "x"), *block(1, SERVER_TOOL), *end(stop)]):
        found = await streamed(events)
        assert (found.reply.outcome, found.reply.calls) == ("stopped", ())


async def test_a_stop_reason_in_the_start_ends_nothing() -> None:
    early = start(stop_reason="tool_use")
    assert (await streamed([early, *called(0, "{}"), {"type": "message_stop"}])).reply.outcome == "stopped"
    assert "in the middle" in (await streamed([early, *called(0, "{}")])).transient.reason


async def test_a_reply_without_content_is_a_reply() -> None:
    found = await streamed([start(), *end()])
    assert (found.reply.outcome, found.content) == ("final", [])


REFUSED = {
    "an array": "[1, 2]",
    "a text": '"x"',
    "null": "null",
    "a number": "12",
    "Infinity": '{"a": Infinity}',
    "NaN": '{"a": NaN}',
    "a number beyond all": '{"a": 1e999}',
    "half of a surrogate pair": '{"a": "\\ud800"}',
    "JSON that was cut": '{"a": 1',
    "Python": "{'a': 1}",
    "a comma too many": '{"a": 1,}',
    "two values": '{"a": 1}{"b": 2}',
    "a depth without end": '{"a":' * 200 + "1" + "}" * 200,
    "brackets without end": "[" * 100_000,
}


@pytest.mark.parametrize("what", REFUSED)
async def test_an_input_that_is_none_is_refused_by_itself_and_never_repaired(what: str) -> None:
    found = await streamed([start(), *called(0, REFUSED[what]), *called(1, "{}", tool_use_id="y"), *end("tool_use")])
    bad, good = found.reply.calls
    assert bad.refused
    assert not good.refused
    assert [each["input"] for each in found.content] == [{}, {}], "what is no JSON cannot go back"


async def test_an_input_that_its_block_did_not_announce_is_not_lost() -> None:
    begun = {"type": "tool_use", "id": "tu", "name": "refund"}
    piece = {"type": "input_json_delta", "partial_json": '{"cents": 5}'}
    found = await streamed([start(), *block(0, {**begun, "input": None}, piece), *end("tool_use")])
    assert found.reply.calls[0].input == {"cents": 5}
    found = await streamed([start(), *block(0, begun, piece), *end("tool_use")])
    assert found.reply.calls[0].input == {"cents": 5}


# --- a broken turn is discarded whole, and what it cost is known ----------------------------------------------------


def without(events: list[Event], at: int) -> list[Event]:
    return events[:at] + events[at + 1 :]


TEXT: dict[str, Any] = {"type": "text", "text": ""}
USE: dict[str, Any] = {"type": "tool_use", "id": "tu", "name": "t", "input": {}}
THINKING: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
HALF = b'{"type":"content_block_start","index":0,"content_block":{"type":"hologram","name":"\\ud83d"}}'
LONE = json.dumps(delta(0, {"type": "text_delta", "text": "\ud83d"})).encode()


def wrong(content: dict[str, Any], kind: str, name: str, value: Any = "x") -> list[Event]:
    return [start(), *block(0, content, {"type": kind, name: value}), *end("tool_use", output_tokens=9)]


BROKEN: dict[str, list[Event]] = {
    "no start": said(0, "x") + end(),
    "no start, and only an end": end(),
    "two starts": [*HELLO[:3], start(), *HELLO[3:]],
    "a start with content": [start(content=[TEXT]), *end()],
    "a gap in the index": [start(), *said(1, "x"), *end()],
    "an index below zero": [start(), *said(0, "x"), delta(-1, {"type": "text_delta", "text": "y"}), *end()],
    "an index that is none": [start(), *said("0", "x"), *end()],  # type: ignore[arg-type]
    "a block that begins twice": [start(), *said(0, "x"), *said(0, "y"), *end()],
    "a block that goes on after its end": [*HELLO[:-2], delta(0, {"type": "text_delta", "text": "!"}), *end()],
    "a block without an end": [start(), *called(0, "{}", stop=False), *end("tool_use", output_tokens=9)],
    "a reply that goes on after its end": [*HELLO[:-1], *said(1, "more"), {"type": "message_stop"}],
    "two ends": [*TWO[:-1], *end("end_turn")],
    "two calls of one id": [start(), *called(0, "{}"), *called(1, "{}"), *end("tool_use")],
    "a call without an id": [start(), *block(0, {**USE, "id": None}), *end("tool_use")],
    "a call without a name": [start(), *block(0, {"type": "tool_use", "id": "x", "input": {}}), *end("tool_use")],
    "a call without an input": [start(), *block(0, {"type": "tool_use", "id": "x", "name": "t"}), *end("tool_use")],
    "a call with two inputs": [start(), *block(0, {**USE, "input": {"a": 1}}, {"type": "input_json_delta", "partial_json": '{"a": 2}'}), *end("tool_use")],  # noqa: E501
    "text in a call": wrong(USE, "text_delta", "text"),
    "an input in a text": wrong(TEXT, "input_json_delta", "partial_json"),
    "thinking in a text": wrong(TEXT, "thinking_delta", "thinking"),
    "text in thinking": wrong(THINKING, "text_delta", "text"),
    "a signature in a call": wrong(USE, "signature_delta", "signature"),
    "a citation in thinking": wrong(THINKING, "citations_delta", "citation", {}),
    "text in redacted thinking": wrong({"type": "redacted_thinking", "data": "x"}, "text_delta", "text"),
    "text in a block that has none": wrong({"type": "hologram", "depth": 1}, "text_delta", "text"),
    "a text that is none": wrong(TEXT, "text_delta", "text", 5),
    "a piece without its text": wrong(TEXT, "text_delta", "thinking"),
    "half of a character": [*HELLO[:2], LONE, *HELLO[3:]],
    "half of a character that nothing completes": [start(), HALF, {"type": "content_block_stop", "index": 0}, *end()],
    "a server tool's input that is no JSON": [start(), *block(0, SERVER_TOOL, {"type": "input_json_delta", "partial_json": '{"q":'}), *end()],  # noqa: E501
    "a stop reason that is none": [start(), *said(0, "x"), *end(["tool_use"])],
    "usage that is none": [start(usage=[1]), *end()],
    "a block that is none": [start(), b'{"type":"content_block_start","index":0,"content_block":"text"}', *end()],
    "a block that is a list": [start(), *block(0, []), *end()],
    "a block without a type": [start(), *block(0, {"text": "x"}), *end()],
    "a block whose type is none": [start(), *block(0, {"type": 7}), *end()],
    "a delta that is none": [start(), *block(0, TEXT, None), *end()],  # type: ignore[arg-type]
    "a message that is none": [{"type": "message_start", "message": "hello"}, *end()],
    "an error that says nothing": [*HELLO[:3], {"type": "error"}],
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
async def test_what_contradicts_itself_is_broken_and_can_be_tried_again(what: str) -> None:
    found = (await streamed(BROKEN[what])).transient
    assert found.broken
    assert "object at 0x" not in found.reason


@pytest.mark.parametrize("line", [b"data: {not json\n\n", b"data: [1]\n\n", b"data: null\n\n", b'data: {"x": 1}\n\n',
                                  b'data: {"type": "message_stop", "x": NaN}\n\n', b"data: \xff\xfe\n\n"])  # fmt: skip
async def test_an_event_that_is_none_breaks_the_reply(line: bytes) -> None:
    assert (await asked(http(sse(HELLO[:2]) + line + sse(HELLO[2:])))).transient.broken


@pytest.mark.parametrize("events", [TWO, CALL, HELLO])
async def test_a_stream_that_ends_anywhere_as_if_all_were_well_is_broken(events: list[Event]) -> None:
    whole, ends = sse(events), len(sse(events[:-1]))
    begun = len(sse(events[:1]))
    cuts = range(0, ends, 13)
    for at, found in zip(cuts, await asked_each([http(whole[:at]) for at in cuts]), strict=True):
        assert found.transient.broken
        assert found.transient.usage == ({"input_tokens": 7, "output_tokens": 1} if at >= begun else {})


async def test_what_a_broken_reply_cost_is_learned_from_its_end() -> None:
    for what in ("a gap in the index", "text in a call", "half of a character", "two starts"):
        events = [*BROKEN[what][:-2], *end("tool_use", output_tokens=77)]
        assert ((await streamed(events)).transient.usage or {})["output_tokens"] == 77, what


async def test_the_end_of_a_broken_reply_is_not_waited_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.agent.model.anthropic_model.COUNT_S", 0.1)

    async def speaks_on(writer: asyncio.StreamWriter) -> None:
        writer.write(head() + sse([start(), *said(1, "x")]))
        while not writer.is_closing():
            writer.write(sse(said(2, "x")))
            await writer.drain()
            await asyncio.sleep(0.01)

    found = await asked(speaks_on)
    assert "block 1" in found.transient.reason
    assert found.took_s < 5


async def test_what_no_other_reply_would_cure_is_paid_for_once_and_counted() -> None:
    unknown = block(0, {"type": "hologram", "depth": 1}, {"type": "levitation_delta", "height": 3})
    found = (await streamed([start(), *unknown, *end(output_tokens=9)])).hopeless
    assert found.code == "model_unavailable"
    assert "levitation_delta" in found.message
    assert found.usage == {"input_tokens": 7, "output_tokens": 9}
