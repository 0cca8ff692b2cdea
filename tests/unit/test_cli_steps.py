"""The words for an event of a run: of results that a worker in another language may send, too."""

from __future__ import annotations

import json

import pytest
from tests.support import builders as b

from anabranch.agent.state import Result
from anabranch.cli.picture.steps import told
from anabranch.events import CallResult

UNREADABLE = b'{"content":"x","started_at":"noon"}'
WHY = "the tool's worker sent a result that cannot be read: started_at: Input should be a valid number (got 'noon')"


def test_a_result_that_cannot_be_read_is_told_with_what_is_wrong_with_it() -> None:
    event = b.returned(body=UNREADABLE)
    assert told(event, None, 0.0).endswith(f"ok: {WHY}")
    result = CallResult(
        "tool.returned", 0.0, 0, event, None, 1, event.call_id, "tu", "t", "ok", Result("ok", 0.0, UNREADABLE)
    )
    assert result.content == WHY


def test_calls_that_are_not_run_are_told_with_the_reason() -> None:
    event = b.calls(b.planned(0, rejected="there is no such tool"), b.planned(1))
    assert "2 calls: t ×2; t is not run: there is no such tool" in told(event, None, 0.0)


@pytest.mark.parametrize("finished_at", [1e999, 1.7e308, 10**18])
def test_a_time_that_no_call_can_have_taken_is_told_as_none(finished_at: float) -> None:
    body = json.dumps({"content": "x", "started_at": -1.7e308, "finished_at": finished_at}).encode()
    body = body.replace(b"Infinity", b"1e999")
    assert "in 0.00 s" in told(b.returned(body=body), None, 0.0)
