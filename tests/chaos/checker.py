"""The promises of DESIGN.md, as pure functions over a ledger: each yields what breaks it.

Responsible for: saying what is wrong, with the ids to look for. `INVARIANTS` names them all.
Must never: do I/O, or trust what a worker says of itself. Is checked itself: tests/unit/test_chaos_checker.py.
Called by: `__main__.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from tests.chaos.explain import executions, is_unknown, model_repeats, tool_repeats, unknowns, winners
from tests.chaos.ledger import Asked, Execution, Ledger, ModelCall, Told
from tests.chaos.serial import disorders, overlaps, scattered

GROWN_BYTES: Final = 48 * 1024 * 1024
GROWN_FILES: Final = 40
"""A worker under an even load may not grow by more, between when it was warm and its end."""
SETTLED_S: Final = 1.0
"""A model call may reach the model's server so long after the reply that settled it reached the log."""

Found = Iterator[str]


def every_request_is_answered(ledger: Ledger) -> Found:
    answered = {answer.run for answer in ledger.answers}
    for request in ledger.submitted:
        if request.run not in answered:
            yield f"{request.run} has no answer"
    for run in answered - {request.run for request in ledger.submitted}:
        yield f"{run} has an answer, and was never submitted"


def copies_of_an_answer_are_identical(ledger: Ledger) -> Found:
    copies = defaultdict(set)
    for answer in ledger.answers:
        copies[answer.run].add(answer.digest)
    for run, digests in copies.items():
        if len(digests) > 1:
            yield f"{run} has {len(digests)} different answers"


def an_answer_is_the_last_reply(ledger: Ledger) -> Found:
    """It completed, and says what the reply says that counts in the log."""
    last: dict[str, tuple[int, str]] = {}
    for (run, turn), reply in winners(ledger).items():
        if turn >= last.get(run, (0, ""))[0]:
            last[run] = turn, reply.token
    for answer in ledger.answers:
        if answer.status != "completed":
            yield f"{answer.run} ended as {answer.status}"
        elif answer.output != last.get(answer.run, (0, ""))[1]:
            yield f"{answer.run} was answered with {answer.output!r}, and its last reply is {last.get(answer.run)}"


def results_are_exactly_those_of_the_calls(ledger: Ledger) -> Found:
    calls = {call.token: call for call in ledger.model_calls}
    for call in ledger.model_calls:
        asked = calls[call.after].asked if call.after in calls else ()
        wanted, given = [item.tool_use_id for item in asked], [item.tool_use_id for item in call.told]
        if wanted != given:
            yield f"model call {call.token} was given the results {given}, and {call.after} had asked for {wanted}"


def a_result_counts_once(ledger: Ledger) -> Found:
    """Whoever asks again says the same: a result that was told does not change."""
    said: dict[str, str] = {}
    for call in ledger.model_calls:
        for told in call.told:
            if said.setdefault(told.tool_use_id, told.text) != told.text:
                yield f"tool call {told.tool_use_id} had two results: {said[told.tool_use_id]!r} and {told.text!r}"


def only_the_reply_that_counts_goes_on(ledger: Ledger) -> Found:
    """Of the replies of a turn, the first one in the log is built upon, and nothing else."""
    counts = {reply.token for reply in winners(ledger).values()}
    for call in ledger.model_calls:
        if call.after is not None and call.after not in counts:
            yield f"model call {call.token} builds on the reply {call.after}, which does not count"


def nothing_is_executed_that_was_not_asked(ledger: Ledger) -> Found:
    asked = {(call.token, item.index): item for call in ledger.model_calls for item in call.asked}
    counts = {reply.token for reply in winners(ledger).values()}
    for execution in ledger.executions:
        item = asked.get((execution.token, execution.index))
        if item is None or item.delivery != execution.delivery:
            yield f"execution {execution.nonce} of {execution.token}[{execution.index}] was never asked for"
        elif execution.token not in counts:
            yield f"execution {execution.nonce} is of the reply {execution.token}, which does not count"


