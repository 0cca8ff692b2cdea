"""The fold: what a run is, given its events in the order of the log. PURE.

The law of the whole system: no clock, no I/O, no randomness, no configuration. An event says what it
presumes; if that does not hold here, the event changes nothing, so a copy, a zombie's or a late one is
harmless. Time is the broker's, as it stands on the event. `Owner` calls `apply` for each record, and then
looks at what is wanted (`effects.py`).

A defect in here fails the run whose event showed it, and nothing else.
"""

from __future__ import annotations

from typing import Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import collecting
from anabranch.agent.state import (
    Address,
    Call,
    Cancel,
    Ending,
    HandOff,
    Nexts,
    Partition,
    Result,
    Run,
    SpentCancel,
    Turn,
)
from anabranch.fields import lane_of

__all__ = ["apply"]


def apply(state: Partition, event: e.Event | None, offset: int, at: float) -> Run | None:
    """Fold one event that lies at `offset` with the broker's time `at`; returns the run that it spoke of.

    `None` as the event stands for a record that cannot be read: it only moves the position.
    """
    state.position, state.at = offset + 1, at
    if event is None:
        return None
    run_id: str | None = getattr(event, "run_id", None)
    try:
        _dispatch(state, event, offset, at)
    except Exception as error:  # noqa: BLE001 - whatever it was, only this run may suffer
        _fail_for_defect(state, run_id, offset, at, error)
    if run_id is not None:
        state.last[run_id] = offset
    return state.runs.get(run_id) if run_id is not None else None


def _fail_for_defect(state: Partition, run_id: str | None, offset: int, at: float, error: Exception) -> None:
    run = state.runs.get(run_id) if run_id is not None else None
    message = f"the run could not be folded at offset {offset}: {type(error).__name__}: {error}"
    state.defects.append(f"run {run_id}: {message}")
    if run is not None and run.open:
        _finish(run, Ending("failed", offset, at, m.RunError("internal", message)))


def _dispatch(state: Partition, event: e.Event, offset: int, at: float) -> None:
    if type(event) in _OF_OPEN_RUNS:
        run = _spoken_of(state, event.run_id, event.life)  # type: ignore[union-attr]  # mypy does not know the set
        if run is not None:
            _fold_event(run, event, offset, at)
        return
    match event:
        case e.RunRequested() | e.RequestNoted():
            _fold_link(state, event, offset, at)
        case e.PartitionReleased():
            state.done = max(state.done, event.done)
        case e.CallsHandedOff():
            _fold_calls_handed_off(state, event, offset, at)
        case e.RunSnapshot():
            collecting.fold(state, event, offset, at)
        case e.UnknownEvent():
            run = _spoken_of(state, event.run_id, event.life)
            if run is not None:
                run.parked = event.reason
        case e.RunCancelled():
            _fold_cancel(state, event, offset, at)
        case _:
            raise TypeError(f"the fold has no rule for {type(event).__name__}")


_OF_OPEN_RUNS: Final = frozenset(
    {e.ModelReplied, e.ModelFailed, e.ModelDiscarded, e.ModelHandedOff}
    | {e.ToolReturned, e.CallExpired, e.CallLost, e.CallDispatched, e.RunExpired}
)
"""They count for an open run alone, if they name its life."""


def _spoken_of(state: Partition, run_id: str | None, life: str | None) -> Run | None:
    """The open run, if the event names this very life of it."""
    run = state.runs.get(run_id) if run_id is not None else None
    return run if run is not None and run.ending is None and not run.parked and run.life == life else None


# --- what came from the lanes of requests: each counts once and in order -------------------------------------


