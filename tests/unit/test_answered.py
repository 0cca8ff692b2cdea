"""Answered runs: asked for again they get the same answer, and they are remembered within bounds.

Responsible for: `agent/answered.py`, with an appender under the test's control.
Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk

from anabranch import messages as m
from anabranch.agent import answered
from anabranch.agent.commit import Commit
from anabranch.kafka.sent import Acked


async def test_a_closed_runs_answer_is_sent_again_the_same() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(), b.returned(), b.replied(turn=2))
    await desk.sent.ack()
    desk.write(b.noted("duplicate", after=1, offset=1, reply_to=m.ReplyTo(3)))
    first, again = desk.sent.to(NAMESPACE.responses)
    assert first.value == again.value
    assert (first.partition, again.partition) == (None, 3)


async def test_a_successor_sends_the_very_same_answer() -> None:
    first = Desk().begin().write(b.requested(), b.calls(), b.returned(), b.replied(turn=2))
    await first.sent.ack()
    commit = Commit(0, 4, 0)
    second = Desk(first.log).begin(commit).read()
    assert second.answers == []
    second.write(b.noted("duplicate", after=1, offset=1))
    assert second.answers == first.answers


async def test_a_run_that_is_asked_for_for_ever_stays_as_small_as_it_is() -> None:
    desk = Desk().begin().write(b.requested(), b.replied())
    for number in range(1, 20):
        await desk.sent.ack()
        desk.write(b.noted("duplicate", after=number, offset=number, reply_to=m.ReplyTo(number % 2)))
    await desk.sent.ack()
    assert len(desk.answers) == 20
    assert len(desk.owner.state.runs["r"].addresses) == len(desk.owner._publisher._acked["r", "0"]) == 3
    assert desk.owner.commit(True) == Commit(desk.log.end, desk.log.end, 20)


async def test_results_that_come_when_a_run_is_over_bring_nothing_of_it_back() -> None:
    desk = Desk().begin().write(b.requested(), b.calls(b.planned(0), b.planned(1)), b.cancelled())
    await desk.sent.ack()
    desk.write(b.returned(0), b.returned(1))
    assert list(desk.owner._needed) == [], "nobody would let go of it again"


async def test_only_answered_runs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "REMEMBERED", 2)
    desk = Desk().begin()
    for number in range(5):
        name = f"r{number}"
        desk.write(b.requested(name, after=number, offset=number), b.replied(run_id=name, life=str(number)))
        if number > 0:
            desk.sent.sent[-1].succeed(Acked(None))
            await asyncio.sleep(0)
    assert list(desk.owner.state.runs) == ["r0", "r3", "r4"]
    assert desk.owner.commit(True) == Commit(0, 1, 0)
    assert len(desk.owner._publisher._answers) == 3


async def test_answered_runs_are_remembered_within_bounds_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "REMEMBERED_BYTES", 3 * answered.ANSWERED_BYTES)
    desk = Desk().begin()
    for number in range(5):
        run_id, life = f"r{number}", str(number)
        desk.write(b.requested(run_id, after=number, offset=number))
        desk.write(b.replied(run_id=run_id, life=life))
        await desk.sent.ack()
    assert list(desk.owner.state.runs) == ["r3", "r4"]
