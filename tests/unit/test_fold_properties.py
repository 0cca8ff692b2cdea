"""Laws of the fold that hold for any log: copies are harmless, folding is in steps, what is settled stays, batches end.

Responsible for: random logs of a small protocol with copies, strays and zombies among them.
Must never: know more of the fold than its state.
Called by: pytest.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b

from anabranch import log_events as e
from anabranch.agent import effects, fold
from anabranch.agent.state import Partition, Run

NOTES: st.SearchStrategy[e.NoteCode] = st.sampled_from(["rejected", "moved", "duplicate", "cancelled"])
INDEXES, TURNS, LIVES = st.integers(0, 2), st.integers(1, 3), st.sampled_from(["0", "1", "2"])
Log = list[tuple[e.Event, float]]


@st.composite
def _plans(draw: st.DrawFn, turn: int) -> list[e.PlannedCall]:
    size = draw(st.integers(1, 3))
    return [
        b.planned(
            i,
            turn,
            after=[b.call_id(i - 1, turn)] if i and draw(st.booleans()) else [],
            delivery=draw(st.sampled_from(["at_least_once", "at_most_once"])),
            on_error=draw(st.sampled_from(["return", "return", "abort"])),
            rejected=draw(st.sampled_from([None, None, "no"])),
            deadline_s=draw(st.sampled_from([None, 5.0])),
        )
        for i in range(size)
    ]


@st.composite
def _events(draw: st.DrawFn) -> e.Event:
    turn, index, life = draw(TURNS), draw(INDEXES), draw(LIVES)
    number = draw(st.integers(0, 3))
    makers: list[Any] = [
        lambda: b.requested(after=number, offset=draw(st.integers(number, 3))),
        lambda: b.noted(draw(NOTES), after=number, offset=number),
        lambda: b.calls(*draw(_plans(turn)), turn=turn, life=life),
        lambda: b.calls(*draw(_plans(1)), turn=1, life="0"),
        lambda: b.replied(draw(st.sampled_from(["final", "pause", "stopped"])), turn, life=life),
        lambda: b.failed(turn, life=life),
        lambda: b.discarded(turn, draw(st.sampled_from("xy")), life=life),
        lambda: b.returned(index, draw(st.sampled_from(["ok", "ok", "error", "unknown"])), turn=turn, life=life),
        lambda: b.returned(index, turn=1, life="0"),
        lambda: b.call_expired(index, turn=turn, life=life),
        lambda: b.run_expired(life=life),
        lambda: b.cancelled(life=draw(st.sampled_from([None, "0", "1"]))),
        lambda: b.model_handed_off(turn, life=life),
        lambda: b.calls_handed_off(b.call_id(index, turn)),
        lambda: b.lost(draw(st.integers(0, 12)), index, life=life),
        lambda: b.dispatched(draw(st.sampled_from(["t1", "t2"])), index, life=life),
        lambda: e.PartitionReleased(number),
    ]  # fmt: skip
    made: e.Event = draw(st.sampled_from(makers))()
    return made


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Mostly sensible at the start, then anything; the broker's time never goes back."""
    events: list[e.Event] = [b.requested()] if draw(st.booleans()) else []
    events += draw(st.lists(_events(), max_size=25))
    at, log = 0.0, []
    for event in events:
        at += draw(st.sampled_from([0.0, 0.5, 4.0, 600.0]))
        log.append((event, at))
    return log


def whole(log: Log, state: Partition | None = None, began: int = 0) -> Partition:
    state = state or Partition(next_request=0)
    for offset, (event, at) in enumerate(log, began):
        fold.apply(state, event, offset, at)
    return state


def settled(state: Partition) -> dict[Any, Any]:
    """What has been decided: replies, results, tokens, endings."""
    found: dict[Any, Any] = {}
    for run in state.runs.values():
        found[run.run_id, run.life] = run.ending
        for turn in run.turns:
            found[run.run_id, run.life, turn.number] = (turn.attempt, turn.outcome, turn.body)
            for call_id, call in turn.calls.items():
                found[run.run_id, run.life, call_id] = call.result
    return {key: value for key, value in found.items() if value is not None}


