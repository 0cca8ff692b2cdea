"""The assignor: every partition once, evenly, and as few as possible moved."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from anabranch.kafka.assignor import Owned, make_assignors, share

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


def protocols(newer: list[str]) -> dict[str, Any]:
    """What a member offers when it joins, by protocol, in the order in which it prefers them."""
    return {assignor.name: assignor for assignor in make_assignors(newer)}


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1}


def assigned(members: dict[str, dict[str, Any]]) -> dict[str, set[tuple[str, int]]]:
    """What each member is given. Kafka takes the first protocol of those that all members offer."""
    topics = {True: ["log", "requests", "requests.bulk"], False: ["log", "requests"]}
    name = next(name for name in members["new"] if all(name in offered for offered in members.values()))
    told = {member: offered[name].metadata(topics[len(offered) > 1]) for member, offered in members.items()}
    given_ = members["new"][name].assign(Cluster(), told)
    return {
        member: {(topic, number) for topic, numbers in assignment.assignment for number in numbers}
        for member, assignment in given_.items()
    }


def test_a_newer_topic_is_given_to_nobody_while_a_member_does_not_know_it() -> None:
    knowing = protocols(["requests.bulk"])
    mixed = assigned({"new": knowing, "old": protocols([])})
    assert {topic for places in mixed.values() for topic, _ in places} == {"log", "requests"}
    alike = assigned({"new": knowing, "newer": protocols(["requests.bulk"])})
    for places in alike.values():
        numbers = {number for _, number in places}
        assert places == {(topic, number) for topic in ("log", "requests", "requests.bulk") for number in numbers}


def test_of_two_claims_the_later_round_wins() -> None:
    shares = share([0, 1], {"stale": (1, frozenset({0, 1})), "fresh": (2, frozenset({0}))})
    assert shares == {"fresh": [0], "stale": [1]}
