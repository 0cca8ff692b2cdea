"""The answer of a run that has ended, as a function of its fold. PURE.

Whoever computes it, whenever, gets the same bytes: so an answer that is sent twice is sent twice the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson

from anabranch.agent.state import Call, Run, Turn
from anabranch.bodies import read, whole
from anabranch.errors import WireError
from anabranch.messages import CallCounts, RequestNoted, RunError, RunResponse, Timing, ToolResult, TotalUsage

_STOPS = {
    "max_tokens": ("max_tokens", "the reply was cut off at its max_tokens"),
    "model_context_window_exceeded": ("context_exceeded", "the conversation no longer fits the model's context"),
    "refusal": ("model_refused", "the model refused to go on"),
}


def answer(run: Run, brief: bool = False) -> bytes:
    """The body for `agent.responses`. The run must have ended. `brief` leaves out what makes it large."""
    told = response(run)
    return whole(replace(told, output=None, content=None, error=told.error or TOO_LARGE) if brief else told)


TOO_LARGE = RunError("internal", "the answer is larger than agent.responses takes; it is in the run's log")


def response(run: Run) -> RunResponse:
    """What `agent.responses` says of a run that has ended."""
    assert run.ending is not None, "only a run that has ended has an answer"
    stop, blocks = _last_words(run.turns)
    completed = run.ending.status == "completed"
    text = "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")
    only_text = all(block.get("type") == "text" for block in blocks)
    return RunResponse(
        run_id=run.run_id,
        agent=run.opening.request.agent,
        revision=run.opening.revision,
        status=run.ending.status,
        output=text if completed else None,
        content=None if (completed and only_text) or not blocks else blocks,
        stop_reason=stop,
        error=_error(run, stop),
        usage=_usage(run),
        turns=len(run.turns),
        calls=_counts(run),
        timing=_timing(run),
        metadata=run.opening.request.metadata,
    )


def note_answer(note: RequestNoted) -> bytes:
    """The answer to a request that was rejected."""
    error = note.error or RunError("invalid_request", "the request was rejected")
    return whole(RunResponse(note.run_id, None, None, "failed", error=error))


def _last_words(turns: list[Turn]) -> tuple[str | None, list[dict[str, Any]]]:
    """The last stop reason, and the blocks of the last reply with the paused ones that it goes on with."""
    stop: str | None = None
    blocks: list[dict[str, Any]] = []
    for number, turn in enumerate(reversed(turns)):
        if number > 0 and turn.outcome != "pause":
            break
        last, content = _said(turn.body)
        stop = last if number == 0 else stop
        blocks = [*content, *blocks]
    return stop, blocks


def _said(body: bytes) -> tuple[str | None, list[dict[str, Any]]]:
    """Stop reason and blocks of a reply; nothing, if it is no message."""
    try:
        message = json.loads(body)
        stop, content = message.get("stop_reason"), message.get("content") or []
        return str(stop) if stop is not None else None, [block for block in content if isinstance(block, dict)]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None, []


def _error(run: Run, stop: str | None) -> RunError | None:
    ending = run.ending
    if ending is None or ending.status == "completed":
        return None
    if ending.error is not None:
        return _with_cause(run, ending.error)
    code, message = _STOPS.get(stop or "", ("unknown_stop", f"the reply ended with stop reason {stop!r}"))
    return RunError(code, message)


def _with_cause(run: Run, error: RunError) -> RunError:
    """For an aborted run: what the tool said."""
    if error.code != "tool_aborted" or not run.turns:
        return error
    for call in run.turns[-1].calls.values():
        if call.failed and call.planned.on_error == "abort":
            return RunError(error.code, f"{error.message}: {_text(call)[:500]}")
    return error


def _text(call: Call) -> str:
    if call.result is None or call.result.body is None:
        return call.result.text or "" if call.result else ""
    result = result_of(call.result.body)
    content = result.content if result else UNREADABLE
    return content if isinstance(content, str) else orjson.dumps(content).decode()


UNREADABLE = "the tool's worker sent a result that cannot be read"


def result_of(body: bytes) -> ToolResult | None:
    """A tool's result, or None if its worker sent something else."""
    try:
        return read(ToolResult, body)
    except WireError:
        return None


def _usage(run: Run) -> TotalUsage:
    used = run.usage
    return TotalUsage(
        used.input_tokens,
        used.output_tokens,
        used.cache_read_input_tokens,
        used.cache_creation_input_tokens,
        round(used.cost_usd, 9),
        run.discarded,
    )


def _counts(run: Run) -> CallCounts:
    batches = [turn.calls for turn in run.turns if turn.calls]
    failed = sum(call.failed for calls in batches for call in calls.values())
    sizes = [len(calls) for calls in batches]
    return CallCounts(sum(sizes), failed, len(batches), max(sizes, default=0))


def _timing(run: Run) -> Timing:
    assert run.ending is not None
    queued = max(0.0, run.opened_at - run.opening.requested_at)
    wall = max(0.0, run.ending.at - run.opened_at) + queued
    return Timing(*(round(s, 6) for s in (queued, run.model_s, run.tools_s, wall, _sequential(run))))


def _sequential(run: Run) -> float:
    results = [call.result for turn in run.turns for call in turn.calls.values()]
    return sum(_took(result.body) for result in results if result is not None and result.body is not None)


def _took(body: bytes) -> float:
    """The seconds from a call's start to its end; 0 if its worker did not say. Only these two fields are looked at."""
    try:
        told = orjson.loads(body)
        return max(0.0, float(told["finished_at"] - told["started_at"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, OverflowError):
        return 0.0
