"""The answer of a run that has ended, as a function of its fold. PURE.

Whoever computes it, whenever, gets the same bytes: so an answer that is sent twice is sent twice the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson

from anabranch.agent.reply.referring import content_ref_of, content_sealed_of
from anabranch.agent.results import UNREADABLE, result_of, seconds_between, shown_content
from anabranch.agent.state import Call, Run, Turn
from anabranch.bodies import whole
from anabranch.log_events import RequestNoted
from anabranch.messages import CallCounts, RunError, RunResponse, Timing, TotalUsage

_STOPS = {
    "max_tokens": ("max_tokens", "the reply was cut off at its max_tokens"),
    "model_context_window_exceeded": ("context_exceeded", "the conversation no longer fits the model's context"),
    "refusal": ("model_refused", "the model refused to go on"),
}


def answer(run: Run) -> bytes:
    """The body for `agent.responses`. The run must have ended."""
    return _body(response(run))


def referring_answer(run: Run, reference: str) -> bytes:
    """The same, with what the run said last in the store."""
    return _body(replace(response(run), output=None, content=None, content_ref=reference))


def brief_answer(run: Run, why: str) -> bytes:
    """The same, without what the run said last: it cannot be sent."""
    told = response(run)
    error = RunError("internal", f"the answer cannot be sent whole, but is in the run's log: {why}")
    told = replace(told, output=None, content=None, content_ref=None, content_sealed=None, error=told.error or error)
    return _body(told)


def _body(told: RunResponse) -> bytes:
    return whole(told, "content_ref", "content_sealed", "metadata_sealed")


def response(run: Run) -> RunResponse:
    """What `agent.responses` says of a run that has ended."""
    assert run.ending is not None, "only a run that has ended has an answer"
    last = last_words(run)
    said = [_said(turn.body) for turn in last]
    stop = said[-1][0] if said else None
    parts = [content_ref_of(turn.body) for turn in last]
    seals = [seal for turn in last if (seal := content_sealed_of(turn.body)) is not None]
    elsewhere = bool(seals) or any(parts)
    output, content = words_of(
        [] if elsewhere else [block for _, blocks in said for block in blocks], run.ending.status == "completed"
    )
    is_forgotten = run.ending.error is not None and run.ending.error.code == "forgotten"  # nobody can read it any more
    return RunResponse(
        run_id=run.run_id,
        agent=run.opening.request.agent,
        revision=run.opening.revision,
        status=run.ending.status,
        output=None if elsewhere else output,
        content=content,
        content_ref=parts[0] if len(parts) == 1 else None,
        stop_reason=stop,
        error=_error(run, stop),
        usage=_usage(run),
        turns=len(run.turns),
        calls=_counts(run),
        timing=_timing(run),
        metadata=run.opening.request.metadata,
        content_sealed=None if is_forgotten else seals or None,
        metadata_sealed=None if is_forgotten else run.opening.request.metadata_sealed,
    )


def error_of(run: Run) -> RunError | None:
    """Why a run that has ended did not complete; None if it did."""
    if run.ending is None or run.ending.status == "completed" or run.ending.error is not None:
        return run.ending.error if run.ending is not None else None
    last = last_words(run)
    return _error(run, _said(last[-1].body)[0] if last else None)


def note_answer(note: RequestNoted) -> bytes:
    """The answer to a request that was rejected."""
    error = note.error or RunError("invalid_request", "the request was rejected")
    return _body(RunResponse(note.run_id, None, None, "failed", error=error))


def last_words(run: Run) -> list[Turn]:
    """The last reply, behind the paused ones that it goes on with."""
    first = len(run.turns) - 1
    while first > 0 and run.turns[first - 1].outcome == "pause":
        first -= 1
    return run.turns[max(0, first) :]


def words_of(blocks: list[dict[str, Any]], completed: bool) -> tuple[str | None, list[dict[str, Any]] | None]:
    """`output` and `content` of a response, from the blocks that the run said last."""
    text = "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")
    only_text = all(block.get("type") == "text" for block in blocks)
    return text if completed else None, None if (completed and only_text) or not blocks else blocks


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
    content = shown_content(result) if result else UNREADABLE
    if isinstance(content, str):
        return content
    try:
        return orjson.dumps(content).decode()
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _usage(run: Run) -> TotalUsage:
    used = run.usage
    return TotalUsage(
        used.input_tokens,
        used.output_tokens,
        used.cache_read_input_tokens,
        used.cache_creation_input_tokens,
        round(used.cost_usd, 9) if used.cost_usd is not None else None,
        run.discarded,
    )


def _counts(run: Run) -> CallCounts:
    total = failed = batches = widest = 0
    for turn in run.turns:
        if calls := turn.calls:
            batches, total, widest = batches + 1, total + len(calls), max(widest, len(calls))
            failed += [call.failed for call in calls.values()].count(True)
    return CallCounts(total, failed, batches, widest)


def _timing(run: Run) -> Timing:
    assert run.ending is not None
    queued = max(0.0, run.opened_at - run.opening.requested_at)
    wall = max(0.0, run.ending.at - run.opened_at) + queued
    return Timing(
        round(queued, 6), round(run.model_s, 6), round(run.tools_s, 6), round(wall, 6), round(_sequential(run), 6)
    )


def _sequential(run: Run) -> float:
    total: float = 0
    for turn in run.turns:
        for call in turn.calls.values():
            if (result := call.result) is not None and result.body is not None:
                total += _took(result.body)
    return total


def _took(body: bytes) -> float:
    """The seconds from a call's start to its end; 0 if its worker did not say. Only these two fields are looked at."""
    try:
        told = orjson.loads(body)
        return seconds_between(told["started_at"], told["finished_at"])
    except (orjson.JSONDecodeError, KeyError, TypeError, OverflowError):
        return 0.0
