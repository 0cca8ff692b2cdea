"""What is heard of a model's stream, and when a call in it is complete.

Responsible for: `agent/reply/pieces.py`. Must never: build a reply (test_reply).
Called by: pytest.
"""

from __future__ import annotations

import time
from typing import Any

from anabranch.agent.reply.pieces import Pieces


def block(index: int, kind: str = "tool_use", **fields: Any) -> dict[str, Any]:
    given = {"id": f"tu{index}", "name": "t", "input": {}} if kind == "tool_use" else {kind: ""}
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **given, **fields}}


def says(index: int, kind: str, value: str) -> dict[str, Any]:
    name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[kind]
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: value}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def ends(reason: str) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}}


def call(index: int, arguments: str) -> list[dict[str, Any]]:
    """A whole block, its input in two pieces."""
    half = len(arguments) // 2
    pieces = [says(index, "input_json_delta", part) for part in (arguments[:half], arguments[half:])]
    return [block(index), *pieces, stop(index)]


def heard(*events: dict[str, Any]) -> list[tuple[str, int, str]]:
    found = Pieces()
    return [(piece.kind, piece.index, piece.text) for event in events for piece in found.feed(event)]


def test_text_and_thinking_are_heard_as_they_come() -> None:
    events = [block(0, "thinking"), says(0, "thinking_delta", "hm"), stop(0), block(1, "text", text="A")]
    assert heard(*events, says(1, "text_delta", "b"), says(1, "text_delta", ""), stop(1)) == [
        ("thinking", 0, "hm"), ("text", 1, "A"), ("text", 1, "b"),
    ]  # fmt: skip


def test_a_call_is_complete_when_the_next_block_starts_and_not_when_its_own_stops() -> None:
    first = call(0, '{"a": 1.10}')
    assert heard(*first) == [("tool_use", 0, "")]
    assert heard(*first, block(1, "text")) == [("tool_use", 0, ""), ("tool_input", 0, '{"a": 1.10}')]


def test_the_last_call_is_complete_when_the_message_stops_for_its_calls() -> None:
    assert heard(*call(0, "{}"), ends("tool_use"))[-1] == ("tool_input", 0, "{}")
    for reason in ("max_tokens", "end_turn", "refusal"):
        assert heard(*call(0, "{}"), ends(reason)) == [("tool_use", 0, "")]


def test_a_block_that_has_not_stopped_is_not_complete_though_the_next_one_starts() -> None:
    """Blocks may be interleaved: what was cut off in one looks like the end of another."""
    interleaved = [block(0), says(0, "input_json_delta", '{"a"'), block(1), stop(1)]
    assert [kind for kind, *_ in heard(*interleaved)] == ["tool_use", "tool_use"]
    rest = [says(0, "input_json_delta", ": 1}"), stop(0), block(2, "text")]
    assert heard(*interleaved, *rest)[2:] == [("tool_input", 0, '{"a": 1}'), ("tool_input", 1, "{}")]


def test_an_input_that_came_with_the_start_is_that() -> None:
    events = [block(0, input={"a": 1}), stop(0), ends("tool_use")]
    assert heard(*events)[-1] == ("tool_input", 0, '{"a":1}')


def test_calls_are_counted_apart_from_other_blocks() -> None:
    found = Pieces()
    events = [block(0, "text"), stop(0), *call(1, "{}"), block(2, "server_tool_use"), stop(2), *call(3, "{}")]
    pieces = [piece for event in [*events, ends("tool_use")] for piece in found.feed(event)]
    assert [(piece.index, piece.call) for piece in pieces if piece.kind == "tool_input"] == [(1, 0), (3, 1)]


def test_blocks_that_never_stop_are_not_looked_through_at_each_that_starts() -> None:
    began = time.process_time()
    assert len(heard(*map(block, range(8000)))) == 8000
    assert time.process_time() - began < 1.5, "as the square of them it takes several times as long"
