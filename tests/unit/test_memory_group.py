"""The troubles of groups that the log's double can make, in virtual time. The rest is in the conformance suite."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.log_worlds import Member, record_for
from tests.support.memory_log import LOG, SPECS, Process, in_turn, settled
from tests.support.virtual import now, virtually

from anabranch.errors import TopicsError
from anabranch.kafka.memory.cluster import Faults, MemoryBroker, MemorySubscription, Timing
from anabranch.kafka.memory.group import range_assignment
from anabranch.kafka.seam import Committed, Place
from anabranch.topics import TopicSpec


def test_an_expelled_member_goes_on_until_it_hears_of_it() -> None:
    async def story() -> tuple[list[int], float]:
        broker = MemoryBroker(SPECS, timing=Timing(heartbeat_s=3.0))
        zombie = await Process(broker, Member(begin={LOG: 0})).begun()
        assert isinstance(zombie.subscription, MemorySubscription)
        broker.expel(zombie.subscription)
        async with broker.appender() as appender:
            await appender.append(record_for(LOG, b"1"))
        await settled(lambda: zombie.member.got)
        read = zombie.member.offsets(LOG)
        await settled(lambda: zombie.member.revocations)
        learnt = now()
        await zombie.end()
        assert [lost for _, lost in zombie.member.revocations] == [True]
        return read, learnt

    read, learnt = virtually(story)
    assert read == [0]
    assert learnt == pytest.approx(3.0, abs=0.1)


def test_a_member_that_is_cut_off_is_expelled_after_its_session_and_learns_of_it_when_mended() -> None:
    async def story() -> None:
        broker = MemoryBroker(SPECS, timing=Timing(session_s=10.0, request_s=5.0))
        one = await Process(broker, Member("one")).begun()
        two = await Process(broker, Member("two")).begun()
        one.broker.cut()
        began = now()
        await settled(lambda: len(two.member.places) == 2)
        assert now() - began == pytest.approx(10.0, abs=0.1)
        assert not await one.subscription.commit({LOG: Committed(1, "")})
        assert one.member.revocations == [(frozenset({LOG, Place("log", 1)}), False)]
        one.broker.mend()
        await settled(lambda: len(one.member.places) == len(two.member.places) == 1)
        assert [lost for _, lost in one.member.revocations] == [False, True]
        await one.end()
        await two.end()

    virtually(story)


def test_a_commit_that_is_under_way_when_the_generation_changes_is_refused() -> None:
    async def story() -> bool:
        cluster = MemoryBroker(SPECS)
        member = Member()
        slow = cluster.another(Faults(delay=lambda: 1.0))
        async with slow.subscribe(["log"], "g", member) as subscription:
            member.subscribed(subscription)
            commit = asyncio.create_task(subscription.commit({LOG: Committed(1, "")}))
            cluster.expel(subscription)
            confirmed = await commit
        assert cluster.commits("g") == {}
        return confirmed

    assert virtually(story) is False


def test_a_lost_commit_is_kept_but_not_confirmed() -> None:
    async def story() -> None:
        broker = MemoryBroker(SPECS, faults=Faults(lost_commit=in_turn(True)))
        async with broker.subscribe(["log"], "g", Member()) as subscription:
            assert not await subscription.commit({LOG: Committed(7, "m")})
            assert await subscription.committed([LOG]) == {LOG: Committed(7, "m")}

    virtually(story)


def test_commits_keep_no_metadata_if_the_cluster_keeps_none() -> None:
    async def story() -> None:
        broker = MemoryBroker(SPECS, metadata=False)
        async with broker.subscribe(["log"], "g", Member()) as subscription:
            assert await subscription.commit({LOG: Committed(7, "m")})
            assert await subscription.committed([LOG]) == {LOG: Committed(7, "")}

    virtually(story)


def test_metadata_beyond_the_brokers_limit_is_refused() -> None:
    async def story() -> bool:
        async with MemoryBroker(SPECS).subscribe(["log"], "g", Member()) as subscription:
            return await subscription.commit({LOG: Committed(7, "x" * 4097)})

    assert virtually(story) is False


def test_who_does_not_give_up_its_places_in_time_is_left_behind() -> None:
    async def story() -> None:
        broker = MemoryBroker(SPECS, timing=Timing(rebalance_s=30.0))
        answers: list[bool] = []

        async def dawdle() -> None:
            await asyncio.sleep(40.0)
            answers.append(await slow.subscription.commit({LOG: Committed(1, "")}))

        slow = await Process(broker, Member("slow")).begun()
        slow.member.on_revoked = dawdle
        quick = await Process(broker, Member("quick")).begun()
        assert now() == pytest.approx(30.0, abs=0.1)
        assert len(quick.member.places) == 2
        slow.member.on_revoked = None
        await settled(lambda: len(slow.member.places) == len(quick.member.places) == 1)
        assert answers == [False]
        await slow.end()
        await quick.end()

    virtually(story)


def test_a_member_that_died_behind_a_cut_is_missed_after_its_session_only() -> None:
    async def story() -> float:
        broker = MemoryBroker(SPECS, timing=Timing(session_s=10.0))
        dead = await Process(broker, Member("dead")).begun()
        dead.broker.cut()
        await dead.end()
        heir = await Process(broker, Member("heir")).begun()
        assert len(heir.member.places) == 2
        await heir.end()
        return now()

    assert virtually(story) == pytest.approx(10.0, abs=0.1)


def test_what_a_listener_raises_ends_run() -> None:
    class Broken(Member):
        """Cannot take a second assignment."""

        def assigned(self, places: frozenset[Place]) -> None:
            super().assigned(places)
            if len(self.assignments) > 1:
                raise ZeroDivisionError

    async def story() -> None:
        broker = MemoryBroker(SPECS)
        async with broker.subscribe(["log"], "g", Broken()) as subscription:
            running = asyncio.create_task(subscription.run())
            broker.expel(subscription)
            with pytest.raises(ZeroDivisionError):
                await running

    virtually(story)


def test_new_partitions_make_the_group_divide_them() -> None:
    async def story() -> int:
        broker = MemoryBroker(SPECS)
        process = await Process(broker, Member(), ["requests"]).begun()
        await broker.apply([TopicSpec("requests", 5, {})])
        await settled(lambda: len(process.member.assignments) == 2)
        await process.end()
        return len(process.member.assignments[1])

    assert virtually(story) == 5


def test_subscribing_to_a_topic_that_is_missing_says_so() -> None:
    async def story() -> None:
        async with MemoryBroker(SPECS).subscribe(["other"], "g", Member()):
            pass

    with pytest.raises(TopicsError, match="other"):
        virtually(story)


def test_what_retention_took_is_not_delivered_and_begins_says_so() -> None:
    async def story() -> list[int]:
        broker = MemoryBroker(SPECS)
        async with broker.appender() as appender:
            await asyncio.gather(*[appender.append(record_for(LOG, b"x")) for _ in range(5)])
        broker.trim(LOG, 3)
        process = await Process(broker, Member(begin={LOG: 1})).begun()
        await settled(lambda: process.member.positions.get(LOG) == 5)
        assert await process.subscription.begins([LOG]) == {LOG: 3}
        await process.end()
        return process.member.offsets(LOG)

    assert virtually(story) == [3, 4]


def test_where_retention_took_all_that_was_left_the_position_is_the_end() -> None:
    async def story() -> list[int]:
        broker = MemoryBroker(SPECS)
        async with broker.appender() as appender:
            await asyncio.gather(*[appender.append(record_for(LOG, b"x")) for _ in range(5)])
        broker.trim(LOG, 5)
        process = await Process(broker, Member(begin={LOG: 1})).begun()
        await settled(lambda: process.member.positions.get(LOG) == 5)
        async with broker.reader([LOG], {LOG: 1}) as reader:
            assert await reader.read(1.0) == []
        await process.end()
        return process.member.offsets(LOG)

    assert virtually(story) == []


@pytest.mark.parametrize(
    ("members", "partitions", "shares"),
    [
        (["a"], 3, {"a": [0, 1, 2]}),
        (["b", "a"], 3, {"a": [0, 1], "b": [2]}),
        (["a", "b", "c"], 2, {"a": [0], "b": [1], "c": []}),
        (["a", "b", "c"], 8, {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7]}),
    ],
)
def test_the_range_assignment_is_kafkas(members: list[str], partitions: int, shares: dict[str, list[int]]) -> None:
    found = range_assignment({name: ["t"] for name in members}, {"t": partitions})
    assert found == {name: frozenset(Place("t", n) for n in share) for name, share in shares.items()}
