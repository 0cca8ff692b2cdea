"""What answers become: records in order, as long as their place is ours, not paused and not sought elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, NodeNotReadyError
from tests.support.fetches import Broker, batch, lead, prepare, state
from tests.support.log_worlds import Member
from tests.support.wait import until

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError, Forbidden
from anabranch.kafka import asking, fetching
from anabranch.kafka.asking import LONGEST_PAUSE_S, PAUSE_S, REST_S
from anabranch.kafka.connect import client_arguments
from anabranch.kafka.pump import AT_ONCE, KafkaSubscription
from anabranch.kafka.seam import Place

A, B = Place("log", 0), Place("log", 1)
NOT_LEADER, UNKNOWN_TOPIC, OUT_OF_RANGE, FORBIDDEN, UNKNOWN, NOT_FOUND, WRONG_EPOCH = 6, 3, 1, 29, -1, 70, 71
SETTINGS = KafkaSettings(bootstrap="nowhere:1")


class Hearing(Member):
    """A member that acts on what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[tuple[Place, int]] = []
        self.on_records: Callable[[Place], None] = lambda place: None
        self.answering = False

    def records(self, place: Place, records: Any) -> None:
        super().records(place, records)
        self.deliveries.append((place, len(records)))
        self.on_records(place)

    @property
    def is_answering(self) -> bool:
        return self.answering


class Scene:
    """A subscription to two places that is run, and its brokers by number."""

    def __init__(self, brokers: dict[int, Broker], connect: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.member, self.brokers = Hearing(), brokers
        self.links: list[int] = []
        self.connect = connect
        self.has_ended = False
        self.running: asyncio.Task[None] | None = None
        self.subscription = KafkaSubscription(
            SETTINGS,
            client_arguments(SETTINGS),
            ["log"],
            "g",
            self.member,
            None,  # type: ignore[arg-type]
        )
        self.consumer = prepare(self.subscription._consumer, {A: 1, B: 2 if 2 in brokers else 1})
        self.consumer._subscription.subscribe({"log"})

    @property
    def broker(self) -> Broker:
        return self.brokers[1]

    async def linked(self, client: Any, node_id: int, timeout_s: float) -> Broker:
        self.links.append(node_id)
        if self.connect is not None:
            await self.connect(node_id)
        return self.brokers[node_id]

    async def assign(self, *places: Place, **seeks: int) -> None:
        wheres = [TopicPartition(*place) for place in places]
        self.consumer._subscription.assign_from_subscribed(wheres)
        await self.subscription.on_partitions_assigned(wheres)
        self.member.subscribed(self.subscription)
        for name, offset in seeks.items():
            self.subscription.seek({"a": A, "b": B}[name], offset)

    async def got(self, place: Place, *offsets: int) -> None:
        await until(lambda: self.member.offsets(place) == [*offsets], 20, f"{offsets} of {place}: {self.member.got}")

    @property
    def is_over(self) -> bool:
        """Whether the test has ended it, or has seen how it ended."""
        return self.subscription._stopped.is_set() or self.has_ended

    async def ended(self) -> None:
        assert self.running is not None
        self.has_ended = True
        async with asyncio.timeout(20):
            await self.running

    async def turns(self, count: int = 20) -> None:
        """So many turns of the loop: whatever is to be done at once is done by then."""
        for _ in range(count):
            await asyncio.sleep(0)


MakeScene = Callable[..., Any]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    @asynccontextmanager
    async def made(
        *, run: bool = True, brokers: dict[int, Broker] | None = None, connect: Any = None, **seeks: int
    ) -> AsyncIterator[Scene]:
        scene = Scene(brokers or {1: Broker()}, connect)
        monkeypatch.setattr(fetching, "linked", scene.linked)
        await scene.assign(A, B, **(seeks or {"a": 0}))
        running = asyncio.create_task(scene.subscription.run())
        try:
            scene.running = running
            if run:
                await scene.broker.request()
            yield scene
            assert scene.is_over or not running.done(), running
        finally:
            scene.subscription.stop()
            await asyncio.wait([running])

    return made


# --- delivery ---------------------------------------------------------------------------------------------------


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


async def test_no_more_than_so_many_records_are_delivered_in_one_turn_of_the_loop(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, batch(0, AT_ONCE + 1)), (B, 0, batch(0, AT_ONCE)))
        assert s.member.deliveries == [(A, AT_ONCE)]
        await asyncio.sleep(0)
        assert s.member.deliveries[1:] == [(A, 1), (B, AT_ONCE - 1)]
        assert not s.broker.is_asked, "nothing is fetched while something is to be delivered"
        await asyncio.sleep(0)
        assert s.member.deliveries[3:] == [(B, 1)]
        assert (await s.broker.request()).fetched == {A: AT_ONCE + 1, B: AT_ONCE}


async def test_what_was_fetched_beyond_a_pause_is_kept_and_delivered_after_it(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.member.on_records = lambda place: s.subscription.pause(place) if place == A else None
        s.broker.answer((A, 0, batch(0, AT_ONCE + 2)), (B, 0, batch(0)))
        asked = await s.broker.request()
        assert (asked.read, asked.forgotten) == ({B: 1}, [A]), "a paused one stops no other, and is not fetched again"
        assert s.member.deliveries == [(A, AT_ONCE), (B, 1)]
        s.member.on_records = lambda place: None
        s.subscription.resume(A)
        await s.got(A, *range(AT_ONCE + 2))
        s.broker.answer()
        assert (await s.broker.request()).read == {A: AT_ONCE + 2, B: 1}


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


# --- when -------------------------------------------------------------------------------------------------------


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


# --- what goes wrong --------------------------------------------------------------------------------------------


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