def one_call_has_one_id(ledger: Ledger) -> Found:
    """Executions of a call have the same call id and the same idempotency key, and no two calls share them."""
    owners: dict[str, tuple[str, int]] = {}
    for call, done in executions(ledger).items():
        if len({(each.call_id, each.key) for each in done}) > 1:
            yield f"tool call {call[0]}[{call[1]}] was executed under several ids or idempotency keys"
        if owners.setdefault(done[0].key, call) != call:
            yield f"tool calls {call} and {owners[done[0].key]} share an idempotency key"


def an_ok_result_was_executed(ledger: Ledger) -> Found:
    """At least once: it is what an execution of that very call returned."""
    done = executions(ledger)
    for asked, token, told in _results(ledger):
        mine = {each.nonce: each for each in done.get((token, asked.index), [])}
        if not told.is_error and (told.text not in mine or mine[told.text].ended is None):
            yield f"tool call {told.tool_use_id} was told {told.text!r}, which no execution of it returned"


def an_error_is_only_an_unknown_outcome(ledger: Ledger) -> Found:
    """The tools never fail: an error can only be the loss of an at-most-once call."""
    for asked, _, told in _results(ledger):
        if told.is_error and (asked.delivery == "at_least_once" or not is_unknown(told)):
            yield f"{asked.delivery} tool call {told.tool_use_id} failed: {told.text!r}"


def at_most_once_is_at_most_once(ledger: Ledger) -> Found:
    for (token, index), done in executions(ledger).items():
        if done[0].delivery == "at_most_once" and len(done) > 1:
            where = ", ".join(each.worker for each in done)
            yield f"at-most-once tool call {token}[{index}] was executed {len(done)} times ({where})"


def a_lost_execution_is_told_as_unknown(ledger: Ledger) -> Found:
    """Of a call that never came to its end, and may not be repeated, nobody can know more."""
    done = executions(ledger)
    for asked, token, told in _results(ledger):
        if (
            asked.delivery == "at_most_once"
            and _never_ended(done.get((token, asked.index), []))
            and not is_unknown(told)
        ):
            yield f"at-most-once tool call {told.tool_use_id} was lost, and the model was told {told.text!r}"


def an_unknown_outcome_has_a_cause(ledger: Ledger) -> Found:
    yield from (f"{loss.what} ended as unknown without a fault" for loss in unknowns(ledger) if loss.cause is None)


def calls_of_one_key_never_overlap(ledger: Ledger) -> Found:
    for overlap in overlaps(ledger):
        if overlap.cause is None:
            earlier, later = overlap.earlier, overlap.later
            yield (
                f"{overlap.key}: tool call {later.token}[{later.index}] began at {later.begun:.3f} ({later.worker}), "
                f"while {earlier.token}[{earlier.index}] ran since {earlier.begun:.3f} ({earlier.worker})"
            )


def calls_of_one_key_begin_in_order(ledger: Ledger) -> Found:
    """In the order in which they were published; their first executions, that is."""
    for key, partitions in scattered(ledger).items():
        yield f"{key}: its calls lie in the partitions {sorted(partitions)}"
    for key, late, before in disorders(ledger):
        yield (
            f"{key}: tool call {late.token}[{late.index}] ({late.worker}) began {late.begun - before.begun:.3f} s "
            f"after {before.token}[{before.index}] ({before.worker}), which was published later"
        )


def a_settled_model_call_is_not_repeated(ledger: Ledger) -> Found:
    """No model call begins when the log has the reply already."""
    settled = winners(ledger)
    for call in ledger.model_calls:
        reply = settled.get((call.run, call.turn))
        if reply is not None and call.begun > reply.at + SETTLED_S:
            late = f"{call.begun - reply.at:.1f} s after the reply {reply.token} was in the log"
            yield f"model call {call.token} ({call.worker}) began {late}"


def a_model_call_is_repeated_only_if_in_flight_at_a_fault(ledger: Ledger) -> Found:
    yield from (
        f"{repeat.what} is a repeat without a fault" for repeat in model_repeats(ledger) if repeat.cause is None
    )


