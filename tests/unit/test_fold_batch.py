"""The fold of a batch: results, levels, deadlines, hand-offs, losses, dispatches.

Responsible for: the rows of the event table that name a call. `test_fold.py` has the others.
Must never: go through records, owners or a broker.
Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import builders as b
from tests.unit.test_fold import error_of, unchanged_by

from anabranch import log_events as e
from anabranch.agent import effects
from anabranch.agent.effects import AnswerDue, CallDue
from anabranch.agent.state import Run

AMO: dict[str, Any] = {"delivery": "at_most_once", "deadline_s": 60.0}


def due(run: Run) -> list[str]:
    return [p.call_id.rsplit("/", 1)[1] for p in effects.publications(run) if isinstance(p, CallDue)]


def outcomes(run: Run) -> list[str | None]:
    return [call.result.outcome if call.result else None for call in run.turns[-1].calls.values()]


def text_of(run: Run, index: int) -> str:
    result = run.turns[-1].calls[b.call_id(index)].result
    assert result is not None
    return result.text or ""


# --- results ---------------------------------------------------------------------------------------------


def test_all_calls_without_predecessors_are_due_at_once() -> None:
    run = b.run_after(b.calls(b.planned(0), b.planned(1)))
    assert list(effects.publications(run)) == [
        CallDue("r", "0", b.call_id(0), 1, 1, False),
        CallDue("r", "0", b.call_id(1), 1, 1, False),
    ]


def test_the_last_result_owes_the_next_model_call() -> None:
    state = b.folded(b.requested(), b.calls(b.planned(0), b.planned(1)), b.returned(1))
    run = b.run_of(state)
    assert due(run) == ["0"]
    assert effects.model_due(run) is None
    b.folded(b.returned(0), state=state)
    assert effects.model_due(run) == effects.ModelDue("r", "0", 2)
    assert not due(run)


def test_the_first_result_of_a_call_counts() -> None:
    state = b.folded(b.requested(), b.calls(b.planned(0), b.planned(1)), b.returned(0))
    late: list[e.Event] = [b.returned(0, "error"), b.call_expired(0), b.lost(2), b.dispatched(), b.calls_handed_off()]
    assert unchanged_by(state, *late, at=9e9)


def test_a_result_of_an_earlier_turn_changes_nothing() -> None:
    state = b.folded(b.requested(), b.calls(), b.returned(), b.calls(turn=2))
    assert unchanged_by(state, b.returned(0, turn=1))


@pytest.mark.parametrize("event", [b.returned(life="9"), b.returned(7), b.returned(turn=2)])
def test_a_result_of_another_life_or_call_changes_nothing(event: e.Event) -> None:
    assert unchanged_by(b.folded(b.requested(), b.calls()), event)


def test_a_call_id_with_another_attempt_has_no_right_to_answer() -> None:
    state = b.folded(b.requested(), b.calls())
    forged = e.ToolReturned("r", "0", b.call_id(attempt="guess"), "ok", b.result())
    assert unchanged_by(state, forged)


@pytest.mark.parametrize("outcome", ["error", "timeout", "unknown"])
def test_a_call_that_fails_is_a_result_like_any_other(outcome: Any) -> None:
    run = b.run_after(b.calls(), b.returned(0, outcome))
    assert run.turn == 2
    assert outcomes(run) == [outcome]


@pytest.mark.parametrize("outcome", ["error", "timeout", "unknown"])
def test_a_failed_call_aborts_the_run_if_its_tool_says_so(outcome: Any) -> None:
    run = b.run_after(b.calls(b.planned(0, on_error="abort"), b.planned(1)), b.returned(0, outcome))
    assert error_of(run) == "tool_aborted"
    assert [type(p) for p in effects.publications(run)] == [AnswerDue]


def test_a_rejected_call_has_its_error_from_the_start() -> None:
    run = b.run_after(b.calls(b.planned(0, rejected="no such tool"), b.planned(1)))
    assert text_of(run, 0) == "no such tool"
    assert due(run) == ["1"]


def test_a_batch_of_rejected_calls_is_complete_at_once() -> None:
    run = b.run_after(b.calls(b.planned(0, rejected="no"), b.planned(1, rejected="no")))
    assert outcomes(run) == ["error", "error"]
    assert run.turn == 2


def test_a_rejected_call_aborts_the_run_if_its_tool_says_so() -> None:
    assert error_of(b.run_after(b.calls(b.planned(0, rejected="no", on_error="abort")))) == "tool_aborted"


# --- levels ----------------------------------------------------------------------------------------------


def test_calls_run_level_by_level() -> None:
    second, third = b.planned(1, after=[b.call_id(0)]), b.planned(2, after=[b.call_id(0), b.call_id(1)])
    state = b.folded(b.requested(), b.calls(third, b.planned(0), second))
    run = b.run_of(state)
    assert due(run) == ["0"]
    b.folded(b.returned(0), state=state)
    assert due(run) == ["1"]
    b.folded(b.returned(1), state=state)
    assert due(run) == ["2"]
    assert [p.cause for p in effects.publications(run)] == [3]


def test_a_failed_predecessor_fails_all_that_come_after_it() -> None:
    second, third = b.planned(1, after=[b.call_id(0)]), b.planned(2, after=[b.call_id(1)])
    run = b.run_after(b.calls(third, second, b.planned(0, tool="first")), b.returned(0, "timeout"))
    assert outcomes(run) == ["error", "error", "timeout"]
    assert "first" in text_of(run, 1)
    assert run.turn == 2


def test_nothing_of_an_aborted_run_is_published_any_more() -> None:
    first, second = b.planned(0, on_error="abort"), b.planned(1, after=[b.call_id(0)])
    state = b.folded(b.requested(), b.calls(first, second, b.planned(2)), b.returned(0, "error"))
    run = b.run_of(state)
    assert outcomes(run) == ["error", None, None]
    assert [type(p) for p in effects.publications(run)] == [AnswerDue]
    assert unchanged_by(state, b.returned(2)), "it was under way, and comes to its end unheard"


def test_a_call_that_is_not_run_as_another_failed_aborts_nothing() -> None:
    """What becomes of a failure is said by the tool that failed; the other one has not."""
    second = b.planned(1, after=[b.call_id(0)], on_error="abort")
    run = b.run_after(b.calls(b.planned(0), second), b.returned(0, "error"))
    assert outcomes(run) == ["error", "error"]
    assert run.turn == 2


def test_a_predecessor_of_several_is_waited_for_even_if_another_has_failed() -> None:
    third = b.planned(2, after=[b.call_id(0), b.call_id(1)])
    state = b.folded(b.requested(), b.calls(b.planned(0), b.planned(1), third), b.returned(0, "error"))
    assert outcomes(b.run_of(state)) == ["error", None, None]
    b.folded(b.returned(1), state=state)
    assert outcomes(b.run_of(state)) == ["error", "ok", "error"]


def test_a_rejected_predecessor_counts_as_failed() -> None:
    run = b.run_after(b.calls(b.planned(0, rejected="no"), b.planned(1, after=[b.call_id(0)])))
    assert outcomes(run) == ["error", "error"]


# --- deadlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "expired"), [(11.0, False), (11.001, True)])
def test_a_call_expires_when_the_brokers_time_is_past_its_own_deadline(at: float, expired: bool) -> None:
    state = b.folded(b.requested(), b.calls(b.planned(0, deadline_s=10.0)), at=1.0)
    assert unchanged_by(state, b.call_expired(), at=at) is not expired
    run = b.run_of(b.folded(b.call_expired(), at=at, state=state))
    assert outcomes(run) == (["timeout"] if expired else [None])


def test_a_deadline_of_a_later_level_counts_from_its_publication() -> None:
    second = b.planned(1, after=[b.call_id(0)], deadline_s=10.0)
    state = b.folded(b.requested(), b.calls(b.planned(0), second), at=1.0)
    assert unchanged_by(state, b.call_expired(1), at=500.0)
    b.folded(b.returned(0), at=50.0, state=state)
    assert unchanged_by(state, b.call_expired(1), at=60.0)
    assert not unchanged_by(state, b.call_expired(1), at=60.001)


def test_a_call_without_a_deadline_of_its_own_has_the_runs() -> None:
    state = b.folded(b.requested(), b.calls())
    assert unchanged_by(state, b.call_expired(), at=b.DEADLINE)
    assert not unchanged_by(state, b.call_expired(), at=b.DEADLINE + 1)


def test_no_call_has_longer_than_its_run() -> None:
    run = b.run_after(b.calls(b.planned(0, deadline_s=1e6)))
    assert run.deadline_of(run.turns[0].calls[b.call_id()]) == b.DEADLINE


def test_an_at_most_once_call_that_was_dispatched_expires_as_unknown() -> None:
    run = b.run_of(b.folded(b.call_expired(), at=900.0, state=b.folded(b.requested(), b.calls(b.planned(0, **AMO)))))
    assert outcomes(run) == ["timeout"]
    state = b.folded(b.requested(), b.calls(b.planned(0, **AMO)), b.dispatched())
    assert outcomes(b.run_of(b.folded(b.call_expired(), at=900.0, state=state))) == ["unknown"]


# --- hand-offs, losses, dispatches -------------------------------------------------------------------------


def test_a_lost_call_is_published_again_with_a_higher_dispatch() -> None:
    run = b.run_after(b.calls(), b.calls_handed_off(), b.lost(2))
    assert list(effects.publications(run)) == [CallDue("r", "0", b.call_id(), 2, 3, False)]


def test_a_loss_counts_only_for_the_hand_off_that_is_outstanding() -> None:
    state = b.folded(b.requested(), b.calls(), b.calls_handed_off(), b.calls_handed_off(worker="w2"))
    assert unchanged_by(state, b.lost(2))
    b.folded(b.lost(3), state=state)
    assert unchanged_by(state, b.lost(3))


def test_a_loss_without_a_hand_off_changes_nothing() -> None:
    assert unchanged_by(b.folded(b.requested(), b.calls()), b.lost(0), b.lost(1), b.lost(2))


def test_an_at_most_once_call_that_is_lost_has_an_unknown_outcome() -> None:
    run = b.run_after(b.calls(b.planned(0, **AMO)), b.dispatched(), b.calls_handed_off(), b.lost(3))
    assert outcomes(run) == ["unknown"]
    assert "outcome unknown" in text_of(run, 0)
    assert run.turn == 2


def test_a_result_ends_a_hand_off() -> None:
    state = b.folded(b.requested(), b.calls(b.planned(0), b.planned(1)), b.calls_handed_off(), b.returned(0))
    assert unchanged_by(state, b.lost(2))


def test_hand_offs_of_unknown_calls_change_nothing() -> None:
    state = b.folded(b.requested(), b.calls())
    assert unchanged_by(state, b.calls_handed_off("", "x", "a/b", "s/1.att/0", b.call_id(9), b.call_id(0, 2)))


def test_the_first_dispatch_wins() -> None:
    state = b.folded(b.requested(), b.calls(b.planned(0, **AMO)), b.dispatched("mine"))
    assert unchanged_by(state, b.dispatched("yours"))
    assert b.run_of(state).turns[0].calls[b.call_id()].token == "mine"
