"""What every `Subscription` guarantees, and what it tells its `Listener`: the seam's docstrings, as tests.

Responsible for: one test for each guarantee. A test class that inherits gives the fixture `world`.
Must never: know which implementation it runs on, or take silence for proof: that nothing came from a place is seen by
what came from another one afterwards.
Called by: `tests/integration/test_log_conformance.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from anabranch.codec import Record
from anabranch.kafka.seam import Committed, Place
from tests.support.log_worlds import SOON_S, Member, World, joined, numbers, topic, write
from tests.support.wait import until


async def two_places(world: World, records: int = 3) -> tuple[str, Place, Place]:
    """A topic of two partitions with `records` in each."""
    name = await topic(world, "t", 2)
    one, other = Place(name, 0), Place(name, 1)
    for place in (one, other):
        await write(world, place, numbers(records))
    return name, one, other


async def has_read(member: Member, place: Place, count: int) -> None:
    await until(lambda: len(member.got.get(place, [])) >= count, SOON_S, f"{count} records of {place}")


async def shared(*members: Member) -> None:
    """Wait until each of `members` has something, and no two the same."""

    def is_shared() -> bool:
        places = [place for member in members for place in member.places]
        return all(member.places for member in members) and len(places) == len(set(places))

    await until(is_shared, SOON_S, "the places to be shared")


class PositionConformance:
    """Of one member alone."""

    async def test_nothing_of_a_place_is_delivered_before_it_is_sought(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        member = Member()
        async with joined(world, member, [name], group) as subscription:
            assert member.places == {one, other}
            subscription.seek(one, 0)
            await has_read(member, one, 3)
            assert other not in member.got
            subscription.seek(other, 1)
            await has_read(member, other, 2)
        assert member.offsets(one) == [0, 1, 2]
        assert member.offsets(other) == [1, 2]

    async def test_records_come_in_order_and_none_is_left_out(self, world: World, group: str) -> None:
        name, one, other = await two_places(world, 0)
        member = Member(begin={one: 0, other: 0})
        async with joined(world, member, [name], group):
            for first in range(0, 600, 200):
                await asyncio.gather(*[write(world, place, numbers(200, first)) for place in (one, other)])
            await has_read(member, one, 600)
            await has_read(member, other, 600)
        for place in (one, other):
            assert member.offsets(place) == list(range(600))
            assert [record.value for record in member.got[place]] == numbers(600)

    async def test_seek_goes_back_and_forth(self, world: World, group: str) -> None:
        name, one, _ = await two_places(world, 10)
        member = Member(begin={one: 8})
        async with joined(world, member, [name], group) as subscription:
            await has_read(member, one, 2)
            subscription.seek(one, 2)
            await has_read(member, one, 10)
            await write(world, one, numbers(5))
            subscription.seek(one, 14)
            await until(lambda: member.offsets(one)[-1] == 14, SOON_S)
        assert member.offsets(one)[:10] == [8, 9, *range(2, 10)]

    async def test_a_place_sought_while_others_are_delivered_goes_on_there(self, world: World, group: str) -> None:
        name, one, other = await two_places(world, 5)

        class Rewinding(Member):
            """Begins the other place anew as soon as it hears of one."""

            def records(self, place: Place, records: Sequence[Record]) -> None:
                first = place not in self.got
                super().records(place, records)
                if first:
                    self.subscription.seek(other if place == one else one, 0)

        everything = [0, 1, 2, 3, 4]
        member = Rewinding(begin={one: 3, other: 3})
        async with joined(world, member, [name], group):
            await until(lambda: all(member.offsets(place)[-5:] == everything for place in (one, other)), SOON_S)
        for place in (one, other):
            assert member.offsets(place)[:-5] in ([], [3, 4])

    async def test_pause_holds_one_place_and_resume_goes_on_where_it_stopped(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        member = Member(begin={one: 0, other: 0})
        async with joined(world, member, [name], group) as subscription:
            await has_read(member, one, 3)
            await has_read(member, other, 3)
            subscription.pause(one)
            await write(world, one, numbers(3))
            for more in range(3):  # rounds, so that a fetch that was under way would show
                await write(world, other, numbers(3))
                await has_read(member, other, 6 + 3 * more)
            assert member.offsets(one) == [0, 1, 2]
            subscription.resume(one)
            await has_read(member, one, 6)
        assert member.offsets(one) == [0, 1, 2, 3, 4, 5]

    async def test_a_seek_ends_a_pause(self, world: World, group: str) -> None:
        name, one, _ = await two_places(world)
        member = Member(begin={one: 0})
        async with joined(world, member, [name], group) as subscription:
            await has_read(member, one, 3)
            subscription.pause(one)
            subscription.seek(one, 1)
            await has_read(member, one, 5)
        assert member.offsets(one) == [0, 1, 2, 1, 2]

    async def test_what_is_said_of_a_place_of_others_changes_nothing(self, world: World, group: str) -> None:
        name, one, _ = await two_places(world)
        foreign = Place(name, 7)
        member = Member()
        async with joined(world, member, [name], group) as subscription:
            subscription.seek(foreign, 0)
            subscription.pause(foreign)
            subscription.resume(foreign)
            subscription.seek(one, 0)
            await until(lambda: member.positions.get(one) == 3, SOON_S)
        assert foreign not in member.positions

    async def test_the_position_is_told_when_all_is_delivered_of_an_empty_place_too(
        self, world: World, group: str
    ) -> None:
        name, one, other = await two_places(world, 0)
        await write(world, other, numbers(4))
        member = Member(begin={one: 0, other: 2})
        async with joined(world, member, [name], group):
            await until(lambda: member.positions.get(one) == 0, SOON_S)
            await until(lambda: member.positions.get(other) == 4, SOON_S)
        assert member.offsets(other) == [2, 3]

    async def test_behind_what_is_known_everything_is_delivered(self, world: World, group: str) -> None:
        name, one, other = await two_places(world, 2)
        member = Member(begin={one: 0, other: 0})
        async with joined(world, member, [name], group):
            await has_read(member, other, 2)
            member.knows = {other: 4}
            await write(world, other, numbers(5))
            await write(world, one, numbers(1))
            await until(lambda: 6 in member.offsets(other), SOON_S)
            await has_read(member, one, 3)
        behind = [offset for offset in member.offsets(other) if offset >= 4]
        assert behind == [4, 5, 6], "and what is known may come all the same"

    async def test_ends_and_begins_are_the_offsets_of_what_is_there(self, world: World, group: str) -> None:
        name, one, other = await two_places(world, 0)
        await write(world, one, numbers(4))
        async with joined(world, Member(), [name], group) as subscription:
            assert await subscription.ends([one, other]) == {one: 4, other: 0}
            assert await subscription.begins([one, other]) == {one: 0, other: 0}

    async def test_an_error_of_the_caller_passes_through_a_subscription(self, world: World, group: str) -> None:
        name = await topic(world, "t")
        with pytest.raises(ZeroDivisionError):
            async with world.broker().subscribe([name], group, Member()):
                raise ZeroDivisionError


class GroupConformance:
    """Of members among each other."""

    async def test_each_join_divides_the_group_once(self, world: World, group: str) -> None:
        """A member that joins twice begins a rebalance with the second time, and so do those that it makes join."""
        name, newer = await topic(world, "t", 6), await topic(world, "newer", 6)
        members = [Member("a"), Member("b"), Member("c")]
        async with AsyncExitStack() as stack:
            for count, member in enumerate(members, start=1):
                await stack.enter_async_context(joined(world, member, [name], group, [newer]))
                await shared(*members[:count])
            assert all({place.topic for place in member.places} == {name, newer} for member in members)
            assert [len(member.assignments) for member in members] == [3, 2, 1]

    async def test_a_commit_is_read_again_with_its_metadata(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        metadata = "".join(chr(33 + n % 90) for n in range(3072))
        async with joined(world, Member(), [name], group) as subscription:
            assert await subscription.committed([one, other]) == {}
            assert await subscription.commit({one: Committed(2, metadata)})
            assert await subscription.committed([one, other]) == {one: Committed(2, metadata)}
        async with joined(world, Member(), [name], group) as subscription:
            assert await subscription.committed([one]) == {one: Committed(2, metadata)}
            assert await subscription.commit({one: Committed(3, ""), other: Committed(0, "x")})
            assert await subscription.committed([other, one]) == {one: Committed(3, ""), other: Committed(0, "x")}

    async def test_an_expelled_member_commits_nothing_and_is_told_that_it_lost(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        member = Member(begin={one: 0})
        async with joined(world, member, [name], group) as subscription:
            assert await subscription.commit({one: Committed(1, "kept")})
            await world.expel(subscription)
            assert not await subscription.commit({one: Committed(3, "too late")})
            await until(lambda: member.revocations, SOON_S, "the expelled member to learn of it")
            assert member.revocations == [(frozenset({one, other}), True)]
            await until(lambda: len(member.assignments) == 2, SOON_S, "the member to join anew")
            assert await subscription.committed([one]) == {one: Committed(1, "kept")}
            assert await subscription.commit({one: Committed(2, "anew")})

    async def test_a_commit_while_a_loss_is_handled_is_refused(self, world: World, group: str) -> None:
        name, one, _ = await two_places(world)
        member, answers = Member(), list[bool]()

        async def commit() -> None:
            answers.append(await member.subscription.commit({one: Committed(3, "")}))

        member.on_revoked = commit
        async with joined(world, member, [name], group) as subscription:
            await world.expel(subscription)
            await until(lambda: answers, SOON_S)
            assert answers == [False]
            await until(lambda: len(member.assignments) == 2, SOON_S)
            assert await subscription.committed([one]) == {}

    async def test_a_commit_before_revoked_returns_is_confirmed(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        first, second, answers = Member("first"), Member("second"), list[bool]()

        async def commit() -> None:
            answers.append(await first.subscription.commit({one: Committed(1, "f"), other: Committed(2, "f")}))

        async with joined(world, first, [name], group):
            first.on_revoked = commit
            async with joined(world, second, [name], group) as subscription:
                assert answers == [True]
                found = await subscription.committed([one, other])
        assert found == {one: Committed(1, "f"), other: Committed(2, "f")}

    async def test_two_topics_are_divided_alike(self, world: World, group: str) -> None:
        requests, log = await topic(world, "requests", 6), await topic(world, "log", 6)
        members = [Member(str(number)) for number in range(3)]
        topics = [requests, log]
        async with (
            joined(world, members[0], topics, group),
            joined(world, members[1], topics, group),
            joined(world, members[2], topics, group),
        ):
            await until(lambda: all(len(member.places) == 4 for member in members), SOON_S)
            held = [member.places for member in members]
        for places in held:
            numbers_of = [{p.partition for p in places if p.topic == name} for name in topics]
            assert numbers_of[0] == numbers_of[1]
        assert set().union(*held) == {Place(name, number) for name in topics for number in range(6)}

    async def test_an_assignment_names_all_that_is_ours_and_no_place_has_two_owners(
        self, world: World, group: str
    ) -> None:
        name = await topic(world, "t", 4)
        everything = {Place(name, number) for number in range(4)}
        first, second = Member("first"), Member("second")
        async with joined(world, first, [name], group):
            assert first.assignments == [everything]
            async with joined(world, second, [name], group):
                await shared(first, second)
                assert first.places | second.places == everything
                assert first.revocations == [(frozenset(everything), False)]
            await until(lambda: first.places == everything, SOON_S)

    async def test_a_kept_place_is_not_delivered_before_it_is_sought_again(self, world: World, group: str) -> None:
        name = await topic(world, "t", 4)
        places = [Place(name, number) for number in range(4)]
        first, second = Member("first", dict.fromkeys(places, 0)), Member("second")
        for place in places:
            await write(world, place, numbers(2))
        async with joined(world, first, [name], group) as subscription:
            for place in places:
                await has_read(first, place, 2)
            first.begin = {}
            async with joined(world, second, [name], group):
                await shared(first, second)
                sought, kept = sorted(first.places)
                for place in (kept, sought):
                    await write(world, place, numbers(2))
                subscription.seek(sought, 2)
                await has_read(first, sought, 4)
                assert first.offsets(kept) == [0, 1]
                subscription.seek(kept, 1)
                await has_read(first, kept, 5)
                assert first.offsets(kept) == [0, 1, 1, 2, 3]

    async def test_a_pause_does_not_outlive_the_assignment(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        first, second = Member("first", {one: 0, other: 0}), Member("second")
        async with joined(world, first, [name], group) as subscription:
            await has_read(first, one, 3)
            subscription.pause(one)
            subscription.pause(other)
            async with joined(world, second, [name], group):
                await shared(first, second)
                (kept,) = first.places
                first.got.clear()
                subscription.seek(kept, 0)
                await has_read(first, kept, 3)

    async def test_nobody_gets_a_place_before_its_owner_has_given_it_up(self, world: World, group: str) -> None:
        name = await topic(world, "t", 2)
        first, second = Member("first"), Member("second")
        asked, free = asyncio.Event(), asyncio.Event()

        async def give_up() -> None:
            asked.set()
            await free.wait()

        async with joined(world, first, [name], group):
            first.on_revoked = give_up
            joining = asyncio.create_task(self._member_of(world, second, name, group))
            await asyncio.wait_for(asked.wait(), SOON_S)
            # A round trip through the cluster, in which the other one could have been assigned something.
            await write(world, Place(name, 0), numbers(3))
            assert second.assignments == []
            free.set()
            await asyncio.wait_for(joining, SOON_S)
            assert len(second.assignments[0]) == 1

    @staticmethod
    async def _member_of(world: World, member: Member, name: str, group: str) -> None:
        async with joined(world, member, [name], group):
            assert member.assignments

    async def test_a_member_that_stops_leaves_its_places_to_the_others_at_once(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        first, second = Member("first", {one: 0, other: 0}), Member("second")
        async with joined(world, first, [name], group):
            async with joined(world, second, [name], group):
                await shared(first, second)
            # Much less than a session timeout: the group need not find out by itself.
            await until(lambda: first.places == {one, other}, 4.0, "the places of the one that left")
            assert second.revocations == []

    async def test_run_ends_soon_after_stop(self, world: World, group: str) -> None:
        name = await topic(world, "t")
        async with world.broker().subscribe([name], group, Member()) as subscription:
            running = asyncio.create_task(subscription.run())
            subscription.stop()
            await asyncio.wait_for(running, 2.0)

    async def test_groups_do_not_share(self, world: World, group: str) -> None:
        name, one, other = await two_places(world)
        members = [Member(str(number), {one: 0, other: 0}) for number in range(2)]
        async with (
            joined(world, members[0], [name], group) as subscription,
            joined(world, members[1], [name], f"{group}.other") as another,
        ):
            for member in members:
                await has_read(member, one, 3)
                await has_read(member, other, 3)
            assert await subscription.commit({one: Committed(3, "")})
            assert await another.committed([one]) == {}