def _fold_link(state: Partition, event: e.RunRequested | e.RequestNoted, offset: int, at: float) -> None:
    """It presumes where both lanes are, and moves its own: so whoever appends it knows of all runs that were opened."""
    state.tell(event.after, event.after_bulk)
    bulk = state.next_bulk
    if event.after != state.next_request or event.after_bulk not in (None, bulk):
        return
    if event.lane == "bulk":
        state.next_bulk, state.bulk_link = event.request_offset + 1, offset
    else:
        state.next_request, state.link = event.request_offset + 1, offset
    if isinstance(event, e.RunRequested):
        _open(state, event, bulk, offset, at)
    else:
        _note(state, event, Nexts(event.after, bulk), offset, at)
    if state.cancels:
        _end_if_cancelled(state, event, offset, at)


def _open(state: Partition, event: e.RunRequested, bulk: int | None, offset: int, at: float) -> None:
    known = state.runs.get(event.run_id)
    if known is not None and known.open:
        return
    state.runs.pop(event.run_id, None)  # so that `runs` stays in the order of `first`
    state.runs[event.run_id] = Run(
        event.run_id,
        event.life,
        first=offset,
        next_as_of_first=event.after,
        opened_at=at,
        first_at=at,
        opening=event.opening,
        owed_at=at,
        owed_offset=offset,
        stirred=offset,
        addresses=[Address(event.opening.request.reply_to)],
        size=event.size,
        bulk_as_of_first=bulk,
        trace=event.trace,
    )


def _note(state: Partition, event: e.RequestNoted, nexts: Nexts, offset: int, at: float) -> None:
    run = state.runs.get(event.run_id)
    if event.code == "rejected":
        state.notes[offset] = event
        state.note_links[offset] = nexts
    elif event.code == "cancelled" and run is not None and run.open and not run.parked:
        _cancel(run, offset, at, "a client asked for it")
    elif event.code == "duplicate" and run is not None:
        known = [address.reply_to for address in run.addresses]
        at_inbox = known.index(event.reply_to) if event.reply_to in known else len(known)  # one answer for all who ask
        run.addresses[at_inbox : at_inbox + 1] = [Address(event.reply_to, None if run.open else offset)]


# --- cancels that may come before their request is taken up -----------------------------------------------------


def _fold_cancel(state: Partition, event: e.RunCancelled, offset: int, at: float) -> None:
    """An open run ends, unless it was asked for after the cancel; what is still to be taken up will not go on."""
    run, before = state.runs.get(event.run_id), Nexts(event.before, event.before_bulk)
    is_meant = run is not None and event.life in (None, run.life) and not _is_after(run, before)
    if run is not None and is_meant and run.open and not run.parked:
        _cancel(run, offset, at, event.reason)
    if event.life is None and not state.nexts.is_past(before):
        known = state.cancels.pop(event.run_id, None)
        if known is not None:
            before = Nexts(*map(_later, before, known.before))
        state.cancels[event.run_id] = Cancel(before, event.reason, offset, at, state.nexts)


def _is_after(run: Run, before: Nexts) -> bool:
    lane = lane_of(run.life)
    number, limit = run.life.rpartition(".")[2], before.of(lane)
    return limit is not None and number.isdecimal() and int(number) >= limit