@given(logs())
def test_an_event_that_is_written_twice_changes_nothing(log: Log) -> None:
    state = Partition(next_request=0)
    for offset, (event, at) in enumerate(log):
        fold.apply(state, event, offset, at)
        if not isinstance(event, e.ModelHandedOff | e.CallsHandedOff):  # the later copy is the one that counts
            again = copy.deepcopy(state)
            fold.apply(again, event, offset, at)
            assert again == state


@given(logs(), st.integers(0, 25))
def test_a_copy_that_comes_later_never_undoes_what_is_settled(log: Log, place: int) -> None:
    state = whole(log)
    before = settled(state)
    for event, _ in log[place:] + log[:place]:
        fold.apply(state, event, state.position, log[-1][1])
    after = settled(state)
    lives = {(run.run_id, run.life) for run in state.runs.values()}
    assert all(after[key] == value for key, value in before.items() if key[:2] in lives)


@given(logs(), st.integers(0, 25))
def test_folding_a_part_and_then_the_rest_is_folding_it_all(log: Log, cut: int) -> None:
    first = copy.deepcopy(whole(log[:cut]))
    assert whole(log[cut:], first, began=len(log[:cut])) == whole(log)


@given(logs())
def test_what_is_settled_stays_so(log: Log) -> None:
    state, known = Partition(next_request=0), {}  # type: ignore[var-annotated]
    for offset, (event, at) in enumerate(log):
        fold.apply(state, event, offset, at)
        now = settled(state)
        lives = {(run.run_id, run.life) for run in state.runs.values()}
        assert all(now[key] == value for key, value in known.items() if key[:2] in lives)
        known = now


@given(logs())
def test_events_of_another_life_change_nothing(log: Log) -> None:
    state = whole(log)
    for event, at in log:
        if isinstance(event, e.RunRequested | e.RequestNoted | e.CallsHandedOff | e.PartitionReleased):
            continue
        after = copy.deepcopy(state)
        fold.apply(after, replace(event, life=f"{event.life}-another"), 99, at + 1e6)
        after.position = state.position
        assert after == state


@given(logs())
def test_a_run_that_goes_on_has_one_result_for_each_call(log: Log) -> None:
    for run in whole(log).runs.values():
        for turn in run.turns[:-1] if run.turns and not run.owed else run.turns:
            if run.open:
                assert all(call.result is not None for call in turn.calls.values())
                assert [call.planned.call_id for call in turn.calls.values()] == list(turn.calls)


@given(logs())
def test_an_open_run_always_waits_for_somebody(log: Log) -> None:
    """For the model, or for a call that is out: else it would wait for its deadline and nobody would know why."""
    for run in whole(log).runs.values():
        if run.open and not run.parked:
            assert effects.model_due(run) is not None or list(effects.publications(run))


@given(logs(), st.randoms(use_true_random=False))
def test_whatever_came_before_a_run_can_be_brought_to_its_end(log: Log, chance: Any) -> None:
    state = whole(log)
    at = log[-1][1] if log else 0.0
    for _ in range(60):
        runs = [run for run in state.runs.values() if run.open]
        if not runs:
            break
        events = [event for run in runs for event in _served(run, chance)]
        chance.shuffle(events)
        for event in [*events, *events]:
            fold.apply(state, event, state.position, at)
    assert all(not run.open for run in state.runs.values())


def _served(run: Run, chance: Any) -> list[e.Event]:
    """What workers would append for what the run wants now."""
    if run.owed:
        outcome = chance.choice(["calls", "calls", "final", "pause"])
        plan = [b.planned(i, run.turn) for i in range(chance.randint(1, 3))] if outcome == "calls" else []
        return [b.replied(outcome, run.turn, plan=plan, life=run.life, attempt=str(chance.random()))]
    out = [p.call_id for p in effects.publications(run) if isinstance(p, effects.CallDue)]
    return [e.ToolReturned(run.run_id, run.life, call_id, "ok", b.result()) for call_id in out]
