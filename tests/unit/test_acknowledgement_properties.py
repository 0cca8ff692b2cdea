"""Of any log: whoever hears of acknowledgements does and knows what one who only reads does.

Responsible for: `Owner.acknowledged`, and what is acted on after it. Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.virtual import virtually
from tests.unit.test_acknowledgements import folded
from tests.unit.test_fold_properties import Log as Events
from tests.unit.test_fold_properties import logs

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.model.jobs import Job
from anabranch.agent.owner import Owner
from anabranch.agent.state import Partition, Run
from anabranch.codec import decode, encode
from anabranch.fields import Delivery


@given(logs())
def test_an_event_in_memory_is_folded_as_the_record_that_it_became(log: Events) -> None:
    in_memory, read = Partition(next_request=0, next_bulk=0), Partition(next_request=0, next_bulk=0)
    for offset, (event, at) in enumerate(log):
        record = encode(event, NAMESPACE.log, 0, "w")
        if isinstance(event, e.RunRequested):
            event = replace(event, size=len(record.value or b""))
        decoded = decode(b.as_read(record, offset, at))
        assert decoded == event
        fold.apply(in_memory, event, offset, at)
        fold.apply(read, decoded, offset, at)
        assert in_memory == read


def append(desk: Desk, event: e.Event) -> None:
    """As `Admission` and the others do."""
    record = desk.station.encoded(0, event)
    if isinstance(event, e.RunRequested):
        event = replace(event, size=len(record.value or b""))
    desk.station.append_encoded(0, event, record)


def made(desk: Desk) -> Any:
    """What was published and is being called, in any order; the ids of records aside."""
    sent = [(r.topic, r.key or b"", r.value or b"", said(r.headers)) for r in desk.sent.records]
    return sorted(sent), sorted(map(due_of, desk.jobs.due)), desk.owner.held.open_bytes, desk.station.room.used


def said(headers: Any) -> Any:
    return sorted((name, value) for name, value in headers if name != "ce_id")


def due_of(job: Job) -> Any:
    """The life and the turn."""
    prepare: Any = job.prepare
    return prepare.args


@contextmanager
def same_ids() -> Iterator[None]:
    """The ids that the next desk makes are those that any other makes here."""
    with mock.patch("tests.support.desk._DESKS", itertools.count(1)):
        yield


def acts_on_all(owner: Owner) -> None:
    """The owner acts on every run of which it reads anything."""
    account = owner.held.account

    def stirring(run: Run) -> None:
        run.stirred = owner.state.position - 1
        account(run)

    owner.held.account = stirring  # type: ignore[method-assign]


def both_ways(drive: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    """Acting on what was stirred publishes, calls and knows what acting on all does."""

    async def run(all_runs: bool) -> Any:
        desk = Desk()
        if all_runs:
            acts_on_all(desk.owner)
        await drive(desk.begin())
        timers = desk.armed
        desk.owner.suspend()
        return made(desk), timers, desk.owner.state

    with same_ids():
        stirred = virtually(lambda: run(False))
    with same_ids():
        assert stirred == virtually(lambda: run(True))


@given(logs(), st.data())
def test_acting_on_what_was_stirred_does_what_acting_on_all_does(log: Events, data: Any) -> None:
    steps = data.draw(st.lists(st.sampled_from(["", "ack", "read", "hear"]), min_size=len(log), max_size=len(log)))

    async def drive(desk: Desk) -> None:
        for (event, at), step in zip(log, steps, strict=True):
            desk.write(event, at=at)
            if step == "ack":
                await desk.sent.ack(NAMESPACE.calls("q"))
                await desk.sent.ack(NAMESPACE.responses)
            elif step:
                desk.land(at)
                (desk.hear() if step == "hear" else desk).read()

    both_ways(drive)


@given(st.integers(0, 2**32), st.sampled_from([1, 3]))
def test_runs_are_brought_to_their_end_by_what_was_stirred_alone(seed: int, runs: int) -> None:
    """Several runs make no calls of at most once: in which order those are dispatched is open."""
    deliveries: list[Delivery] = ["at_least_once", "at_most_once"] if runs == 1 else ["at_least_once"]

    async def drive(desk: Desk) -> None:
        served = random.Random(seed)
        desk.write(*(b.requested(f"r{n}", after=n, offset=n) for n in range(runs)))
        for step in range(80):
            events = sorted(waited_for(desk, served, deliveries, step), key=repr)
            served.shuffle(events)
            for event in events[: served.randint(1, 4)]:
                append(desk, event) if served.random() < 0.5 else desk.log.write(event)
            desk.land()
            (desk.hear(served.choice([0, 1, None])) if served.random() < 0.7 else desk).read()
        assert all(not run.open for run in desk.owner.state.runs.values())

    both_ways(drive)


def waited_for(desk: Desk, chance: random.Random, deliveries: list[Delivery], step: int) -> list[e.Event]:
    """What models and tools may say next to what was asked of them, and to nothing else."""
    events: list[e.Event] = []
    for life, turn in sorted(map(due_of, desk.jobs.due)):
        plan = [planned(chance, deliveries, life[0], turn, n) for n in range(chance.randint(1, 4))] if turn < 4 else []
        outcome: e.ReplyOutcome = "calls" if plan else "final"
        events.append(b.replied(outcome, turn, plan=plan, run_id=life[0], life=life[1], attempt=f"att{step}"))
    for _, run in sorted(desk.owner.state.runs.items()):
        for call in run.batch.calls.values() if run.batch else ():
            if call.result is None and call.planned.call_id in desk.called:
                outcome_of: e.ResultOutcome = "ok" if chance.random() < 0.75 else "error"
                events.append(e.ToolReturned(run.run_id, run.life, call.planned.call_id, outcome_of, b.result()))
    return events


def planned(chance: random.Random, deliveries: list[Delivery], run_id: str, turn: int, index: int) -> e.PlannedCall:
    after = [b.call_id(n, turn, run_id) for n in range(index) if chance.random() < 0.4]
    delivery = chance.choice(deliveries)
    on_error = "abort" if chance.random() < 0.05 else "return"
    rejected = "no" if chance.random() < 0.1 else None
    return b.planned(index, turn, run_id=run_id, after=after, delivery=delivery, on_error=on_error, rejected=rejected)


@given(logs(), st.data())
def test_whoever_hears_acknowledgements_knows_what_the_log_says(log: Events, data: Any) -> None:
    count = len(log)
    ours = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    heard = data.draw(st.lists(st.sampled_from([0, 1, 9]), min_size=count, max_size=count))
    read = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))

    async def run() -> None:
        desk = Desk().begin()
        for number, (event, at) in enumerate(log):
            append(desk, event) if ours[number] else desk.log.write(event, at=at)
            desk.land(at).hear(heard[number])
            if read[number]:
                desk.read()
        desk.hear().read()
        desk.owner.suspend()
        state, everything = desk.owner.state, folded(desk.log)
        assert (state.position, state.next_request) == (desk.log.end, everything.next_request)
        for run_id, known in state.runs.items():
            said = everything.runs[run_id]
            assert known == said or (
                not said.open and known == replace(said, turns=[])
            )  # of a closed one no more is kept
        assert desk.owner.held.open_bytes == sum(run.size for run in everything.runs.values() if run.open)

    virtually(run)
