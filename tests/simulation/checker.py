"""What must be true when a seed is over: the promises, each a function from the evidence to what breaks it. PURE.

Responsible for: judging the answers, the batches, the commits and the fold of the log; `how_often.py` judges calls.
Must never: run anything, or excuse a violation by a fault that cannot have caused it.
Called by: `python -m tests.simulation`, and tests, the ones that plant bugs too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.commit import read_commit
from anabranch.agent.state import Partition, Run
from anabranch.kafka.seam import Place
from tests.simulation import how_often
from tests.simulation.evidence import EPOCH, NAMESPACE, Evidence, Sample, lags
from tests.simulation.facts import CLOSE_S, Facts, facts_of, named
from tests.simulation.workload import AFTER, AT_MOST_ONCE, PlannedCall, PlannedRun


def violations(evidence: Evidence) -> list[str]:
    """Every promise that was broken, in words."""
    facts = facts_of(evidence)
    return [f"{name}: {text}" for name, check in CHECKS.items() for text in check(facts)]


# --- answers ----------------------------------------------------------------------------------------------------


def _workers_live(facts: Facts) -> Iterator[str]:
    yield from facts.evidence.ledger.deaths


def _answered(facts: Facts) -> Iterator[str]:
    """No admitted run is lost, and each is answered."""
    for run in facts.evidence.workload.runs:
        inboxes = {inbox for _, inbox, _ in facts.answers.get(run.run_id, [])}
        if run.inbox not in inboxes:
            yield f"{run.run_id} was asked for from inbox {run.inbox}, and answered to {sorted(inboxes) or 'nobody'}"
    for bad in facts.evidence.workload.bad:
        told = [orjson.loads(body) for _, _, body in facts.answers.get(bad.run_id, [])]
        if not told or any(answer["status"] != "failed" for answer in told):
            yield f"the bad request {bad.run_id} was answered with {told or 'nothing'}"


def _as_asked(facts: Facts) -> Iterator[str]:
    """A run ends as its workload says: no fault of ours makes it fail."""
    for run in facts.evidence.workload.runs:
        allowed = {"completed"}
        allowed |= {"cancelled"} if run.cancel_at is not None else set()
        allowed |= {"expired", "failed"} if run.deadline_s is not None else set()
        for _, _, body in facts.answers.get(run.run_id, []):
            answer = orjson.loads(body)
            if answer["status"] not in allowed:
                yield f"{run.run_id} ended as {answer['status']}: {answer['error']}"


def _identical(facts: Facts) -> Iterator[str]:
    """An answer may arrive twice; all copies of one life are identical."""
    for run_id, answers in facts.answers.items():
        bodies = {body for _, _, body in answers}
        if len(bodies) > max(1, facts.lives_of(run_id)):
            yield f"{run_id} has {len(bodies)} different answers, and {facts.lives_of(run_id)} lives: {sorted(bodies)}"


def _cancels_are_heard(facts: Facts) -> Iterator[str]:
    """No model call of a run begins once its cancel stands in the log, be its own request taken up before or after."""
    if facts.faults("freeze", "cut", "expel", "copy"):
        return  # a zombie may act on what it last knew; and a copy of the request is another one
    said = {
        event.run_id: at
        for events in facts.events.values()
        for event, _, at in reversed(events)
        if isinstance(event, e.RunCancelled)
    }
    again = {run.run_id for run in facts.evidence.workload.runs if run.again or run.misplaced}  # it comes after that
    begun: set[tuple[str, int, str]] = set()
    for call in facts.evidence.ledger.model_calls:
        at, trying = said.get(call.run_id), (call.run_id, call.turn, call.process)
        if at is None or call.run_id in again or call.at + EPOCH <= at + CLOSE_S:
            begun.add(trying)
        elif trying not in begun:  # else it is tried again, by one who has given the partition up meanwhile
            yield f"{named(call)} began, and its cancel stood in the log since {at - EPOCH:.3f}"


def _admitted_once(facts: Facts) -> Iterator[str]:
    """A request opens one life at most."""
    for run in facts.evidence.workload.runs:
        lives = facts.lives_of(run.run_id)
        asked = 1 + len(run.again) + facts.evidence.ledger.asked_again[run.run_id]
        if lives > asked or (facts.orderly and lives > 1 and not _was_over(facts, run)):
            yield f"{run.run_id} was asked for {asked} times, and has {lives} lives"


def _was_over(facts: Facts, run: PlannedRun) -> bool:
    """Whether it had been answered when its second life opened: what repeats it and waited until then is a new run."""
    first = min((at for at, _, _ in facts.answers.get(run.run_id, [])), default=float("inf"))
    opened = [life.opened_at for (run_id, _), life in facts.lives.items() if run_id == run.run_id]
    return sorted(opened)[1] > first - CLOSE_S


# --- batches ----------------------------------------------------------------------------------------------------


def _batches(facts: Facts) -> Iterator[str]:
    """Every results message has exactly the ids of its calls, in their order."""
    by_ask = {ask: call for call in facts.evidence.ledger.model_calls for ask in call.asked}
    for call in facts.evidence.ledger.model_calls:
        ids = tuple(result[0] for result in call.results)
        if ids != call.batch:
            yield f"{named(call)}: the calls were {call.batch}, and the results are of {ids}"
        for ask in call.batch:
            asked = by_ask.get(ask)
            if asked is None or (asked.run_id, asked.turn) != (call.run_id, call.turn - 1):
                yield f"{named(call)}: {ask} was not asked for in the turn before"


def _same_question(facts: Facts) -> Iterator[str]:
    """A model call that is made again asks the same, to the byte."""
    bodies: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for call in facts.evidence.ledger.model_calls:
        bodies[call.run_id, call.turn].add(call.body)
    for (run_id, turn), different in bodies.items():
        if len(different) > facts.lives_of(run_id):
            yield f"{run_id} turn {turn} was asked in {len(different)} different ways: {sorted(different)}"


def _results(facts: Facts) -> Iterator[str]:
    """What the model is told of a call is what became of it outside."""
    finished: dict[str, int] = defaultdict(int)
    for execution in facts.evidence.ledger.executions:
        finished[execution.ask] += execution.finished
    hurried = {run.run_id for run in facts.evidence.workload.runs if run.deadline_s is not None}
    for call in facts.evidence.ledger.model_calls:
        if call.run_id in hurried:
            continue  # what its deadline has cut short may say so
        failed = {facts.evidence.calls[ask].tool for ask, _, is_error in call.results if is_error}
        for ask, text, is_error in call.results:
            planned = facts.evidence.calls[ask]
            wrong = _wrong_error(facts, ask, planned, text, failed) if is_error else None
            if not is_error and text != f"done {ask}":
                wrong = "is another call's"
            elif not is_error and not finished[ask]:
                wrong = "was never executed to its end"
            if wrong:
                yield f"{named(call)}: {ask} ({planned.tool}) was told as {text!r}, which {wrong}"


def _wrong_error(facts: Facts, ask: str, planned: PlannedCall, text: str, failed: set[str]) -> str | None:
    if planned.fails and f"failed {ask}" in text:
        return None
    if AFTER.get(planned.tool) in failed and "it comes after" in text:
        return None
    if "timed out" in text and facts.faults("freeze"):
        return None  # by the clock on the wall it has
    if planned.tool in AT_MOST_ONCE and not facts.orderly:
        return None if "outcome unknown" in text or "had no result" in text else "says not that its outcome is unknown"
    return "is no failure of the tool"


# --- offsets ------------------------------------------------------------------------------------------------------


def _no_lag(facts: Facts) -> Iterator[str]:
    """In the end everything is done with, and the groups have said so."""
    evidence = facts.evidence
    found = lags(lambda group: evidence.commits[group], lambda *place: evidence.records[Place(*place)])
    for place, lag in found.items():
        if lag > 0 and (evidence.profile.metadata or place.topic != NAMESPACE.log):
            yield f"{place.topic}/{place.partition} has a lag of {lag} for ever"
        if lag < 0:
            yield f"{place.topic}/{place.partition} is committed {-lag} records past its end"


def _commits_are_safe(facts: Facts) -> Iterator[str]:
    """A fold that begins at a commit knows what the fold of the whole log knows, but for what is over."""
    for partition, events in facts.events.items():
        known = [sample for sample in facts.evidence.samples if sample.partition == partition]
        whole = Partition(next_request=0, next_bulk=0)
        done = 0
        for sample in known:
            for event, offset, at in events[done : sample.end]:
                fold.apply(whole, event, offset, at)
            done = max(done, sample.end)
            yield from _unsafe(facts, sample, whole, events)


def _unsafe(facts: Facts, sample: Sample, whole: Partition, events: list[Any]) -> Iterator[str]:
    commit = read_commit(sample.committed, sample.bulk)
    assert commit is not None, "a sample has a commit"
    part = Partition(began=commit.low, position=commit.low)
    part.tell(*commit.nexts)
    for event, offset, at in events[commit.low : sample.end]:
        fold.apply(part, event, offset, at)
    where = f"partition {sample.partition} at {sample.at - EPOCH:.1f}, committed {sample.committed}"
    if part.nexts.or_else(whole.nexts) != whole.nexts:
        yield f"{where}: the next requests are {part.nexts} from there, and {whole.nexts} by the whole log"
    waiting, meant = dict(part.waiting_cancels()), dict(whole.waiting_cancels())
    if waiting.keys() != meant.keys():
        yield f"{where}: cancels of {[*waiting]} wait from there, and of {[*meant]} by the whole log"
    for run_id, run in whole.runs.items():
        if (run.open or not _was_answered(facts, run, sample.at)) and _gist(run) != _gist(part.runs.get(run_id)):
            yield f"{where}: {run_id} is {_gist(part.runs.get(run_id))} from there, and {_gist(run)} by the whole log"
    for run_id, run in part.runs.items():
        if run.open and ((known := whole.runs.get(run_id)) is None or not known.open):
            yield f"{where}: {run_id} is open from there, and not by the whole log"


def _was_answered(facts: Facts, run: Run, at: float) -> bool:
    """Whether anybody was: who asks for a closed run just before its owner dies may have to ask again."""
    return any(told <= at for told, _, _ in facts.answers.get(run.run_id, []))


def _gist(run: Run | None) -> Any:
    if run is None:
        return None
    calls = [
        (call_id, call.due, call.dispatch, call.token, call.hand_off, call.result)
        for turn in run.turns
        for call_id, call in turn.calls.items()
    ]
    return run.life, run.turn, run.owed, run.hand_offs, run.addresses, run.usage, run.ending, calls


CHECKS: Final[dict[str, Callable[[Facts], Iterator[str]]]] = {
    "no worker dies": _workers_live,
    "every request is answered": _answered,
    "a run ends as asked": _as_asked,
    "a cancel is heard": _cancels_are_heard,
    "answers of one life are identical": _identical,
    "a request is admitted once": _admitted_once,
    "results are exactly those of the calls": _batches,
    "a repeated model call asks the same": _same_question,
    "results are true": _results,
    "a model call is made once per fault": how_often.model_once,
    "a reply in the log is never paid again": how_often.never_paid_again,
    "a tool call is executed once per fault": how_often.tools_once,
    "a call is published once": how_often.published_once,
    "at most once": how_often.at_most_once,
    "nothing is executed that was not asked": how_often.only_asked,
    "an early result is of a call of the reply": how_often.early_is_asked,
    "serial keys go one by one": how_often.serial,
    "no lag is left": _no_lag,
    "a fold from a commit agrees": _commits_are_safe,
}
