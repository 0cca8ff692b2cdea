"""A reply becomes the events that the API would send, and a fault takes away what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anabranch.testing import Reply, text, thinking, tool_use
from anabranch.testing.refusal import Refused
from anabranch.testing.sse import body, events, honour, message_of, streamed, unstreamed

Json = Any
LOOK_TWICE = Reply(content=["Looking.", tool_use("look", {"at": "a" * 200}), tool_use("look", {"at": 2})])


def written(reply: Reply) -> list[bytes]:
    return events(message_of(reply, "scripted", 400))


def parsed(pieces: list[bytes]) -> list[Json]:
    found = []
    for piece in pieces:
        name, data = piece.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def test_the_events_come_in_the_order_of_the_api() -> None:
    kinds = [event["type"] for event in parsed(written(LOOK_TWICE))]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3


def test_an_input_is_streamed_in_several_pieces_after_an_empty_one() -> None:
    pieces = [
        event["delta"]["partial_json"]
        for event in parsed(written(LOOK_TWICE))
        if event["type"] == "content_block_delta" and event["index"] == 1
    ]
    assert pieces[0] == ""
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == {"at": "a" * 200}


@pytest.mark.parametrize("raw", ['{"at": ', "[1]", '{"n": 1e999}', '{"n": Infinity}', "{" + '"n":' + "9" * 40 + "}"])
def test_an_input_that_is_a_string_is_sent_verbatim(raw: str) -> None:
    reply = Reply(content=[tool_use("look", raw)])
    pieces = [
        event["delta"]["partial_json"] for event in parsed(written(reply)) if "delta" in event and "index" in event
    ]
    assert "".join(pieces) == raw
    assert raw.encode() in body(message_of(reply, "scripted", 0))


def test_large_integers_and_lone_surrogates_survive_in_an_input() -> None:
    given = {"n": 10**30, "s": "\ud800", "é": float("inf")}
    assert (
        json.loads(body(message_of(Reply(content=[tool_use("look", given)]), "m", 0)))["content"][0]["input"] == given
    )


def test_the_stop_reason_follows_from_the_blocks_unless_given() -> None:
    assert message_of(LOOK_TWICE, "m", 0).stop_reason == "tool_use"
    assert message_of(Reply(content=["hi"]), "m", 0).stop_reason == "end_turn"
    assert message_of(Reply(content=["hi"], stop_reason="pause_turn"), "m", 0).stop_reason == "pause_turn"


def test_one_block_used_twice_gets_two_ids() -> None:
    block = tool_use("look", {})
    ids = {call["id"] for _ in range(2) for call in message_of(Reply(content=[block, block]), "m", 0).content}
    assert len(ids) == 4
    assert "id" not in block


def test_usage_is_estimated_and_single_figures_overridden() -> None:
    usage = message_of(Reply(content=["x" * 80], usage={"cache_read_input_tokens": 7}), "m", 401).usage
    assert (usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"]) == (101, 20, 7)


def test_a_thought_ends_with_its_signature() -> None:
    deltas = [
        e["delta"]
        for e in parsed(written(Reply(content=[thinking("hm" * 50, "sig")])))
        if "index" in e and "delta" in e
    ]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "hm" * 50
    assert deltas[-1] == {"type": "signature_delta", "signature": "sig"}


def test_a_block_of_an_unknown_type_is_sent_whole() -> None:
    block = {"type": "of_tomorrow", "input": {"kept": True}}
    starts = [event for event in parsed(written(Reply(content=[block]))) if event["type"] == "content_block_start"]
    assert starts[0]["content_block"] == block
    assert json.loads(body(message_of(Reply(content=[block]), "m", 0)))["content"] == [block]


def test_faults_take_away_what_they_say() -> None:
    whole = written(LOOK_TWICE)
    assert streamed(Reply(), whole).pieces == whole
    for reply, ending in (
        (Reply(cut_after=3), "end"),
        (Reply(drop_after=3), "abort"),
        (Reply(hang_after=3), "hang"),
    ):
        delivery = streamed(reply, whole)
        assert (delivery.pieces, delivery.ending) == (whole[:3], ending)
    assert unstreamed(Reply(drop_after=1), b"12345678").pieces == [b"1234"]


def test_an_error_event_replaces_the_rest() -> None:
    whole = written(LOOK_TWICE)
    pieces = streamed(Reply(sse_error=("overloaded_error", "busy"), sse_error_after=2), whole).pieces
    assert pieces[:2] == whole[:2]
    assert parsed(pieces[2:]) == [{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}]


def test_without_parallel_calls_only_the_first_stays() -> None:
    choice = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    block = tool_use("look", {})
    assert honour(Reply(content=["so", block, block]), choice).content == ["so", block]
    assert honour(LOOK_TWICE, {}) is LOOK_TWICE


@pytest.mark.parametrize("choice", [{"type": "none"}, {"type": "tool", "name": "other"}])
def test_a_call_that_the_request_forbids_is_a_mistake_of_the_script(choice: Json) -> None:
    with pytest.raises(Refused, match="the script calls") as caught:
        honour(LOOK_TWICE, {"tool_choice": choice})
    assert caught.value.type == "api_error"


def test_a_forced_call_is_not_invented() -> None:
    reply = Reply(content=[text("no")])
    assert honour(reply, {"tool_choice": {"type": "tool", "name": "look"}}) is reply
