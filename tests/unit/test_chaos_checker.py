"""The checker of the chaos, checked: a clean ledger passes, and of each invariant a planted breach is caught.

Responsible for: every invariant of `tests.chaos.checker`, and which fault explains which repeat.
Must never: run a worker; ledgers are made by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chaos import ledger as ledgers
from tests.chaos.checker import GROWN_BYTES, GROWN_FILES, INVARIANTS, violations
from tests.chaos.explain import model_repeats, tool_repeats, unknowns
from tests.chaos.ledger import (
    Answer,
    Asked,
    Committed,
    Execution,
    Fault,
    FaultKind,
    Ledger,
    Life,
    Logged,
    ModelCall,
    Published,
    Refused,
    Submitted,
    Told,
    tool_use_id,
)
from tests.chaos.serial import disorders, overlaps

UNKNOWN = "outcome unknown: the worker that had this call was lost."
A, B = "agent-1", "agent-2"
T, U = "tool-1", "tool-2"
FIRST, LAST = "run-1/1/1", "run-1/2/2"


def asked(token: str) -> tuple[Asked, ...]:
    """Two calls that may be repeated, and one that may not."""
    return (
        Asked(tool_use_id(token, 0), 0, "at_least_once"),
        Asked(tool_use_id(token, 1), 1, "at_least_once"),
        Asked(tool_use_id(token, 2), 2, "at_most_once"),
    )


def model_call(token: str, begun: float, worker: str = A, after: str | None = None) -> ModelCall:
    run, turn, _ = token.split("/")
    told = tuple(Told(item.tool_use_id, f"nonce-{item.index}", False) for item in asked(after)) if after else ()
    return ModelCall(token, run, int(turn), worker, begun, begun + 1, after, told, () if after else asked(token))


def execution(index: int, nonce: str = "", worker: str = T, begun: float = 101.5) -> Execution:
    delivery = asked(FIRST)[index].delivery
    id_ = f"call-{index}"
    return Execution(nonce or f"nonce-{index}", FIRST, index, delivery, id_, id_, worker, begun, begun + 1)


def fault(kind: FaultKind, worker: str | None, begun: float, ended: float | None = None) -> Fault:
    return Fault(kind, worker, begun, begun if ended is None else ended)


def clean() -> Ledger:
    """One run of two turns: at 100 the model is asked, at 101.1 its reply is in the log, at 103 it is asked again."""
    return Ledger(
        submitted=(Submitted("run-1", 99),),
        model_calls=(model_call(FIRST, 100), model_call(LAST, 103, after=FIRST)),
        published=tuple(Published(f"call-{index}", 0, 10 + index) for index in range(3)),
        executions=tuple(execution(index) for index in range(3)),
        logged=(Logged(FIRST, "run-1", 1, 0, 5, 101.1), Logged(LAST, "run-1", 2, 0, 9, 104.1)),
        answers=(Answer("run-1", "completed", LAST, "digest"),) * 2,
        committed=(Committed("agents", "agent.log", 0, 10, 10), Committed("agents", "agent.log", 1, None, 0)),
        lives=(Life(T, "tool", 60, "stopped", 1000, 2, ()), Life(A, "agent", 9, "killed", None, None, ())),
    )


def with_told(ledger: Ledger, index: int, told: Told) -> Ledger:
    """The last model call was told something else about one call."""
    first, last = ledger.model_calls
    results = [*last.told]
    results[index] = told
    return replace(ledger, model_calls=(first, replace(last, told=tuple(results))))


def with_last(ledger: Ledger, **changes: object) -> Ledger:
    first, last = ledger.model_calls
    return replace(ledger, model_calls=(first, replace(last, **changes)))  # type: ignore[arg-type]


def with_executions(ledger: Ledger, *more: Execution) -> Ledger:
    return replace(ledger, executions=ledger.executions + more)


def in_order(ledger: Ledger, first: Execution, second: Execution) -> Ledger:
    """The two calls that may be repeated share a serial key, and are executed like this."""
    done = (replace(first, serial="key-1"), replace(second, serial="key-1"), ledger.executions[2])
    return replace(ledger, executions=done)


def with_calls(ledger: Ledger, *more: ModelCall) -> Ledger:
    return replace(ledger, model_calls=ledger.model_calls + more)


def lost(ledger: Ledger, text: str = UNKNOWN) -> Ledger:
    """The at-most-once call was begun and never ended, and the model was told so."""
    done = (*ledger.executions[:2], replace(ledger.executions[2], ended=None))
    return with_told(replace(ledger, executions=done), 2, Told(tool_use_id(FIRST, 2), text, True))


def life(ledger: Ledger, **changes: object) -> Ledger:
    return replace(ledger, lives=(replace(ledger.lives[0], **changes),))  # type: ignore[arg-type]


def commit(ledger: Ledger, offset: int | None) -> Ledger:
    return replace(ledger, committed=(Committed("agents", "agent.log", 0, offset, 10),))


BREACHES: dict[str, Callable[[Ledger], Ledger]] = {
    "every_request_is_answered": lambda it: replace(it, submitted=(*it.submitted, Submitted("run-2", 99))),
    "copies_of_an_answer_are_identical": lambda it: replace(
        it, answers=(it.answers[0], replace(it.answers[1], digest="another"))
    ),
    "an_answer_is_the_last_reply": lambda it: replace(it, answers=(replace(it.answers[0], output=FIRST),)),
    "results_are_exactly_those_of_the_calls": lambda it: with_last(it, told=it.model_calls[1].told[:2]),
    "a_result_counts_once": lambda it: with_calls(
        it, replace(it.model_calls[1], token="run-1/2/3", told=(Told(tool_use_id(FIRST, 0), "another", False),))
    ),
    "only_the_reply_that_counts_goes_on": lambda it: replace(
        it, logged=(Logged("run-1/1/9", "run-1", 1, 0, 4, 101), *it.logged)
    ),
    "nothing_is_executed_that_was_not_asked": lambda it: with_executions(it, replace(execution(0), index=7)),
    "one_call_has_one_id": lambda it: with_executions(it, replace(execution(0, "again"), key="another")),
    "an_ok_result_was_executed": lambda it: replace(it, executions=it.executions[1:]),
    "an_error_is_only_an_unknown_outcome": lambda it: with_told(it, 0, Told(tool_use_id(FIRST, 0), UNKNOWN, True)),
    "at_most_once_is_at_most_once": lambda it: replace(
        with_executions(it, execution(2, "again", U, 101.8)), faults=(fault("kill", T, 101.6),)
    ),
    "a_lost_execution_is_told_as_unknown": lambda it: replace(lost(it, "nonce-2"), faults=(fault("kill", T, 101.6),)),
    "an_unknown_outcome_has_a_cause": lost,
    "calls_of_one_key_never_overlap": lambda it: in_order(it, execution(0), execution(1, begun=102)),
    "calls_of_one_key_begin_in_order": lambda it: in_order(it, execution(0, begun=102.6), execution(1)),
    "a_settled_model_call_is_not_repeated": lambda it: replace(
        with_calls(it, model_call("run-1/1/3", 103, B)), faults=(fault("kill", A, 100.5),)
    ),
    "a_model_call_is_repeated_only_if_in_flight_at_a_fault": lambda it: with_calls(it, model_call("run-1/1/3", 101, B)),
    "a_tool_call_is_repeated_only_by_a_fault": lambda it: with_executions(it, execution(0, "again", U, 102)),
    "a_deploy_repeats_nothing": lambda it: replace(
        with_executions(it, execution(0, "again", U, 102)), faults=(fault("kill", T, 101.6),), only_planned=True
    ),
    "the_model_refused_nothing": lambda it: replace(it, refused=(Refused(A, "tool_use ids must be unique"),)),
    "commits_are_within_the_log": lambda it: commit(it, 11),
    "nothing_is_left_to_read": lambda it: commit(it, 9),
    "no_worker_ends_by_itself": lambda it: life(it, ended="alone"),
    "no_worker_complains_of_itself": lambda it: life(it, complaints=("Task was destroyed but it is pending!",)),
    "no_worker_leaks": lambda it: life(it, grown_files=GROWN_FILES + 1),
}


def test_a_clean_ledger_passes() -> None:
    assert violations(clean()) == {}


def test_every_invariant_has_a_planted_breach() -> None:
    assert set(BREACHES) == {check.__name__ for check in INVARIANTS}


@pytest.mark.parametrize("invariant", BREACHES)
def test_a_planted_breach_is_caught(invariant: str) -> None:
    assert invariant in violations(BREACHES[invariant](clean()))


# --- a few more breaches of those that have several sides ------------------------------------------------------------


@pytest.mark.parametrize(
    ("invariant", "breach"),
    [
        ("every_request_is_answered", lambda it: replace(it, submitted=())),
        ("an_answer_is_the_last_reply", lambda it: replace(it, answers=(replace(it.answers[0], status="failed"),))),
        ("results_are_exactly_those_of_the_calls", lambda it: with_last(it, told=it.model_calls[1].told[::-1])),
        ("results_are_exactly_those_of_the_calls", lambda it: with_last(it, told=it.model_calls[1].told * 2)),
        ("one_call_has_one_id", lambda it: replace(it, executions=(execution(0), replace(execution(1), key="call-0")))),
        ("an_ok_result_was_executed", lambda it: with_told(it, 0, Told(tool_use_id(FIRST, 0), "nonce-1", False))),
        (
            "calls_of_one_key_begin_in_order",
            lambda it: replace(
                in_order(it, execution(0), execution(1, begun=102.6)),
                published=(Published("call-0", 0, 10), Published("call-1", 1, 4)),
            ),
        ),
        ("nothing_is_left_to_read", lambda it: commit(it, None)),
        ("no_worker_leaks", lambda it: life(it, grown_bytes=GROWN_BYTES + 1)),
    ],
)
def test_another_side_of_it_is_caught_too(invariant: str, breach: Callable[[Ledger], Ledger]) -> None:
    assert invariant in violations(breach(clean()))


# --- what explains a repeat ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (fault("kill", A, 100.5), "kill"),
        (fault("freeze", A, 99, 106), "freeze"),
        (fault("broker_kill", None, 100.2, 100.9), "broker_kill"),
        (fault("freeze", B, 90, 100.8), "freeze"),  # the later one's worker had just woken up
        (fault("kill", B, 100.5), None),  # another worker's
        (fault("kill", A, 90), None),  # long before
        (fault("kill", A, 101.4), None),  # when the reply was in the log
        (fault("roll", A, 100.5, 101), None),  # no excuse
    ],
)
def test_a_repeated_model_call_is_explained_by_what_hit_it_in_flight(harm: Fault, cause: str | None) -> None:
    repeated = replace(with_calls(clean(), model_call("run-1/1/3", 101.3, B)), faults=(harm,))
    assert [repeat.cause for repeat in model_repeats(repeated)] == [cause]
    assert (violations(repeated) == {}) == (cause is not None)


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (fault("kill", T, 102), "kill"),
        (fault("kill", T, 103.5), "kill"),  # executed, and not yet committed
        (fault("broker_stop", None, 90, 95), "broker_stop"),  # commits are late for a while
        (fault("half_open", T, 101, 104), "half_open"),
        (fault("kill", A, 101.2), "kill of an agent worker"),  # published again
        (fault("kill", T, 108), None),  # long committed
        (fault("kill", U, 102), None),
        (fault("scale_in", T, 102, 103), None),
    ],
)
def test_a_repeated_tool_call_is_explained_by_what_hit_it(harm: Fault, cause: str | None) -> None:
    repeated = replace(with_executions(clean(), execution(0, "again", U, 109)), faults=(harm,))
    assert [repeat.cause for repeat in tool_repeats(repeated)] == [cause]
    assert (violations(repeated) == {}) == (cause is not None)


@pytest.mark.parametrize(("harm", "cause"), [(fault("kill", T, 102), "kill"), (fault("kill", U, 102), None)])
def test_an_unknown_outcome_is_explained_by_the_loss_of_its_worker(harm: Fault, cause: str | None) -> None:
    told = replace(lost(clean()), faults=(harm,))
    assert [loss.cause for loss in unknowns(told)] == [cause]
    assert (violations(told) == {}) == (cause is not None)


# --- calls of one key ------------------------------------------------------------------------------------------------


def test_calls_of_one_key_may_follow_one_another() -> None:
    assert violations(in_order(clean(), execution(0), execution(1, begun=102.5))) == {}


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (fault("freeze", T, 101.6, 109), "freeze"),  # it had begun before, and its successor could not know
        (fault("half_open", T, 101.6, 109), "half_open"),
        (fault("freeze", U, 95, 101.9), "freeze"),  # the later one's worker had just woken up
        (fault("freeze", U, 103, 110), None),  # afterwards
        (fault("freeze", B, 101.6, 109), None),  # another worker's
        (fault("cut", T, 101.6), None),  # no session is lost so soon
        (fault("broker_kill", None, 101.6, 104), None),  # nor was it anybody's own
        (fault("roll", T, 101.6, 103), None),
    ],
)
def test_an_overlap_is_excused_by_a_worker_that_could_not_know(harm: Fault, cause: str | None) -> None:
    both = replace(in_order(clean(), execution(0), execution(1, worker=U, begun=102)), faults=(harm,))
    assert [overlap.cause for overlap in overlaps(both)] == [cause]
    assert ("calls_of_one_key_never_overlap" in violations(both)) == (cause is None)


def test_the_dead_execute_nothing() -> None:
    left = in_order(clean(), replace(execution(0), ended=None), execution(1, worker=U, begun=102))
    assert overlaps(left)  # who is not known to be dead may still be at it
    assert not overlaps(replace(left, faults=(fault("kill", T, 101.9),)))
    assert not overlaps(replace(left, faults=(fault("mute", T, 101, 101.9),)))
    given_up = replace(left.executions[0], stopped=101.9)
    assert not overlaps(replace(left, executions=(given_up, *left.executions[1:])))


def test_a_call_that_is_executed_again_begins_in_the_order_of_its_first_time() -> None:
    done = in_order(clean(), execution(0), execution(1, begun=102.5))
    again = replace(execution(0, "again", U, 104), serial="key-1")
    assert not list(disorders(with_executions(done, again)))


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = replace(clean(), seed=7, faults=(fault("cut", T, 1),), refused=(Refused(A, "why"),))
    ledgers.write(ledger, tmp_path / "ledger.jsonl")
    assert ledgers.read(tmp_path / "ledger.jsonl") == ledger
