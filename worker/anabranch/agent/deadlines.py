"""The times that matter to an open run, and what is to be appended when one of them has come. PURE.

A deadline is the run's or a call's; a hand-off has a time too, after which nobody goes on with the call. They are
rebuilt from the fold, never stored: `Owner` sets an alarm for each, and asks here what it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from anabranch import log_events as e
from anabranch.agent.state import Run

_LATE: Final = 0.001
"""Seconds: the fold wants the broker's time to be past a deadline, not at it."""


class Moment(NamedTuple):
    """What a timer is for: the deadline of a run or a call, the end of a hand-off's time, of a call ("lost") or a model
    call, or another look at the run. `subject` is a call id or the model's turn, `hand_off` the hand-off's offset.
    """

    what: Literal["run", "call", "lost", "model", "again"]
    run_id: str
    life: str
    subject: str | int | None = None
    hand_off: int | None = None


def moments(run: Run) -> list[tuple[Moment, float]]:
    """The deadlines that are waited for, in epoch seconds."""
    found = [(Moment("run", run.run_id, run.life), run.opening.deadline + _LATE)]
    if (batch := run.batch) is None:
        return found
    for call_id, call in batch.calls.items():
        if call.planned.deadline_s is not None and call.due is not None and call.result is None:
            found.append((Moment("call", run.run_id, run.life, call_id), run.deadline_of(call) + _LATE))
    return found


def handed_off(run: Run, at: float) -> Iterator[tuple[Moment, float]]:
    """The calls that others have handed off, and how many seconds are left of that by the broker's clock, which said
    `at` last.
    """
    for call_id, call in run.batch.calls.items() if run.batch is not None else ():
        if call.hand_off is not None and call.due is not None and call.result is None:
            lost = Moment("lost", run.run_id, run.life, call_id, call.hand_off.offset)
            yield lost, call.hand_off.left_s(at)


def closed(run: Run) -> list[Moment]:
    """The moments that are of no interest any more when the run is over."""
    timed = [
        call_id for turn in run.turns for call_id, call in turn.calls.items() if call.planned.deadline_s is not None
    ]
    return [Moment("run", run.run_id, run.life), *(Moment("call", run.run_id, run.life, call_id) for call_id in timed)]


def event_at(run: Run, moment: Moment) -> e.Event | None:
    """What to append when it has come. Whether it has by the broker's clock, the fold will say."""
    if moment.what == "run":
        return e.RunExpired(run.run_id, run.life, "the run's deadline has passed")
    call = run.call(str(moment.subject))
    if call is None or call.result is not None:
        return None
    if moment.what == "call":
        reason = f"{call.planned.tool} had no result {call.planned.deadline_s:g} s after it was published"
        return e.CallExpired(run.run_id, run.life, call.planned.call_id, reason)
    if call.hand_off is None or call.hand_off.offset != moment.hand_off:
        return None
    return e.CallLost(run.run_id, run.life, call.planned.call_id, call.hand_off.offset)
