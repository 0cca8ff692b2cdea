"""A fold that begins at a commit has the state that the whole log gives, but for what is closed and answered.

Responsible for: `CommitSafe` and `DoneSafe` of `spec/RunLog.tla`, for the `Owner` itself over random logs.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk, Log
from tests.support.virtual import virtually
from tests.unit.test_fold_properties import logs, whole

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.commit import Commit
from anabranch.agent.effects import publications
from anabranch.agent.state import Partition, Run
from anabranch.codec import decode


async def owned(log: Any, acks: list[bool], metadata: bool) -> tuple[Log, list[Commit], Desk]:
    """An owner reads the log event by event; some publications are acknowledged. Returns its commits."""
    desk = Desk().begin(Commit(0, 0, 0))
    commits: list[Commit] = []
    for (event, at), acked in zip(log, acks, strict=True):
        desk.write(event, at=at)
        if acked:
            await desk.sent.ack(NAMESPACE.calls("q"))
            await desk.sent.ack(NAMESPACE.responses)
        commits.append(desk.owner.commit(metadata) or Commit(0, 0, 0))
        await asyncio.sleep(0)
    return desk.log, commits, desk


@given(logs(), st.data(), st.booleans())
def test_a_fold_that_begins_at_a_commit_agrees_with_the_whole(log: Any, data: Any, metadata: bool) -> None:
    log = [(b.requested(), 0.0), *log]  # an empty log is begun by whoever takes up the first request
    acks = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))

    async def run() -> None:
        read, commits, desk = await owned(log, acks, metadata)
        sent = zip(desk.sent.records, desk.sent.sent, strict=True)
        answered = {(record.key or b"").decode() for record, future in sent if future.done()}
        events = [(decode(record), record.timestamp / 1000) for record in read.records]
        assume(not opens_an_open_run(events))
        everything = whole(events)
        for commit in commits:
            begun = commit if metadata else Commit(commit.low, 0, -1)
            fresh = Desk(read).begin(begun).read()
            assert_agrees(fresh.owner.state, everything, answered)

    virtually(run)


def opens_an_open_run(events: list[Any]) -> bool:
    """Nobody appends that: who presumes the next request has folded all runs that are open, and notes a copy."""
    state = Partition()
    for offset, (event, at) in enumerate(events):
        was_open = isinstance(event, e.RunRequested) and (run := state.runs.get(event.run_id)) is not None and run.open
        link = state.link
        fold.apply(state, event, offset, at)
        if was_open and state.link != link:
            return True
    return False


def assert_agrees(part: Partition, everything: Partition, answered: set[str]) -> None:
    assert part.next_request == everything.next_request
    for run_id, run in everything.runs.items():
        if run_id in part.runs and run.open:
            for turn in part.runs[run_id].turns:
                turn.inputs = None  # read from the reply when a call is published
            assert part.runs[run_id] == run
        else:
            assert not run.open
            assert run_id in part.runs or run_id in answered or was_published(run, everything.done)


def was_published(run: Run, done: int) -> bool:
    """Whether a former owner has said so when it released the partition."""
    return all(due.cause < done for due in publications(run))


@given(logs(), st.data())
def test_whatever_lies_below_done_has_been_published(log: Any, data: Any) -> None:
    acks = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))

    async def run() -> None:
        _, commits, desk = await owned(log, acks, True)
        released = desk.owner.state.done
        for run in desk.owner.state.runs.values():
            for due in publications(run):
                if due.cause < max([released, *(commit.done for commit in commits)]) and due.cause >= released:
                    assert desk.owner._publisher.is_settled(due) or getattr(due, "at_most_once", False)

    virtually(run)


def test_a_log_of_one_run_commits_what_follows_it() -> None:
    async def run() -> list[Commit]:
        events = [b.requested(), b.calls(), b.returned(), b.replied(turn=2)]
        _, commits, _ = await owned([(event, 1.0) for event in events], [True] * 4, True)
        return commits

    assert virtually(run) == [Commit(0, 1, 0), Commit(0, 2, 0), Commit(0, 3, 0), Commit(4, 4, 1)]


@pytest.mark.parametrize("metadata", [True, False])
def test_no_commit_lies_between_a_cancel_and_the_opening_of_the_run_that_it_ended(metadata: bool) -> None:
    """Else the next owner would open that run again, and answer it twice in two ways."""

    async def run() -> list[str]:
        log = [
            b.cancelled(2, run_id="late"),
            b.requested("open"),
            b.requested("late", after=1, offset=1),
            b.requested("next", after=2, offset=2),
        ]
        read, commits, _ = await owned([(event, 1.0) for event in log], [True] * len(log), metadata)
        low = commits[-1].low
        fresh = Desk(read).begin(commits[-1] if metadata else Commit(low, 0, -1)).read()
        return sorted(run_id for run_id, found in fresh.owner.state.runs.items() if found.open)

    assert virtually(run) == ["next", "open"]


def test_a_cancel_that_has_ended_its_run_is_let_go_with_the_opening() -> None:
    async def run() -> list[int]:
        log = [
            b.cancelled(2, run_id="late"),
            b.requested("open"),
            b.requested("late", after=1, offset=1),
            b.replied(run_id="open"),
        ]
        _, commits, _ = await owned([(event, 1.0) for event in log], [True] * len(log), True)
        return [commit.low for commit in commits]

    assert virtually(run) == [0, 0, 0, 4]
