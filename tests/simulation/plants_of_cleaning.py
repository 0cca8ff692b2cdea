"""Bugs to be planted into what keeps a log in bounds: snapshots, low, and what retention has eaten.

Responsible for: naming each bug, and the promise that it breaks.
Must never: be more than a slip that somebody could make.
Called by: tests of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from anabranch import log_events as e
from anabranch.agent import cleaning, collecting, snapshot
from anabranch.agent.state import Run, Turn
from anabranch.agent.worker import AgentWorker
from anabranch.kafka.memory.cluster import MemorySubscription
from anabranch.kafka.seam import Place
from tests.simulation.planting import Patch, plant


@plant("a fold from a commit agrees", "long lives, crashes", start=17)
def low_moves_before_the_snapshot_is_folded(patch: Patch) -> None:
    def eager(state: Any, runs: Any, *args: Any) -> Iterator[e.RunSnapshot]:
        chosen = list(runs)
        yield from snapshots(state, chosen, *args)
        for run in chosen:
            run.first, run.next_as_of_first = state.position, state.next_request or 0

    snapshots = cleaning.snapshots
    patch.setattr(cleaning, "snapshots", eager)


@plant("a fold from a commit agrees", "long lives")
def low_moves_above_as_of(patch: Patch) -> None:
    folded = collecting.fold

    def beyond(state: Any, event: e.RunSnapshot, offset: int, at: float) -> None:
        folded(state, event, offset, at)
        run = state.runs.get(event.run_id)
        if run is not None and run.first == event.as_of:
            run.first = offset

    patch.setattr(collecting, "fold", beyond)


@plant("a fold from a commit agrees", "long lives", start=9)
def what_was_said_of_a_run_since_does_not_matter(patch: Patch) -> None:
    collected = collecting._collected

    def deaf(state: Any, event: e.RunSnapshot, offset: int) -> Any:
        if event.part == 1:
            state.last.pop(event.run_id, None)
        elif (found := state.collecting.get(event.run_id)) is not None:
            state.last[event.run_id] = found.offset
        return collected(state, event, offset)

    patch.setattr(collecting, "_collected", deaf)


@plant("a fold from a commit agrees", "long lives, crashes")
def parts_of_two_authors_make_one_snapshot(patch: Patch) -> None:
    collected = collecting._collected

    def mixing(state: Any, event: e.RunSnapshot, offset: int) -> Any:
        found = state.collecting.get(event.run_id)
        if found is not None:
            event, state.last[event.run_id] = replace(event, author=found.author, as_of=found.as_of), found.offset
        return collected(state, event, offset)

    patch.setattr(collecting, "_collected", mixing)


@plant("a fold from a commit agrees", "long lives", start=2)
def a_snapshot_loses_the_calls_that_are_out(patch: Patch) -> None:
    def lost(turn: Turn) -> Turn:
        return replace(turn, calls={key: call for key, call in turn.calls.items() if call.result is not None})

    _said(patch, lambda run: replace(run, turns=[lost(turn) for turn in run.turns]))


@plant("a fold from a commit agrees", "long lives")
def a_snapshot_loses_an_address(patch: Patch) -> None:
    _said(patch, lambda run: replace(run, addresses=run.addresses[:1]))


@plant("a fold from a commit agrees", "long lives")
def a_snapshot_forgets_which_request_is_next(patch: Patch) -> None:
    snapshots = cleaning.snapshots
    forgetful = lambda *args: (replace(event, next_request=0) for event in snapshots(*args))  # noqa: E731
    patch.setattr(cleaning, "snapshots", forgetful)


@plant("a fold from a commit agrees", "long lives, zombies", start=31)
def a_fold_goes_on_over_what_retention_has_eaten(patch: Patch) -> None:
    async def at_the_start(self: MemorySubscription, places: Any) -> dict[Place, int]:
        return dict.fromkeys(places, 0)

    patch.setattr(AgentWorker, "_takes_over_again", lambda self, owner, offset: False)
    patch.setattr(MemorySubscription, "begins", at_the_start)


def _said(patch: Patch, change: Callable[[Run], Run]) -> None:
    """Snapshots are of something else than the run."""
    write = snapshot.write
    patch.setattr(snapshot, "write", lambda run, *args: write(change(run), *args))
