"""When which broker is asked, and for what."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fetch_scene import NOT_LEADER, A, B, MakeScene, scenes
from tests.support.fetches import Broker, batch, lead

from anabranch.kafka.fetch import asking
from anabranch.kafka.fetch.asking import LONGEST_PAUSE_S, PAUSE_S


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    return scenes(monkeypatch)


async def test_a_fetch_follows_at_once_unless_the_last_one_has_brought_something(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.broker.answer()
        assert s.broker.is_asked, "the broker has waited already"
        began = asyncio.get_running_loop().time()
        s.broker.answer((A, 0, batch(0)))
        assert (await s.broker.request()).at - began >= PAUSE_S, "what is answered to it goes first"
        began = asyncio.get_running_loop().time()
        s.broker.answer((A, 0, batch(1, size=1_000_000)))
        assert (await s.broker.request()).at - began >= LONGEST_PAUSE_S, "more comes together"


async def test_a_fetch_that_has_brought_something_is_answered_before_the_next_one(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LONGEST_PAUSE_S", 10.0)  # a busy machine may need longer than is waited otherwise
    async with scene(a=0) as s:
        loop, answered_at = asyncio.get_running_loop(), 0.0

        def answered() -> None:
            nonlocal answered_at
            s.member.answering, answered_at = False, loop.time()

        s.member.answering = True
        s.broker.answer((A, 0, batch(0)))
        loop.call_later(2 * PAUSE_S, answered)
        assert (await s.broker.request()).at >= answered_at > 0


async def test_nobody_waits_long_for_what_takes_long_to_answer(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.member.answering = True
        s.broker.answer((A, 0, batch(0)))
        assert (await s.broker.request()).read == {A: 1}


async def test_a_place_that_is_resumed_is_in_the_next_fetch(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.subscription.pause(A)
        s.broker.answer()
        assert s.broker.asked[-1].read == {B: 0}
        s.subscription.pause(B)
        s.broker.answer()
        await s.turns()
        assert not s.broker.is_asked, "nothing is wanted"
        s.subscription.resume(A)
        assert (await s.broker.request()).read == {A: 0}


async def test_what_is_sought_together_is_fetched_together(scene: MakeScene) -> None:
    """A fetch that went out with the first of them would keep the others waiting."""
    async with scene(a=0, b=0) as s:
        s.subscription.pause(A)
        s.subscription.pause(B)
        s.broker.answer()
        s.subscription.seek(A, 3)
        s.subscription.seek(B, 4)
        assert (await s.broker.request()).read == {A: 3, B: 4}


async def test_nothing_is_fetched_before_it_runs(scene: MakeScene) -> None:
    async with scene(run=False, a=0, b=0) as s:
        assert not s.links, "it has been sought already"
        assert (await s.broker.request()).read == {A: 0, B: 0}


async def test_every_broker_has_a_fetch_of_its_own(scene: MakeScene) -> None:
    async with scene(brokers={1: Broker(session_id=7), 2: Broker(session_id=8)}, a=0, b=0) as s:
        one, two = s.brokers[1], s.brokers[2]
        assert ((await one.request()).read, (await two.request()).read) == ({A: 0}, {B: 0})
        two.answer((B, 0, batch(0)))
        assert (await two.request()).session == 8
        assert len(one.asked) == 1


async def test_a_place_that_is_led_anew_is_fetched_from_its_new_leader(scene: MakeScene) -> None:
    async with scene(brokers={1: Broker(), 2: Broker()}, a=0, b=0) as s:
        s.brokers[1].answer((A, NOT_LEADER, b""))
        assert s.consumer._client.updates == 1
        lead(s.consumer, {A: 2, B: 2})
        s.brokers[2].answer()
        assert s.brokers[2].asked[-1].read == {A: 0, B: 0}, "without a rest: this leader has refused nothing"
        assert not s.brokers[1].is_asked


async def test_a_late_answer_of_the_former_leader_counts_no_more(scene: MakeScene) -> None:
    async with scene(brokers={1: Broker(), 2: Broker()}, a=0, b=0) as s:
        lead(s.consumer, {A: 2, B: 2})
        s.brokers[2].answer()
        assert s.brokers[2].asked[-1].read == {A: 0, B: 0}
        s.brokers[2].answer((A, 0, batch(0, 2)))
        assert (await s.brokers[2].request()).fetched == {A: 2}
        s.brokers[1].answer((A, 0, batch(0, 9)))
        s.brokers[2].answer((A, 0, batch(2)))
        await s.got(A, 0, 1, 2)


async def test_without_a_session_each_place_is_named_first_in_turn(scene: MakeScene) -> None:
    """A fetch has a bound: those that come last may get nothing, as long as the first have much."""
    async with scene(brokers={1: Broker(session_id=0)}, a=0, b=0) as s:
        first = []
        for _ in range(4):
            first.append(next(iter(s.broker.asked[-1].fetched)))
            s.broker.answer()
        assert first in ([A, B, A, B], [B, A, B, A])
