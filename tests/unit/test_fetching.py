"""What answers become: records in order, as long as their place is ours, not paused and not sought elsewhere."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.fetch_scene import A, B, MakeScene, scenes
from tests.support.fetches import batch, emptied, state
from tests.support.wait import until

from anabranch.kafka import pump
from anabranch.kafka.fetch.fetching import EACH
from anabranch.kafka.pump import AT_ONCE, KafkaSubscription
from anabranch.kafka.seam import Place


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    return scenes(monkeypatch)


async def test_what_a_fetch_brings_is_delivered_in_order_before_its_answer_is_left(scene: MakeScene) -> None:
    async with scene(a=5, b=7) as s:
        assert s.broker.asked[-1].fetched == {A: 5, B: 7}
        s.broker.answer((A, 0, batch(5, 2) + batch(7, 1)), (B, 0, batch(7, 1)))
        assert (s.member.offsets(A), s.member.offsets(B)) == ([5, 6, 7], [7]), "in the turn of the loop that heard it"
        assert (await s.broker.request()).fetched == {A: 8, B: 8}
        assert state(s.consumer, A).position == 8
        assert (state(s.consumer, A).highwater, state(s.consumer, A).lso) == (99, 98)


async def test_what_lies_before_the_position_is_left_out(scene: MakeScene) -> None:
    async with scene(a=6) as s:
        s.broker.answer((A, 0, batch(4, 5)))
        await s.got(A, 6, 7, 8)


@pytest.mark.parametrize("control", [False, True], ids=["records", "the end of a transaction"])
async def test_a_batch_of_which_compaction_has_left_nothing_is_read_past(scene: MakeScene, control: bool) -> None:
    async with scene(a=5) as s:
        s.broker.answer((A, 0, emptied(5, 7, control) + batch(8)))
        await s.got(A, 8)
        await s.broker.request()
        s.broker.answer((A, 0, emptied(9, 9, control)))
        assert (await s.broker.request()).fetched == {A: 10}


async def test_a_broker_that_throttles_us_is_given_its_time(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0)))
        await s.broker.request()
        assert s.broker.deaf_for_ms == 0
        s.broker.answer(throttled_ms=35_000)
        assert (await s.broker.request()).fetched == {}
        assert s.broker.deaf_for_ms == 35_000


async def test_no_more_than_so_many_records_are_delivered_in_one_turn_of_the_loop(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, batch(0, AT_ONCE + 1)), (B, 0, batch(0, EACH + 1)))
        assert s.member.deliveries == [(A, EACH), (B, EACH), (A, EACH), (B, 1), (A, AT_ONCE - 3 * EACH - 1)]
        assert not s.broker.is_asked, "nothing is fetched while something is to be delivered"
        await asyncio.sleep(0)
        assert s.member.deliveries[5:] == [(A, EACH + 2)]
        assert (await s.broker.request()).fetched == {A: AT_ONCE + 1, B: EACH + 1}


async def test_places_take_turns_so_that_none_waits_until_all_of_another_is_delivered(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, batch(0, 2 * AT_ONCE)), (B, 0, batch(0, 2 * AT_ONCE)))
        await until(lambda: sum(count for _, count in s.member.deliveries) == 4 * AT_ONCE, 20, "all")
        places = [place for place, _ in s.member.deliveries]
        assert places == [A, B] * (len(places) // 2)


async def test_whoever_has_enough_to_do_is_given_more_at_leisure(scene: MakeScene) -> None:
    """What it is given takes it some time, so that the loop has three times as long for what it has."""
    async with scene(a=0, b=0) as s:
        loop, turns, at = asyncio.get_running_loop(), 0, list[tuple[int, float]]()

        def take(place: Place) -> None:
            at.append((turns, loop.time()))
            time.sleep(0.02)

        s.member.on_records, s.member.sated = take, True
        s.broker.answer((A, 0, batch(0, AT_ONCE + 1)))
        began = loop.time()
        while len(at) < 2:
            turns += 1
            await asyncio.sleep(0)
        assert at[0][0] == 0
        assert at[1][0] > 3, "other things had their turns"
        assert at[1][1] - began >= 0.06
        s.member.sated = False
        await s.broker.request()
        s.broker.answer((A, 0, batch(AT_ONCE + 1, AT_ONCE + 1)))
        await asyncio.sleep(0)
        assert [count for _, count in s.member.deliveries] == [AT_ONCE, 1, AT_ONCE, 1]


async def test_a_delivery_that_took_long_holds_the_next_one_up_for_a_bounded_time(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the process stood still in it, what it had to do may be over; and partitions may be others by then."""
    monkeypatch.setattr(pump, "LEISURE_S", 0.02)
    async with scene(a=0, b=0) as s:
        at = list[float]()

        def take(place: Place) -> None:
            at.append(time.monotonic())
            if len(at) == 1:
                time.sleep(0.5)

        s.member.on_records, s.member.sated = take, True
        s.broker.answer((A, 0, batch(0, AT_ONCE + 1)))
        await until(lambda: len(at) == 2, what="the rest is delivered")
        assert at[1] - at[0] < 1.5, "without a bound it would be 2 s"


