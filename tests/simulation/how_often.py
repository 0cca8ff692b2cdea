"""How often things were done: model calls made and paid for, tools executed, calls published, each in its turn. PURE.

Must never: run anything, or excuse a violation by a fault that cannot have caused it. Called by: `checker.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson

from tests.simulation.evidence import EPOCH, NAMESPACE
from tests.simulation.facts import CLOSE_S, Facts, named, told
from tests.simulation.ledger import Execution, Fault, ModelCall
from tests.simulation.workload import AT_MOST_ONCE, EARLY, SERIAL


def model_once(facts: Facts) -> Iterator[str]:
    """No model call is made again but for a fault that hit it."""
    turns: dict[tuple[str, int], list[ModelCall]] = defaultdict(list)
    for call in facts.evidence.ledger.model_calls:
        if call.end != "failed":
            turns[call.run_id, call.turn].append(call)
    for (run_id, _), calls in turns.items():
        if facts.lives_of(run_id) > 1:
            continue
        for before, again in pairwise(calls):
            if not _explained(facts.faults("kill", "freeze", "cut", "expel"), before, again):
                yield f"{named(again)} repeats that by {before.process} at {before.at:.3f}, and no fault explains it"


def never_paid_again(facts: Facts) -> Iterator[str]:
    """A reply that is in the log is never paid for again."""
    if facts.faults("freeze", "cut", "expel"):
        return  # a zombie may act on what it last knew
    replied = {(run.run_id, turn.number): turn.replied_at for run in facts.lives.values() for turn in run.turns}
    for call in facts.evidence.ledger.model_calls:
        at = replied.get((call.run_id, call.turn))
        if at is not None and facts.lives_of(call.run_id) == 1 and call.at + EPOCH > at + CLOSE_S:
            yield f"{named(call)} was made, and its turn had been replied to at {at - EPOCH:.3f}"


def tools_once(facts: Facts) -> Iterator[str]:
    """No tool call is executed again but for a fault that hit it."""
    if facts.faults("regressed commits") or not facts.evidence.profile.metadata:
        return
    published = _published(facts)
    for ask, executions in _by_ask(facts).items():
        pairs = [pair for pair in pairwise(executions) if not _explained(facts.faults(), *pair)]
        for before, again in pairs[max(0, len(published[ask]) - 1) :]:  # each copy may run once, on another worker
            yield f"{told(again)} repeats that by {before.process} at {before.at:.3f}; no fault explains it"


def _explained(faults: list[Fault], before: ModelCall | Execution, again: ModelCall | Execution) -> bool:
    """Whether one of the two processes was in trouble between the first start and the second one."""
    return any(
        fault.process in (before.process, again.process) and fault.begin <= again.at and fault.end >= before.at
        for fault in faults
    )


def at_most_once(facts: Facts) -> Iterator[str]:
    if facts.faults("regressed commits") or not facts.evidence.profile.metadata:
        return
    for executions in _by_ask(facts).values():
        if executions[0].tool in AT_MOST_ONCE and len(executions) > 1:
            yield f"{told(executions[1])} was executed by {executions[0].process} before, and is at most once"


def only_asked(facts: Facts) -> Iterator[str]:
    """Nothing is executed that was never asked for by a reply that counts, but what may be executed for nothing."""
    spoken = {ask for call in facts.evidence.ledger.model_calls for ask in call.spoken}
    for ask, executions in _by_ask(facts).items():
        if ask not in facts.won and not (ask in spoken and executions[0].tool == EARLY):
            yield f"{told(executions[0])} was executed, and no reply that counts has asked for it"


def early_is_asked(facts: Facts) -> Iterator[str]:
    """The result of a call that began before its reply was whole counts only if the reply has exactly that call."""
    begun = {call["call_id"]: call for call, _ in _calls(facts) if call["dispatch"] == 0}
    for run in facts.lives.values():
        for turn in run.turns:
            said = {block.get("id"): block for block in orjson.loads(turn.body)["content"]}
            for call_id, call in turn.calls.items():
                early, block = begun.get(call_id), said[call.planned.tool_use_id]
                if early is not None and (early["tool"], early["input"]) != (block["name"], block["input"]):
                    yield f"{call_id} began as {early['tool']} {early['input']}, and the reply says {block}"


def serial(facts: Facts) -> Iterator[str]:
    """Calls of one serial key run one at a time, and begin in the order in which they were published."""
    if facts.faults("freeze", "cut", "expel", "regressed commits") or not facts.evidence.profile.metadata:
        return
    places = {ask: places[0] for ask, places in _published(facts).items()}
    lanes: dict[str, list[Execution]] = defaultdict(list)
    for execution in facts.evidence.ledger.executions:
        if execution.tool in SERIAL:
            lanes[execution.account].append(execution)
    for executions in lanes.values():
        for before, after in pairwise(executions):
            if before.ended_at is None or before.ended_at > after.at:
                yield f"{told(after)} began while {before.ask} of the same key ran until {before.ended_at}"
        firsts = list(dict.fromkeys(execution.ask for execution in executions))
        if firsts != sorted(firsts, key=lambda ask: places.get(ask, -1)):
            yield f"the calls of account {executions[0].account} began in the order {firsts}, not as published"


def published_once(facts: Facts) -> Iterator[str]:
    """A call is published again only where an acknowledgement got lost or a worker died; at most once: never."""
    calm = facts.orderly and not facts.evidence.profile.rough
    for is_early in (False, True):
        for ask, places in _published(facts, is_early).items():
            tool = facts.evidence.calls[ask].tool
            if len(places) > 1 and (calm or tool in AT_MOST_ONCE):
                yield f"{ask} ({tool}) was published {len(places)} times, at {places}"
            if is_early and tool != EARLY:
                yield f"{ask} ({tool}) was published early, at {places}"


def _published(facts: Facts, early: bool | None = None) -> dict[str, list[int]]:
    """Where each ask was published, in its partition: before its reply was whole, or after; None: both."""
    places: dict[str, list[int]] = defaultdict(list)
    for call, offset in _calls(facts):
        if early in (None, call["dispatch"] == 0):
            places[call["input"]["ask"]].append(offset)
    return places


def _calls(facts: Facts) -> Iterator[tuple[dict[str, Any], int]]:
    """Every call that was published, and its offset."""
    for place, records in facts.evidence.records.items():
        for record in records if place.topic.startswith(NAMESPACE.calls("")) else ():
            yield orjson.loads(record.value or b""), record.offset


def _by_ask(facts: Facts) -> dict[str, list[Execution]]:
    """The executions of each call, in order; a retry within one is none."""
    found: dict[str, list[Execution]] = defaultdict(list)
    for execution in facts.evidence.ledger.executions:
        if execution.attempt == 1:
            found[execution.ask].append(execution)
    return found
