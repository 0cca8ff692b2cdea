"""What must happen next, given the fold. PURE: it reads the state and decides nothing else.

A *model call* is settled only by a folded reply. A *publication* (a tool call, an answer) is settled by the
broker's acknowledgement; its `cause` is the offset of the event that made it due, and what lies below *done*
is not made again. Every effect's key derives from the run, so doing one twice is recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from anabranch.agent.state import Run


class ModelDue(NamedTuple):
    """The run owes the model call of `turn`."""

    run_id: str
    life: str
    turn: int


class CallDue(NamedTuple):
    """A tool call to be published; `dispatch` counts how often."""

    run_id: str
    life: str
    call_id: str
    dispatch: int
    cause: int
    at_most_once: bool


class AnswerDue(NamedTuple):
    """The answer of a run that has ended, for its address of that number."""

    run_id: str
    life: str
    address: int
    cause: int


class NoteDue(NamedTuple):
    """The error answer of a request that was rejected at `cause`."""

    cause: int


Publication = CallDue | AnswerDue | NoteDue


def model_due(run: Run) -> ModelDue | None:
    if not run.owed or run.ending is not None or run.parked:
        return None
    return ModelDue(run.run_id, run.life, run.turn)


def publications(run: Run) -> Sequence[Publication]:
    """Every publication that the fold wants made for this run, done before or not: none while it is parked."""
    return () if run.parked else wanted(run)


def wanted(run: Run) -> Sequence[Publication]:
    """Those of a parked run too: whoever goes on with it wants them still."""
    run_id, life = run.run_id, run.life
    if run.ending is not None:
        return [AnswerDue(run_id, life, number, address.cause or 0) for number, address in enumerate(run.addresses)]
    if run.owed or not run.turns:
        return ()
    return [
        CallDue(run_id, life, call_id, call.dispatch, call.due, call.planned.delivery == "at_most_once")
        for call_id, call in run.turns[-1].calls.items()
        if call.due is not None and call.result is None
    ]