async def test_what_was_fetched_beyond_a_pause_is_kept_and_delivered_after_it(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.member.on_records = lambda place: s.subscription.pause(place) if place == A else None
        s.broker.answer((A, 0, batch(0, EACH + 2)), (B, 0, batch(0)))
        asked = await s.broker.request()
        assert (asked.read, asked.forgotten) == ({B: 1}, [A]), "a paused one stops no other, and is not fetched again"
        assert s.member.deliveries == [(A, EACH), (B, 1)]
        s.member.on_records = lambda place: None
        s.subscription.resume(A)
        await s.got(A, *range(EACH + 2))
        s.broker.answer()
        assert (await s.broker.request()).read == {A: EACH + 2, B: 1}


async def test_what_was_asked_for_before_a_pause_is_kept_too(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.subscription.pause(A)
        s.broker.answer((A, 0, batch(0)))
        await s.turns()
        assert not s.member.got
        s.subscription.resume(A)
        await s.got(A, 0)


async def test_what_was_fetched_for_another_position_is_dropped(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.subscription.seek(A, 50)
        s.broker.answer((A, 0, batch(0, 3)))
        assert (await s.broker.request()).fetched == {A: 50}
        s.broker.answer((A, 0, batch(50)))
        await s.got(A, 50)


async def test_a_seek_while_records_are_delivered_ends_their_delivery(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.member.on_records = lambda place: s.subscription.seek(A, 3)
        s.broker.answer((A, 0, batch(0, 2 * AT_ONCE)))
        assert (await s.broker.request()).fetched == {A: 3}
        assert s.member.deliveries == [(A, AT_ONCE)]


async def test_a_seek_to_the_position_asks_anew_for_what_counted_as_known(scene: MakeScene) -> None:
    """The fetch that is under way begins behind what was known when it was sent."""
    async with scene(run=False, a=5) as s:
        s.member.knows[A] = 8
        assert (await s.broker.request()).fetched == {A: 8}
        s.member.knows[A] = 0
        s.subscription.seek(A, 5)
        s.broker.answer((A, 0, batch(8, 3)))
        assert (await s.broker.request()).fetched == {A: 5}
        s.broker.answer((A, 0, batch(5, 3)))
        await s.got(A, 5, 6, 7)


async def test_a_fetch_begins_behind_what_is_known_meanwhile(scene: MakeScene) -> None:
    async with scene(a=5, b=6) as s:
        s.member.knows[A] = 8
        s.broker.answer()
        assert (await s.broker.request()).fetched == {A: 8}
        assert state(s.consumer, A).position == 5, "what is known has not been delivered"
        s.broker.answer((A, 0, batch(7, 3)))
        await s.got(A, 8, 9)
        assert state(s.consumer, A).position == 10


async def test_nothing_of_a_former_assignment_is_delivered(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        await s.assign(A, B, a=4)
        s.broker.answer((A, 0, batch(0, 8)))
        assert (await s.broker.request()).fetched == {A: 4}
        s.broker.answer((A, 0, batch(4)))
        await s.got(A, 4)


async def test_nothing_is_delivered_while_the_group_divides_its_partitions(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.consumer._subscription.begin_reassignment()
        s.broker.answer((A, 0, batch(0)))
        await s.turns()
        assert not s.member.got
        assert not s.broker.is_asked
        await s.assign(B, b=3)
        assert (await s.broker.request()).read == {B: 3}
        assert not s.member.got


@pytest.mark.parametrize("early", [True, False])
async def test_nobody_is_told_over_and_over_while_the_group_divides_its_partitions(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    async with scene(a=0) as s:
        told = 0
        deliver = s.subscription._fetching._on_fetched

        def count() -> None:
            nonlocal told
            told += 1
            deliver()

        monkeypatch.setattr(s.subscription._fetching, "_on_fetched", count)
        if early:
            s.broker.answer((A, 0, batch(0, AT_ONCE + 1)))
            assert s.member.deliveries == [(A, AT_ONCE)], "and one is left"
        s.consumer._subscription.begin_reassignment()
        if not early:
            s.broker.answer((A, 0, batch(0)))
        await s.turns(100)
        assert told <= 1
        await s.assign(A, B, a=3)
        assert (await s.broker.request()).read == {A: 3}
        s.broker.answer((A, 0, batch(3)))
        await until(lambda: s.member.offsets(A)[-1:] == [3], 20, "it goes on")


async def test_nothing_is_delivered_while_others_may_have_been_given_it_by_now(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was frozen finds answers that waited for it, and hears only later that the group has gone on without it."""
    doubts = [True]
    monkeypatch.setattr(KafkaSubscription, "alive", property(lambda _: not doubts))
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0, 2)))
        await s.turns()
        assert s.member.deliveries == []
        doubts.clear()
        await s.got(A, 0, 1)


async def test_nothing_is_delivered_after_the_end(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0, AT_ONCE + 1)))
        s.subscription.stop()
        await s.ended()
        await s.turns()
        assert s.member.deliveries == [(A, AT_ONCE)]
        assert not s.broker.is_asked


async def test_a_fetch_that_is_under_way_at_the_end_ends_with_its_connection(scene: MakeScene) -> None:
    async with scene(a=0) as s:
        s.subscription.stop()
        await s.ended()
        await s.turns()
        assert (s.broker.is_open, s.broker.is_asked) == (False, False)


async def test_whoever_ends_while_a_broker_is_connected_to_waits_for_it_no_longer(scene: MakeScene) -> None:
    async def connect(node_id: int) -> None:
        await asyncio.get_running_loop().create_future()

    async with scene(run=False, connect=connect) as s:
        await until(lambda: s.links == [1], 20, "the connection to be begun")
        s.subscription.stop()
        await s.ended()
        assert not [task for task in asyncio.all_tasks() if "connecting" in task.get_name()]


async def test_positions_move_past_what_is_not_delivered(scene: MakeScene) -> None:
    """Of an aborted transaction nothing is delivered: that of producer 5 began at 0, and 9 goes on."""
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0, 2, producer=5) + batch(2, 1, producer=9)), aborted=[(5, 0)])
        await s.got(A, 2)
        assert (await s.broker.request()).fetched == {A: 3}
        s.broker.answer((A, 0, batch(3, 4, producer=5)), aborted=[(5, 3)])
        assert (await s.broker.request()).fetched == {A: 7}
        await until(lambda: s.member.positions.get(A) == 7, 20, "the position to be told")
