"""The answer of a run: every way in which one ends, and what is said of it.

Responsible for: `agent/answer.py`, against WIRE's table "how a run ends".
Must never: know who sends it.
Called by: pytest.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.answer import answer, brief_answer, note_answer


def answer_after(*events: e.Event, opens: e.Opening | None = None, at: float = 1.0) -> Any:
    return orjson.loads(answer(b.run_after(*events, opens=opens, at=at)))


def ended(*events: e.Event, opens: e.Opening | None = None, at: float = 1.0) -> tuple[str, str | None]:
    said = answer_after(*events, opens=opens, at=at)
    return said["status"], said["error"] and said["error"]["code"]


def stopped(stop: Any, *content: Any) -> e.Event:
    return b.replied("stopped", body=b.message(content or [b.text("so far")], stop))


# --- how a run ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["end_turn", "stop_sequence"])
def test_a_final_reply_completes_the_run(stop: str) -> None:
    said = answer_after(b.replied(body=b.message([b.text("a"), b.text("b")], stop)))
    assert (said["status"], said["error"], said["output"]) == ("completed", None, "ab")
    assert (said["content"], said["stop_reason"]) == (None, stop)


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        ("max_tokens", "max_tokens"),
        ("model_context_window_exceeded", "context_exceeded"),
        ("refusal", "model_refused"),
        ("compaction", "unknown_stop"),
        ("tool_use", "unknown_stop"),
        (None, "unknown_stop"),
    ],
)
def test_a_reply_that_stops_fails_the_run_and_says_what_was_said(stop: str | None, code: str) -> None:
    said = answer_after(stopped(stop))
    assert (said["status"], said["error"]["code"]) == ("failed", code)
    assert (said["output"], said["content"]) == (None, [b.text("so far")])


@pytest.mark.parametrize("code", ["model_unavailable", "model_rejected", "context_exceeded"])
def test_a_model_that_cannot_be_had_fails_the_run(code: str) -> None:
    assert ended(b.failed(code=code)) == ("failed", code)


def test_the_last_turn_and_the_last_cent_fail_the_run() -> None:
    assert ended(b.calls(), opens=b.opening(limits=e.RunLimits(1))) == ("failed", "max_turns")
    spent = b.calls(usage=m.Usage(cost_usd=2.0))
    assert ended(spent, opens=b.opening(limits=e.RunLimits(9, 1.0))) == ("failed", "budget_exceeded")


def test_a_deadline_expires_the_run() -> None:
    assert ended(b.run_expired(), at=2000.0) == ("expired", "deadline")


def test_a_cancel_cancels_the_run_with_its_reason() -> None:
    said = answer_after(b.cancelled())
    assert (said["status"], said["error"]) == ("cancelled", {"code": "cancelled", "message": "enough"})


def test_a_tool_that_aborts_fails_the_run_and_says_why() -> None:
    plan = [b.planned(0), b.planned(1, on_error="abort", tool="crm")]
    said = answer_after(b.calls(*plan), b.returned(1, "error", body=b.result("no such customer")))
    assert (said["status"], said["error"]["code"]) == ("failed", "tool_aborted")
    assert said["error"]["message"] == "tool crm failed, and its on_error is 'abort': no such customer"
    assert said["calls"]["failed"] == 1


BIG = b'{"content":[{"type":"text","text":"x","n":12345678901234567890123}]}'


@pytest.mark.parametrize("body", [b"rubbish", b.result([b.text("x")]), BIG])
def test_an_abort_is_told_whatever_the_tool_said(body: bytes) -> None:
    events: list[e.Event] = [b.calls(b.planned(0, on_error="abort")), b.returned(0, "error", body=body)]
    assert ended(*events) == ("failed", "tool_aborted")


def test_a_rejected_request_is_told_why() -> None:
    said = orjson.loads(note_answer(b.noted(error=m.RunError("unknown_agent", "no such agent"))))
    assert (said["run_id"], said["status"], said["agent"]) == ("r", "failed", None)
    assert said["error"] == {"code": "unknown_agent", "message": "no such agent"}
    assert set(said) == set(answer_after(b.replied()))


# --- what is said --------------------------------------------------------------------------------------------


def test_content_that_is_more_than_text_is_there_verbatim() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s=="}
    said = answer_after(b.replied(body=b.message([thinking, b.text("a")])))
    assert (said["output"], said["content"]) == ("a", [thinking, b.text("a")])


def test_an_integer_beyond_64_bits_in_the_last_reply_is_answered_as_it_is() -> None:
    body = b'{"id":"m","stop_reason":"max_tokens","usage":{},"content":[{"type":"tool_use","id":"u","input":{"n":'
    body += b"12345678901234567890123}}]}"
    told = answer(b.run_after(b.replied("stopped", body=body)))
    assert b"12345678901234567890123" in told
    assert orjson.loads(told)["error"]["code"] == "max_tokens"


@pytest.mark.parametrize(
    "body", [b"", b"rubbish", b"[1]", b"null", b'{"content":5}', b'{"content":[1,{"type":"text","text":5}]}']
)
def test_a_reply_that_is_no_message_is_answered_all_the_same(body: bytes) -> None:
    assert ended(b.replied(body=body))[0] == "completed"


def test_the_text_of_paused_turns_belongs_to_the_answer() -> None:
    paused = b.replied("pause", body=b.message([b.text("a ")], "pause_turn"))
    said = answer_after(paused, b.replied(turn=2, body=b.message([b.text("b")])))
    assert (said["output"], said["turns"]) == ("a b", 2)


def test_usage_is_summed_and_what_was_thrown_away_is_told_apart() -> None:
    used = m.Usage(1, 2, 3, 4, 0.1)
    said = answer_after(b.discarded(usage=m.Usage(7)), b.calls(usage=used), b.returned(), b.replied(turn=2, usage=used))
    assert said["usage"] == {
        "input_tokens": 2,
        "output_tokens": 4,
        "cache_read_input_tokens": 6,
        "cache_creation_input_tokens": 8,
        "cost_usd": 0.2,
        "discarded": orjson.loads(orjson.dumps(m.Usage(7))),
    }


def test_calls_and_times_are_counted() -> None:
    state = b.folded(b.requested(opens=b.opening(requested_at=8.0)), at=10.0)
    b.folded(b.calls(b.planned(0), b.planned(1)), at=13.0, state=state)
    b.folded(b.returned(0, body=b.result(started_at=13.5, finished_at=15.5)), at=16.0, state=state)
    b.folded(b.returned(1, "error", body=b.result(started_at=14.0, finished_at=17.0)), at=17.0, state=state)
    b.folded(b.calls(b.planned(0, 2), turn=2), at=18.0, state=state)
    b.folded(b.returned(0, turn=2), at=19.0, state=state)
    b.folded(b.replied(turn=3), at=21.0, state=state)
    said = orjson.loads(answer(b.run_of(state)))
    assert said["calls"] == {"total": 3, "failed": 1, "batches": 2, "widest": 2}
    assert said["timing"] == {
        "queued_s": 2.0, "model_s": 6.0, "tools_s": 5.0, "wall_s": 13.0, "tools_sequential_s": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("started_at", "finished_at"), [(-1.7e308, 1.7e308), (0, 1.7e308), (5, 3), ("1", "2"), (None, 3), (10**400, 0)]
)
def test_times_that_no_call_can_have_taken_count_as_none(started_at: Any, finished_at: Any) -> None:
    """JSON has no number for the first, and nobody could read the answer."""
    body = json.dumps({"content": "x", "started_at": started_at, "finished_at": finished_at}).encode()
    said = answer_after(b.calls(), b.returned(body=body), b.replied(turn=2))
    assert said["timing"]["tools_sequential_s"] == 0.0


def test_metadata_is_echoed() -> None:
    opens = b.opening(request=b.request(metadata={"order": 7}))
    assert answer_after(b.replied(), opens=opens)["metadata"] == {"order": 7}


def test_the_same_run_gives_the_same_bytes() -> None:
    events = [b.discarded(), b.calls(), b.returned(), b.replied(turn=2)]
    assert answer(b.run_after(*events)) == answer(b.run_after(*events))


def test_a_brief_answer_says_where_the_rest_is() -> None:
    said = orjson.loads(brief_answer(b.run_after(b.replied()), "too large"))
    assert (said["status"], said["output"], said["content"]) == ("completed", None, None)
    assert "run's log" in said["error"]["message"]
