"""Fetches that fail: what is asked for again, and what ends the subscription."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, NodeNotReadyError
from tests.support.fetch_scene import (
    FORBIDDEN,
    NOT_FOUND,
    NOT_LEADER,
    OUT_OF_RANGE,
    UNKNOWN,
    UNKNOWN_TOPIC,
    WRONG_EPOCH,
    A,
    B,
    MakeScene,
    scenes,
)
from tests.support.fetches import batch, state
from tests.support.wait import until

from anabranch.errors import BrokerError, Forbidden
from anabranch.kafka.fetch.asking import REST_S
from anabranch.kafka.pump import AT_ONCE
from anabranch.kafka.seam import Committed, Place


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    return scenes(monkeypatch)


@pytest.mark.parametrize("code", [NOT_FOUND, WRONG_EPOCH])
async def test_a_session_that_the_broker_does_not_know_is_begun_anew_at_once(scene: MakeScene, code: int) -> None:
    async with scene(a=0, b=1) as s:
        s.broker.answer()
        s.broker.answer(error=code)
        asked = s.broker.asked[-1]
        assert (s.broker.is_asked, asked.epoch, asked.session, asked.fetched) == (True, 0, 7, {A: 0, B: 1})
        s.broker.answer(error=code)
        assert not s.broker.is_asked, "and no more than once"
        began = asyncio.get_running_loop().time()
        assert (await s.broker.request()).at - began >= REST_S / 2


async def test_a_broken_connection_is_made_anew_after_a_while_and_told_of_once(
    scene: MakeScene, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 3

    async def connect(node_id: int) -> None:
        nonlocal refused
        if len(s.links) > 1 and refused:
            refused -= 1
            raise NodeNotReadyError("refused")

    async with scene(run=False, connect=connect) as s:
        await s.broker.request()
        s.broker.is_open = False
        s.broker.tell(KafkaConnectionError("cut"))
        began = asyncio.get_running_loop().time()
        await until(lambda: refused == 0, 20, "three attempts")
        s.broker.is_open = True
        asked = await s.broker.request()
        assert asked.at - began >= 3 * REST_S, "never more often"
        assert (asked.epoch, asked.fetched) == (0, {A: 0})
        assert len(s.links) == 5
        assert len([record for record in caplog.records if "cannot be read from" in record.message]) == 1


async def test_what_a_broker_held_back_for_a_quota_is_asked_for_again(scene: MakeScene) -> None:
    async with scene() as s:
        s.broker.answer(throttled_ms=45_000)
        assert s.broker.deaf_for_ms == 45_000
        await s.broker.request()
        s.broker.answer((A, 0, batch(0)))
        await s.got(A, 0)
        assert s.links == [1], "over one connection"


async def test_an_answer_that_cannot_be_understood_ends_the_connection(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        with pytest.raises(Exception, match="bytes"):
            s.broker.tell(b"\0\0\0\1\0\0\0\0\0\0\0\0\0\7\0\0\0\0more")
        asked = await s.broker.request()
        assert asked.epoch == 0


@pytest.mark.parametrize("code", [NOT_LEADER, UNKNOWN_TOPIC])
async def test_a_place_whose_leader_is_another_is_asked_for_again_and_others_go_on(scene: MakeScene, code: int) -> None:
    async with scene(a=0, b=0) as s:
        began = asyncio.get_running_loop().time()
        s.broker.answer((A, code, b""))
        assert s.consumer._client.updates == 1
        asked = s.broker.asked[-1]
        assert (s.broker.is_asked, asked.read) == (True, {B: 0}), "it would be refused again at once"
        while A not in s.broker.known:
            await until(lambda: asyncio.get_running_loop().time() - began > REST_S, 20, "a rest")
            s.broker.answer()
            await s.broker.request()
            await s.turns(1)
        assert s.broker.known == {A: 0, B: 0}


async def test_a_place_that_cannot_be_read_is_told_of_once(scene: MakeScene, caplog: pytest.LogCaptureFixture) -> None:
    async with scene(a=0) as s:
        for _ in range(3):
            s.broker.answer((A, UNKNOWN, b""))
            await s.broker.request()
        assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1


async def test_a_position_that_the_log_has_not_is_reset_by_aiokafka(scene: MakeScene) -> None:
    async with scene(a=50, b=0) as s:
        s.broker.answer((A, OUT_OF_RANGE, b""))
        assert state(s.consumer, A).awaiting_reset
        assert s.consumer._fetcher.woken == 1
        assert s.broker.asked[-1].read == {B: 0}
        wanted = s.consumer._fetcher._get_actions_per_node(s.consumer._subscription.subscription.assignment)
        assert wanted[:2] == ([], {1: [TopicPartition(*A)]}), "it finds the position, and fetches nothing"
        state(s.consumer, A).reset_to(60)
        async with asyncio.timeout(20):
            while A not in (await s.broker.request()).read:  # with the first look after a rest
                await asyncio.sleep(REST_S / 10)
                s.broker.answer()
        s.broker.answer((A, 0, batch(60)))
        await s.got(A, 60)


async def test_a_place_that_has_lost_what_was_read_of_it_ends_the_subscription(scene: MakeScene) -> None:
    async with scene(a=50, b=0) as s:
        s.broker.answer((A, 0, batch(50)))
        await s.got(A, 50)
        await s.broker.request()
        s.broker.answer((A, OUT_OF_RANGE, b""))
        state(s.consumer, A).reset_to(0)
        with pytest.raises(BrokerError, match="log/0 was read up to 51, and it ends before that now"):
            await s.ended()
        assert s.member.offsets(A) == [50]


async def test_what_is_read_after_a_loss_is_not_taken_for_what_comes_next(scene: MakeScene) -> None:
    """The position is found late, and the next fetch of other places brings what lies there before anybody looks."""
    async with scene(a=50, b=0) as s:
        s.broker.answer((A, 0, batch(50)))
        await s.got(A, 50)
        await s.broker.request()
        s.broker.answer((A, OUT_OF_RANGE, b""))
        reading = s.subscription._fetching._readings[A]
        await until(lambda: not reading.barred_until, 20, "the rest to be over")
        state(s.consumer, A).reset_to(0)
        s.broker.answer()
        assert s.broker.asked[-1].read[A] == 0, "without a look in between"
        s.broker.answer((A, 0, batch(0, 1, 2)))
        with pytest.raises(BrokerError, match="log/0 was read up to 51, and it ends before that now"):
            await s.ended()
        assert s.member.offsets(A) == [50]


async def test_whatever_is_forbidden_ends_the_subscription(scene: MakeScene) -> None:
    async with scene() as s:
        s.broker.answer((A, FORBIDDEN, b""))
        with pytest.raises(Forbidden, match="log"):
            await s.ended()


@pytest.mark.parametrize("records", [batch(0, size=900)[:500], batch(0)[:-1] + b"?"], ids=["too large", "corrupt"])
async def test_records_that_cannot_be_read_end_the_subscription(scene: MakeScene, records: bytes) -> None:
    async with scene() as s:
        s.broker.answer((A, 0, records))
        with pytest.raises(BrokerError, match="cannot be read"):
            await s.ended()
        assert not s.member.got


@pytest.mark.parametrize("count", [1, AT_ONCE + 1])
async def test_what_the_listener_raises_ends_the_subscription(scene: MakeScene, count: int) -> None:
    async with scene() as s:

        def fail(place: Place) -> None:
            if len(s.member.got[place]) == count:
                raise LookupError("a mistake of ours")

        s.member.on_records = fail
        s.broker.answer((A, 0, batch(0, count)))
        with pytest.raises(LookupError, match="a mistake of ours"):
            await s.ended()
        assert not s.broker.is_asked


async def test_what_the_group_refuses_ends_the_subscription(scene: MakeScene) -> None:
    async with scene() as s:
        s.consumer._coordinator.error = GroupAuthorizationFailedError("g")
        with pytest.raises(Forbidden, match="group g"):
            await s.ended()


async def test_the_end_of_aiokafkas_fetcher_ends_the_subscription(scene: MakeScene) -> None:
    """It finds positions: without it a partition would never be read, silently."""
    async with scene() as s:
        s.consumer._fetcher.error_future.set_exception(LookupError("a mistake of theirs"))
        with pytest.raises(LookupError):
            await s.ended()


async def test_reading_counts_as_reading_for_the_group(scene: MakeScene) -> None:
    """aiokafka leaves it when nobody has read for `max_poll_interval_ms`."""
    async with scene(a=0) as s:
        before = s.consumer._subscription._last_fetch_ended
        await until(lambda: s.consumer._subscription._last_fetch_ended > before, 20, "a sign")


async def test_after_a_revoke_that_failed_nothing_is_committed_until_the_next_assignment(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka goes on with the rebalance: what is committed meanwhile would count in the next generation."""
    committed: list[object] = []

    async def commit(offsets: object) -> None:
        committed.append(offsets)

    async def fails() -> None:
        raise ZeroDivisionError("of ours")

    async with scene() as s:
        monkeypatch.setattr(s.subscription, "_generation", lambda: 1)
        monkeypatch.setattr(s.consumer, "commit", commit)
        s.member.on_revoked = fails
        with pytest.raises(ZeroDivisionError):
            await s.subscription.on_partitions_revoked([TopicPartition(*A)])
        assert not await s.subscription.commit({A: Committed(1, "")})
        assert committed == []
        await s.assign(A)
        assert await s.subscription.commit({A: Committed(1, "")})
