"""What is fetched next is what aiokafka itself would fetch, whatever is known, under way, paused or lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import Assignment

from anabranch.kafka.fetching import plan_fetches

CASES = 400


@dataclass
class Cluster:
    """Which broker leads what."""

    count: int
    leaders: dict[TopicPartition, int | None] = field(default_factory=dict)

    def brokers(self) -> set[int]:
        return set(range(1, self.count + 1))

    def leader_for_partition(self, where: TopicPartition) -> int | None:
        return self.leaders[where]


@dataclass
class Fetched:
    """Records that lie there for so long yet before others of their broker are asked for."""

    wait_s: float

    def calculate_backoff(self) -> float:
        return self.wait_s


class Theirs(Fetcher):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's fetcher without its task."""

    def __init__(self, cluster: Cluster) -> None:
        self._client = SimpleNamespace(cluster=cluster)
        self._preferred_read_replica: dict[TopicPartition, Any] = {}
        self._records: dict[TopicPartition, Fetched] = {}
        self._in_flight: set[int | None] = set()
        self._fetch_max_wait_ms, self._fetch_min_bytes, self._fetch_max_bytes = 100, 1, 50_000
        self._max_partition_fetch_bytes, self._isolation_level, self._client_rack = 1000, 1, None
        self._fetcher_timeout = 0.2


def any_scene(chance: random.Random) -> tuple[Theirs, Assignment]:
    """Two topics of four partitions; anything may be the matter with each."""
    cluster = Cluster(chance.randint(1, 3))
    fetcher = Theirs(cluster)
    places = [TopicPartition(topic, number) for topic in ("log", "requests") for number in range(4)]
    assignment = Assignment(places)
    for place in places:
        cluster.leaders[place] = (
            chance.choice([None, -1]) if chance.random() < 0.1 else chance.randint(1, cluster.count)
        )
        state = assignment.state_value(place)
        if chance.random() < 0.9:
            state.seek(chance.randrange(100))
        if chance.random() < 0.2:
            state.pause()
        if chance.random() < 0.15:
            fetcher._records[place] = Fetched(chance.choice([0, 0.05, 0.1]))
    fetcher._in_flight = {broker for broker in cluster.brokers() if chance.random() < 0.3}
    return fetcher, assignment


def plain(actions: Any) -> tuple[Any, ...]:
    """To be compared: the order of partitions says nothing."""
    fetches, resets, timeout, lacks_leader, resumes = actions
    asked = {
        broker: {(topic, one) for topic, partitions in request.topics for one in partitions}
        for broker, request in fetches
    }
    return (
        asked,
        {broker: set(places) for broker, places in resets.items()},
        timeout,
        lacks_leader,
        set(map(id, resumes)),
    )


def ours(fetcher: Theirs, assignment: Assignment) -> Any:
    consumer = SimpleNamespace(_fetcher=fetcher)
    plan_fetches(consumer)
    return fetcher._get_actions_per_node(assignment)


async def test_the_plan_is_that_of_aiokafka() -> None:
    for seed in range(CASES):
        await compare(seed)


async def compare(seed: int) -> None:
    fetcher, assignment = any_scene(random.Random(seed))
    theirs = plain(fetcher._get_actions_per_node(assignment))
    waiting = {fetcher._client.cluster.leaders[p] for p, one in fetcher._records.items() if one.wait_s} - {None, -1}
    if len(waiting) == fetcher._client.cluster.count:  # nothing of any broker can be asked for: nothing is looked at
        theirs = (theirs[0], {}, theirs[2], False, set())
    assert plain(ours(fetcher, assignment)) == theirs, f"seed {seed}"


async def test_while_what_every_broker_has_sent_is_not_taken_no_partition_is_looked_at() -> None:
    fetcher, assignment = any_scene(random.Random(1))
    fetcher._client.cluster.count = 1
    place = next(iter(assignment.tps))
    fetcher._client.cluster.leaders = dict.fromkeys(assignment.tps, 1)
    fetcher._records, fetcher._in_flight = {place: Fetched(0.1)}, set()
    assignment._tp_state.clear()
    assert ours(fetcher, assignment) == ([], {}, 0.1, False, [])
    assert place in fetcher._records


async def test_the_bounds_of_a_fetch_are_those_of_the_consumer() -> None:
    fetcher, assignment = any_scene(random.Random(2))
    fetcher._client.cluster.leaders = dict.fromkeys(assignment.tps, 1)
    fetcher._records, fetcher._in_flight = {}, set()
    for place in assignment.tps:
        assignment.state_value(place).seek(7)
    fetches, *_ = ours(fetcher, assignment)
    request = fetches[0][1]
    assert (request._max_wait_ms, request._min_bytes, request._max_bytes, request._isolation_level) == (
        100, 1, 50_000, 1
    )  # fmt: skip
