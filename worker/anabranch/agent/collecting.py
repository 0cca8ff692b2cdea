"""The fold's rule for snapshots: when one that has come in parts stands for a run's older events. PURE.

It counts if it is whole, if it begins no earlier than this fold, and if nothing was said of the run since. Must never:
undo what was folded for one that cannot be read. `snapshot.py` writes and reads the parts; `fold.py` alone calls this.
"""

from __future__ import annotations

import math

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import snapshot
from anabranch.agent.state import Collecting, Partition, Run
from anabranch.errors import WireError


def fold(state: Partition, event: e.RunSnapshot, offset: int, at: float) -> None:
    """It counts when its last part is in, and only if nothing else was said of the run since `as_of`."""
    found = _collected(state, event, offset)
    if found is None or len(found.parts) < event.parts:
        return
    del state.collecting[event.run_id]
    state.tell(event.next_request, event.next_bulk)  # nothing since `as_of` has named them either
    run = state.runs.get(event.run_id)
    if run is not None and (not run.open or run.life != event.life or run.parked):
        return
    try:
        said = snapshot.read(event, found.parts)
    except WireError as error:
        _not_said(state, event, at, str(error))
        return
    run = state.runs.setdefault(event.run_id, said)
    run.first, run.first_at = max(run.first, event.as_of), at
    run.next_as_of_first, run.bulk_as_of_first = event.next_request, event.next_bulk


def _not_said(state: Partition, event: e.RunSnapshot, at: float, why: str) -> None:
    """A snapshot that cannot be read: the older events still stand, or else the run is parked at `as_of`.

    Whoever can read it begins there again, so low may not pass it.
    """
    if event.run_id in state.runs:
        state.defects.append(f"run {event.run_id}: {why}: it is void, and the older events still stand")
        return
    opening = e.Opening(m.RunRequest(event.run_id), "", math.inf, e.RunLimits(0), at)
    run = Run(event.run_id, event.life, event.as_of, event.next_request, at, opening, owed=False, first_at=at)
    run.parked, run.bulk_as_of_first = why, event.next_bulk
    state.runs[event.run_id] = run
    state.defects.append(f"run {event.run_id} is parked: {why}")


def _collected(state: Partition, event: e.RunSnapshot, offset: int) -> Collecting | None:
    """The parts up to this one, if they still fit; a part that comes twice is taken once."""
    found, last = state.collecting.get(event.run_id), state.last.get(event.run_id, -1)
    if found is None or (found.author, found.as_of) != (event.author, event.as_of) or found.offset != last:
        state.collecting.pop(event.run_id, None)
        if event.as_of < state.began or last >= event.as_of or event.part != 1:
            return None
        found = state.collecting[event.run_id] = Collecting(event.author, event.as_of, offset)
    found.offset = offset
    if event.part == len(found.parts) + 1:
        found.parts.append(event.body)
    return found
