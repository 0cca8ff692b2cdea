"""The assignor: every partition once, evenly, and as few as possible moved."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from anabranch.kafka.assignor import Memory, Owned, make_assignor, share

NOTHING: Owned = (0, frozenset())


def owned(given_: dict[str, list[int]], round_: int = 1) -> dict[str, Owned]:
    return {member: (round_, frozenset(numbers)) for member, numbers in given_.items()}


def moved(before: dict[str, list[int]], after: dict[str, list[int]]) -> int:
    had = {number: member for member, numbers in before.items() for number in numbers}
    return sum(had.get(number) != member for member, numbers in after.items() for number in numbers)


def ranges(count: int, members: list[str]) -> dict[str, list[int]]:
    """What Kafka's range assignor gives."""
    each, more = divmod(count, len(members))
    given_, start = {}, 0
    for place, member in enumerate(sorted(members)):
        end = start + each + (place < more)
        given_[member], start = list(range(start, end)), end
    return given_


@given(
    st.integers(1, 48),
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.tuples(st.integers(0, 3), st.frozensets(st.integers(0, 60))),
        min_size=1,
    ),
)
def test_every_partition_is_given_once_and_evenly(count: int, members: dict[str, Owned]) -> None:
    shares = share(range(count), members)
    assert sorted(number for numbers in shares.values() for number in numbers) == list(range(count))
    sizes = [len(numbers) for numbers in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 48), st.integers(1, 8))
def test_a_join_moves_only_what_the_new_member_gets(count: int, members: int) -> None:
    before = share(range(count), {f"m{n}": NOTHING for n in range(members)})
    after = share(range(count), {**owned(before), "new": NOTHING})
    assert moved(before, after) == len(after["new"])


@given(st.integers(1, 48), st.integers(2, 8))
def test_a_leave_moves_only_what_the_leaver_had(count: int, members: int) -> None:
    before = share(range(count), {f"m{n}": NOTHING for n in range(members)})
    after = share(range(count), owned({m: numbers for m, numbers in before.items() if m != "m0"}))
    assert moved(before, after) == len(before["m0"])


def test_range_moves_many_times_as_much() -> None:
    members = ["a", "b", "c"]
    by_range = moved(ranges(24, members), ranges(24, [*members, "d"]))
    before = share(range(24), dict.fromkeys(members, NOTHING))
    ours = moved(before, share(range(24), {**owned(before), "d": NOTHING}))
    assert (ours, by_range) == (6, 12)


LOG, REQUESTS, BULK = "log", "requests", "requests.bulk"


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1}


class Joined:
    """A member that knows the bulk topic, or one of before."""

    def __init__(self, knows: bool) -> None:
        self.memory = Memory()
        self.assignor: Any = make_assignor(self.memory, [BULK] if knows else [])
        self.topics = [LOG, REQUESTS, BULK] if knows else [LOG, REQUESTS]


def assigned(leader: str, **members: Joined) -> dict[str, set[tuple[str, int]]]:
    """What each member is given by the `leader`."""
    told = {name: member.assignor.metadata(member.topics) for name, member in members.items()}
    given_ = members[leader].assignor.assign(Cluster(), told)
    for name, assignment in given_.items():
        members[name].assignor.on_assignment(assignment)
    return {
        name: {(topic, number) for topic, numbers in assignment.assignment for number in numbers}
        for name, assignment in given_.items()
    }


def test_a_newer_topic_is_given_to_nobody_while_a_member_does_not_know_it() -> None:
    new, old = Joined(knows=True), Joined(knows=False)
    mixed = assigned("new", new=new, old=old)
    assert {topic for places in mixed.values() for topic, _ in places} == {LOG, REQUESTS}
    assert not new.memory.known


def test_a_newer_topic_is_given_once_all_members_know_it() -> None:
    new, newer = Joined(knows=True), Joined(knows=True)
    for places in assigned("new", new=new, newer=newer).values():
        numbers = {number for _, number in places}
        assert places == {(topic, number) for topic in (LOG, REQUESTS, BULK) for number in numbers}
    assert new.memory.known == newer.memory.known == {BULK}


def test_what_a_leader_of_before_gives_of_a_newer_topic_does_not_count() -> None:
    new, old = Joined(knows=True), Joined(knows=False)
    assigned("new", new=new)
    assert new.memory.known == {BULK}
    mixed = assigned("old", new=new, old=old)
    assert BULK in {topic for topic, _ in mixed["new"]}, "it divides whatever topics are asked for"
    assert not new.memory.known


def test_of_two_claims_the_later_round_wins() -> None:
    shares = share([0, 1], {"stale": (1, frozenset({0, 1})), "fresh": (2, frozenset({0}))})
    assert shares == {"fresh": [0], "stale": [1]}