def a_tool_call_is_repeated_only_by_a_fault(ledger: Ledger) -> Found:
    yield from (f"{repeat.what} is a repeat without a fault" for repeat in tool_repeats(ledger) if repeat.cause is None)


def a_deploy_repeats_nothing(ledger: Ledger) -> Found:
    """When nothing was broken, whatever the causes might be."""
    if ledger.only_planned:
        for repeat in [*model_repeats(ledger), *tool_repeats(ledger), *unknowns(ledger)]:
            yield f"{repeat.what}: a deploy repeats and loses nothing"


def the_model_refused_nothing(ledger: Ledger) -> Found:
    yield from (f"a request of {refused.worker} was refused: {refused.reason}" for refused in ledger.refused)


def commits_are_within_the_log(ledger: Ledger) -> Found:
    for at in ledger.committed:
        if at.offset is not None and at.offset > at.end:
            yield f"group {at.group} committed {at.offset} in {at.topic}/{at.partition}, which ends at {at.end}"


def nothing_is_left_to_read(ledger: Ledger) -> Found:
    for at in ledger.committed:
        if (at.offset or 0) < at.end:
            yield f"group {at.group} stands at {at.offset} of {at.end} in {at.topic}/{at.partition}"


def no_worker_ends_by_itself(ledger: Ledger) -> Found:
    for life in ledger.lives:
        if life.ended == "alone":
            yield f"{life.worker} ended by itself after {life.lived_s:g} s"


def no_worker_complains_of_itself(ledger: Ledger) -> Found:
    for life in ledger.lives:
        yield from (f"{life.worker}: {line}" for line in life.complaints)


def no_worker_leaks(ledger: Ledger) -> Found:
    for life in ledger.lives:
        if (life.grown_bytes or 0) > GROWN_BYTES:
            yield f"{life.worker} grew by {life.grown_bytes} bytes of memory in {life.lived_s:g} s"
        if (life.grown_files or 0) > GROWN_FILES:
            yield f"{life.worker} grew by {life.grown_files} open files in {life.lived_s:g} s"


INVARIANTS: Final[tuple[Callable[[Ledger], Found], ...]] = (
    every_request_is_answered,
    copies_of_an_answer_are_identical,
    an_answer_is_the_last_reply,
    results_are_exactly_those_of_the_calls,
    a_result_counts_once,
    only_the_reply_that_counts_goes_on,
    nothing_is_executed_that_was_not_asked,
    one_call_has_one_id,
    an_ok_result_was_executed,
    an_error_is_only_an_unknown_outcome,
    at_most_once_is_at_most_once,
    a_lost_execution_is_told_as_unknown,
    an_unknown_outcome_has_a_cause,
    calls_of_one_key_never_overlap,
    calls_of_one_key_begin_in_order,
    a_settled_model_call_is_not_repeated,
    a_model_call_is_repeated_only_if_in_flight_at_a_fault,
    a_tool_call_is_repeated_only_by_a_fault,
    a_deploy_repeats_nothing,
    the_model_refused_nothing,
    commits_are_within_the_log,
    nothing_is_left_to_read,
    no_worker_ends_by_itself,
    no_worker_complains_of_itself,
    no_worker_leaks,
)


def violations(ledger: Ledger) -> dict[str, list[str]]:
    """What breaks each invariant, by its name; those that hold are left out."""
    found = {check.__name__: list(check(ledger)) for check in INVARIANTS}
    return {name: broken for name, broken in found.items() if broken}


def _results(ledger: Ledger) -> Iterator[tuple[Asked, str, Told]]:
    """Each result that the model was told, what had asked for it, and the token of that reply."""
    calls: dict[str, ModelCall] = {call.token: call for call in ledger.model_calls}
    for call in ledger.model_calls:
        if call.after in calls:
            asked = {item.tool_use_id: item for item in calls[call.after].asked}
            yield from ((asked[t.tool_use_id], call.after, t) for t in call.told if t.tool_use_id in asked)


def _never_ended(done: list[Execution]) -> bool:
    return bool(done) and all(each.ended is None for each in done)