def _later(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _end_if_cancelled(state: Partition, event: e.RunRequested | e.RequestNoted, offset: int, at: float) -> None:
    """The run that this has opened was cancelled before; and a cancel that no request can be below is forgotten."""
    cancel, run = state.cancels.get(event.run_id), state.runs.get(event.run_id)
    opened = run is not None and run.first == offset
    if run is not None and opened and cancel is not None and cancel.is_of(event.lane, event.request_offset):
        _cancel(run, offset, at, cancel.reason)
        state.spent.append(SpentCancel(cancel.offset, cancel.nexts, offset))
    nexts = state.nexts
    for run_id in [event.run_id, next(iter(state.cancels))]:
        if (known := state.cancels.get(run_id)) is not None and nexts.is_past(known.before):
            del state.cancels[run_id]


# --- the life of a run ---------------------------------------------------------------------------------------


def _fold_event(run: Run, event: e.Event, offset: int, at: float) -> None:
    match event:
        case e.ModelReplied():
            _fold_reply(run, event, offset, at)
        case e.ToolReturned() | e.CallExpired() | e.CallLost() | e.CallDispatched():
            call = run.call(event.call_id)
            if call is not None and call.result is None:
                _fold_call(run, call, event, offset, at)
        case e.ModelFailed():
            if run.owed and event.turn == run.turn:
                run.model_s += at - run.owed_at
                _finish(run, Ending("failed", offset, at, event.error))
        case e.ModelDiscarded():
            _discard(run, event.attempt, event.usage)
        case e.ModelHandedOff():
            if run.owed and event.turn == run.turn:
                run.hand_offs[event.worker] = HandOff(event.worker, offset, event.for_s, at)
        case e.RunExpired():
            if at > run.opening.deadline:
                if event.attempt is not None and event.usage is not None:
                    _discard(run, event.attempt, event.usage)
                message = event.reason or "the run's deadline has passed"
                _finish(run, Ending("expired", offset, at, m.RunError("deadline", message)))


def _discard(run: Run, attempt: str, usage: m.Usage) -> None:
    """It was paid for and is not used; once, for an append may be written twice."""
    if attempt not in run.discards:
        run.discards.add(attempt)
        run.discarded += usage


def _fold_reply(run: Run, event: e.ModelReplied, offset: int, at: float) -> None:
    if not run.owed or event.turn != run.turn:
        return
    run.owed = False
    run.hand_offs.clear()
    run.model_s += at - run.owed_at
    run.usage += event.usage
    run.size += len(event.body)
    calls = {planned.call_id: Call(planned) for planned in event.plan}
    turn = Turn(event.turn, event.attempt, event.outcome, event.body, at, calls, inputs=event.inputs, usage=event.usage)
    turn.model = event.model
    run.turns.append(turn)
    if event.outcome == "final":
        _finish(run, Ending("completed", offset, at))
    elif event.outcome == "stopped" or (event.outcome == "calls" and not calls):
        _finish(run, Ending("failed", offset, at, _stopped_for(event)))
    elif (exhausted := _exhausted(run)) is not None:
        run.turns[-1].calls.clear()  # what nobody will read is not run
        _finish(run, Ending("failed", offset, at, exhausted))
    elif event.outcome == "pause":
        _owe(run, offset, at)
    else:
        _open_batch(run, offset, at)


def _stopped_for(event: e.ModelReplied) -> m.RunError | None:
    """Why, where the reply does not say it itself: it was cut where the run's money ended."""
    if event.code is None:
        return None
    return m.RunError(event.code, "the reply was cut off: it had as many tokens as were left to buy of max_cost_usd")


def _exhausted(run: Run) -> m.RunError | None:
    """Why the run may not go on after this reply, if so."""
    limits = run.opening.limits
    if run.turn >= limits.max_turns:
        return m.RunError("max_turns", f"the model wanted to go on after {limits.max_turns} turns")
    if limits.max_cost_usd is None:
        return None
    spent = (run.usage + run.discarded).cost_usd
    if spent is None:
        return m.RunError("budget_exceeded", f"nobody knows what of ${limits.max_cost_usd:.4f} is spent: no price")
    if spent >= limits.max_cost_usd:
        return m.RunError("budget_exceeded", f"${spent:.4f} of ${limits.max_cost_usd:.4f} is spent")
    return None


def _owe(run: Run, offset: int, at: float) -> None:
    """The next model call is owed."""
    run.turn += 1
    run.owed, run.owed_at, run.owed_offset = True, at, offset
    run.stirred = offset


# --- a batch ---------------------------------------------------------------------------------------------------


def _open_batch(run: Run, offset: int, at: float) -> None:
    for call in run.turns[-1].calls.values():
        if call.planned.rejected is not None:
            call.result = Result("error", at, text=call.planned.rejected)
            if call.planned.on_error == "abort":
                return _abort(run, call, offset, at)
    return _advance(run, offset, at)


def _fold_call(run: Run, call: Call, event: e.Event, offset: int, at: float) -> None:
    """An event of a call that has no result yet."""
    match event:
        case e.ToolReturned():
            run.size += len(event.body)
            _settle(run, call, Result(event.outcome, at, body=event.body), offset, at)
        case e.CallExpired():
            if call.due is not None and at > run.deadline_of(call):
                _settle(run, call, _expired(call, event.reason, at), offset, at)
        case e.CallLost():
            if call.hand_off is None or call.hand_off.offset != event.handoff:
                return
            if call.planned.delivery == "at_most_once":
                _settle(run, call, Result("unknown", at, text=e.OUTCOME_UNKNOWN), offset, at)
            else:
                call.due, call.due_at, call.hand_off = offset, at, None
                call.dispatch += 1
        case e.CallDispatched():
            call.token = call.token or event.token


def _expired(call: Call, reason: str, at: float) -> Result:
    if call.planned.delivery == "at_most_once" and call.token is not None:
        return Result("unknown", at, text=e.OUTCOME_UNKNOWN)
    return Result("timeout", at, text=reason or "the call's deadline passed before it had a result")


def _settle(run: Run, call: Call, result: Result, offset: int, at: float) -> None:
    call.result, call.hand_off = result, None
    if call.planned.on_error == "abort" and result.failed:
        _abort(run, call, offset, at)
    else:
        _advance(run, offset, at)


def _advance(run: Run, offset: int, at: float) -> None:
    """Level by level: publish what has become ready, fail what never will, and see whether all are in."""
    batch = run.turns[-1]
    moved = True
    while moved:
        moved, complete = False, True
        for call in batch.calls.values():
            if call.result is None:
                complete = False
                if call.due is None:
                    moved |= _release(batch, call, offset, at)
                    run.stirred = offset
    if complete:
        batch.finished_at, batch.inputs = at, None
        run.tools_s += at - batch.replied_at
        _owe(run, offset, at)


def _release(batch: Turn, call: Call, offset: int, at: float) -> bool:
    """Decide a call that waits for others, if they are all in. True if it got a result by that."""
    if call.planned.after:
        before = [batch.calls[call_id] for call_id in call.planned.after if call_id in batch.calls]
        if any(other.result is None for other in before):
            return False
        if failed := sorted({other.planned.tool for other in before if other.failed}):
            names = ", ".join(failed)
            call.result = Result("error", at, text=f"not run: it comes after {names}, which failed")
            return True
    call.due, call.due_at = offset, at
    return False


def _fold_calls_handed_off(state: Partition, event: e.CallsHandedOff, offset: int, at: float) -> None:
    for call_id in event.calls:
        state.last[run_of(call_id)] = offset
        run = state.runs.get(run_of(call_id))
        call = run.call(call_id) if run is not None and not run.parked else None
        if call is not None and call.result is None and call.due is not None:
            call.hand_off = HandOff(event.worker, offset, event.for_s, at)


def run_of(call_id: str) -> str:
    """The run of a call id, `<run_id>/<turn>.<token>/<index>`."""
    return call_id.rsplit("/", 2)[0]


# --- endings ------------------------------------------------------------------------------------------------------


def _abort(run: Run, call: Call, offset: int, at: float) -> None:
    message = f"tool {call.planned.tool} failed, and its on_error is 'abort'"
    _finish(run, Ending("failed", offset, at, m.RunError("tool_aborted", message)))


def _cancel(run: Run, offset: int, at: float, reason: str) -> None:
    _finish(run, Ending("cancelled", offset, at, m.RunError("cancelled", reason or "the run was cancelled")))


def _finish(run: Run, ending: Ending) -> None:
    run.owed = False
    run.hand_offs.clear()
    run.ending = ending
    run.stirred = ending.offset
    run.addresses = [Address(address.reply_to, ending.offset) for address in run.addresses]
