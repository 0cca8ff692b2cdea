"""The fold, row by row of the event table: what an event presumes, and what it then changes.

Responsible for: opening, endings, the model's replies, partitions. `test_fold_batch.py` has the calls of a batch.
Must never: go through records, owners or a broker.
Called by: pytest.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import effects, fold
from anabranch.agent.effects import AnswerDue, NoteDue
from anabranch.agent.state import Nexts, Partition, Run


def unchanged_by(state: Partition, *events: e.Event, at: float = 1.0) -> bool:
    """Whether nothing but the position moves."""
    after = b.folded(*events, at=at, state=copy.deepcopy(state))
    after.position = state.position
    return after == state


def error_of(run: Run) -> str | None:
    assert run.ending is not None
    return run.ending.error.code if run.ending.error else None


# --- run.requested ---------------------------------------------------------------------------------------


def test_a_request_opens_a_run_that_owes_its_first_model_call() -> None:
    state = b.folded(b.requested(after=0, offset=4))
    run = b.run_of(state)
    assert state.next_request == 5
    assert state.link == 0
    assert (run.life, run.first, run.next_as_of_first) == ("4", 0, 0)
    assert effects.model_due(run) == effects.ModelDue("r", "4", 1)


@pytest.mark.parametrize("after", [0, 2])
def test_a_request_that_does_not_follow_the_fold_changes_nothing(after: int) -> None:
    state = b.folded(b.requested())
    assert unchanged_by(state, b.requested("s", after=after, offset=3))


def test_a_request_counts_once_however_often_it_is_appended() -> None:
    state = b.folded(b.requested())
    assert unchanged_by(state, b.requested())


def test_a_request_for_an_open_run_only_moves_on() -> None:
    state = b.folded(b.requested(), b.requested(after=1, offset=1))
    assert state.next_request == 2
    assert b.run_of(state).life == "0"


def test_a_closed_run_that_is_requested_again_has_another_life() -> None:
    state = b.folded(b.requested(), b.replied(), b.requested(after=1, offset=1))
    assert b.run_of(state).open
    assert b.run_of(state).life == "1"


def test_without_a_commit_the_first_event_that_names_the_next_request_says_it() -> None:
    state = b.folded(b.requested(after=7, offset=9), state=Partition())
    assert state.next_request == 10


# --- request.noted ---------------------------------------------------------------------------------------


def test_a_rejected_request_owes_an_error_answer() -> None:
    state = b.folded(b.noted("rejected", error=m.RunError("invalid_request", "no")))
    assert state.next_request == 1
    assert list(state.notes) == [0]
    assert state.note_links == {0: Nexts(0)}


@pytest.mark.parametrize("code", ["rejected", "moved", "duplicate", "cancelled"])
def test_a_note_moves_on_in_any_case(code: Any) -> None:
    assert b.folded(b.noted(code, "nobody", offset=3)).next_request == 4


@pytest.mark.parametrize("code", ["rejected", "moved", "duplicate", "cancelled"])
def test_a_note_out_of_order_changes_nothing(code: Any) -> None:
    assert unchanged_by(b.folded(b.requested()), b.noted(code, after=0, offset=1))


def test_a_duplicate_gives_the_open_run_one_more_address() -> None:
    opens = b.opening(request=b.request(reply_to=m.ReplyTo(1)))
    state = b.folded(
        b.requested(opens=opens),
        b.noted("duplicate", after=1, offset=1, reply_to=m.ReplyTo(2)),
        b.noted("duplicate", after=2, offset=2, reply_to=m.ReplyTo(2)),
        b.replied(),
    )
    due = list(effects.publications(b.run_of(state)))
    assert due == [AnswerDue("r", "0", 0, 3), AnswerDue("r", "0", 1, 3)]


def test_a_duplicate_of_a_closed_run_asks_for_its_answer_again() -> None:
    asks = [b.noted("duplicate", after=1, offset=1), b.noted("duplicate", after=2, offset=2, reply_to=m.ReplyTo(2))]
    state = b.folded(b.requested(), b.replied(), *asks)
    assert [due.cause for due in effects.publications(b.run_of(state))] == [2, 3]


def test_a_cancel_request_finishes_the_open_run() -> None:
    run = b.run_of(b.folded(b.requested(), b.noted("cancelled", after=1, offset=1)))
    assert run.ending is not None
    assert run.ending.status == "cancelled"


# --- model.replied, failed, discarded, handed off ----------------------------------------------------------


def test_a_final_reply_finishes_the_run() -> None:
    run = b.run_after(b.replied(usage=m.Usage(1, 2, 3, 4, 0.5)))
    assert run.ending is not None
    assert (run.ending.status, run.ending.offset) == ("completed", 1)
    assert run.usage == m.Usage(1, 2, 3, 4, 0.5)
    assert effects.model_due(run) is None


def test_the_first_reply_wins() -> None:
    state = b.folded(b.requested(), b.calls())
    assert unchanged_by(state, b.replied(), b.calls(attempt="other"), b.failed())


@pytest.mark.parametrize("event", [b.replied(turn=2), b.replied(life="9"), b.failed(turn=2), b.failed(life="9")])
def test_a_reply_to_what_is_not_owed_changes_nothing(event: e.Event) -> None:
    assert unchanged_by(b.folded(b.requested()), event)


def test_a_reply_that_stops_fails_the_run_and_leaves_the_reason_to_its_body() -> None:
    run = b.run_after(b.replied("stopped"))
    assert run.ending is not None
    assert run.ending.status == "failed"
    assert run.ending.error is None


def test_a_reply_with_calls_but_no_plan_fails_the_run() -> None:
    run = b.run_after(b.replied("calls", plan=()))
    assert run.ending is not None
    assert run.ending.status == "failed"


def test_a_pause_owes_the_next_model_call_at_once() -> None:
    run = b.run_after(b.replied("pause"))
    assert effects.model_due(run) == effects.ModelDue("r", "0", 2)


@pytest.mark.parametrize("reply", [b.calls(), b.replied("pause")])
def test_the_last_turn_may_not_go_on(reply: e.ModelReplied) -> None:
    run = b.run_after(reply, opens=b.opening(limits=e.RunLimits(1)))
    assert error_of(run) == "max_turns"
    assert list(effects.publications(run)) == [AnswerDue("r", "0", 0, 1)]


def test_the_last_turn_may_answer() -> None:
    run = b.run_after(b.replied(), opens=b.opening(limits=e.RunLimits(1)))
    assert run.ending is not None
    assert run.ending.status == "completed"


def test_a_budget_that_is_used_up_ends_the_run_before_its_calls() -> None:
    opens = b.opening(limits=e.RunLimits(20, 1.0))
    run = b.run_after(b.discarded(), b.calls(usage=m.Usage(cost_usd=0.5)), opens=opens)
    assert error_of(run) == "budget_exceeded"
    assert not run.turns[-1].calls


def test_a_budget_that_is_not_used_up_lets_the_calls_go() -> None:
    opens = b.opening(limits=e.RunLimits(20, 1.0))
    assert b.run_after(b.calls(usage=m.Usage(cost_usd=0.9)), opens=opens).open


def test_a_model_that_failed_fails_the_run() -> None:
    assert error_of(b.run_after(b.failed(code="model_rejected"))) == "model_rejected"


def test_of_a_discarded_reply_only_the_usage_counts_and_only_once() -> None:
    run = b.run_after(b.discarded(), b.discarded(), b.discarded(attempt="worse"))
    assert run.discarded.input_tokens == 10
    assert run.usage == m.Usage()
    assert effects.model_due(run) is not None


def test_a_discarded_reply_of_a_closed_run_changes_nothing() -> None:
    assert unchanged_by(b.folded(b.requested(), b.replied()), b.discarded())


def test_a_model_call_that_is_handed_off_is_remembered_until_it_is_answered() -> None:
    state = b.folded(b.requested(), b.model_handed_off(), b.model_handed_off(worker="w2"))
    assert {h.worker: h.offset for h in b.run_of(state).hand_offs.values()} == {"w1": 1, "w2": 2}
    assert not b.run_of(b.folded(b.calls(), state=state)).hand_offs


@pytest.mark.parametrize("event", [b.model_handed_off(turn=2), b.model_handed_off(life="9")])
def test_a_hand_off_of_what_is_not_owed_changes_nothing(event: e.Event) -> None:
    assert unchanged_by(b.folded(b.requested()), event)


# --- run.expired, run.cancelled ------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "expired"), [(b.DEADLINE, False), (b.DEADLINE + 0.001, True)])
def test_a_run_expires_when_the_brokers_time_is_past_its_deadline(at: float, expired: bool) -> None:
    state = b.folded(b.requested())
    assert unchanged_by(state, b.run_expired(), at=at) is not expired
    run = b.run_of(b.folded(b.run_expired(), at=at, state=state))
    assert run.open is not expired
    assert not expired or error_of(run) == "deadline"


def test_an_expiry_of_another_life_changes_nothing() -> None:
    assert unchanged_by(b.folded(b.requested()), b.run_expired(life="9"), at=9e9)


@pytest.mark.parametrize("life", [None, "0"])
def test_a_cancel_finishes_an_open_run(life: str | None) -> None:
    run = b.run_after(b.calls(), b.cancelled(life=life))
    assert run.ending is not None
    assert run.ending.status == "cancelled"
    assert run.batch is None


@pytest.mark.parametrize("event", [b.cancelled(run_id="s"), b.cancelled(life="9")])
def test_a_cancel_of_another_run_or_life_changes_nothing(event: e.Event) -> None:
    assert unchanged_by(b.folded(b.requested()), event)


def test_nothing_moves_a_run_that_has_ended() -> None:
    state = b.folded(b.requested(), b.calls(), b.cancelled())
    events: list[e.Event] = [b.returned(), b.replied(turn=2), b.failed(), b.call_expired(), b.run_expired()]
    events += [b.cancelled()]
    events += [b.calls_handed_off(), b.lost(3), b.dispatched(), b.model_handed_off(), b.unknown()]
    assert unchanged_by(state, *events, at=9e9)


# --- the partition, and what cannot be folded ---------------------------------------------------------------


def test_done_only_grows() -> None:
    assert b.folded(e.PartitionReleased(7), e.PartitionReleased(3)).done == 7


def test_a_record_that_cannot_be_read_only_moves_the_position() -> None:
    state = Partition(next_request=0)
    assert fold.apply(state, None, 5, 1.0) is None
    assert state == Partition(next_request=0, position=6)


def test_an_unknown_type_parks_its_run_and_no_other() -> None:
    state = b.folded(b.requested(), b.requested("s", after=1, offset=1), b.unknown())
    run = b.run_of(state)
    assert run.open
    assert run.parked
    assert effects.model_due(run) is None
    assert not list(effects.publications(run))
    assert effects.model_due(b.run_of(state, "s")) is not None


def test_nothing_moves_a_run_that_is_parked() -> None:
    state = b.folded(b.requested(), b.unknown())
    assert unchanged_by(state, b.replied(), b.run_expired(), b.cancelled(), at=9e9)


@pytest.mark.parametrize("event", [b.unknown(life="9"), b.unknown(run_id="s"), b.unknown(run_id=None)])
def test_an_unknown_type_of_another_life_parks_nobody(event: e.Event) -> None:
    assert unchanged_by(b.folded(b.requested()), event)


def test_an_exception_in_the_fold_fails_that_run_alone() -> None:
    state = b.folded(b.requested(), b.requested("s", after=1, offset=1))
    broken = b.replied()
    object.__setattr__(broken, "usage", "not a usage")
    b.folded(broken, state=state)
    assert error_of(b.run_of(state)) == "internal"
    assert b.run_of(state, "s").open


def test_a_rejected_note_has_its_cause_where_it_lies() -> None:
    state = b.folded(b.requested(), b.noted("rejected", "bad", after=1, offset=1))
    assert [NoteDue(cause) for cause in state.notes] == [NoteDue(1)]
