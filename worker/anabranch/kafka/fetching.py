"""Which partitions are fetched next: what aiokafka's fetcher asks itself before each fetch and after each answer.

It looks at all partitions both times, in some 2 us each: with 48 of them a tenth of what a lone run costs. This comes
to the same for a consumer without a rack, and looks once: while what was fetched of every broker lies there to be
taken, nothing can be asked for.

Responsible for: that one decision. Must never: read or change what the fetcher knows, but for that.
Called by: aiokafka's fetcher, once `plan_fetches` has been told of a consumer.
"""

from __future__ import annotations

from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.fetch import FetchRequest

NOBODY: Final = frozenset({None, -1})
"""The leader of a partition that has none, or whose leader is not known."""

Actions = tuple[list[tuple[int, FetchRequest]], dict[int, list[TopicPartition]], float, bool, list[Any]]
"""Fetches and resets by broker, how long to wait for anything, whether a leader is to be found, what ends pauses."""


class _Plan:
    """One look at the partitions of `assignment`."""

    def __init__(self, fetcher: Any, assignment: Any) -> None:
        self._fetcher, self._assignment = fetcher, assignment
        self._leader_of = fetcher._client.cluster.leader_for_partition
        self._wait_s: dict[int | None, float] = {}  # brokers of which something is still to be taken
        self._fetches: dict[int, dict[str, list[tuple[int, int, int]]]] = {}
        self._resets: dict[int, list[TopicPartition]] = {}
        self._resumes: list[Any] = []
        self._lacks_leader = False

    def made(self) -> Actions:
        for where, fetched in self._fetcher._records.items():
            if wait_s := fetched.calculate_backoff():
                leader = self._leader_of(where)
                self._wait_s[leader] = max(wait_s, self._wait_s.get(leader, 0.0))
        if not self._wait_s or len(self._wait_s.keys() - NOBODY) < len(self._fetcher._client.cluster.brokers()):
            self._look()
        fetches = [
            (leader, self._request(topics))
            for leader, topics in self._fetches.items()
            if leader not in self._wait_s and leader not in self._resets
        ]
        timeout_s = min(self._wait_s.values(), default=self._fetcher._fetcher_timeout)
        return fetches, self._resets, timeout_s, self._lacks_leader, self._resumes

    def _look(self) -> None:
        leader_of, fetched, under_way = self._leader_of, self._fetcher._records, self._fetcher._in_flight
        most = self._fetcher._max_partition_fetch_bytes
        for where, state in self._assignment._tp_state.items():
            if where in fetched:
                continue
            leader = leader_of(where)
            if leader in under_way:
                continue
            if leader in NOBODY:
                self._lacks_leader = True
            elif not state.has_valid_position:
                self._resets.setdefault(leader, []).append(where)
            elif state.paused:
                self._resumes.append(state.resume_fut)
            else:
                topics = self._fetches.setdefault(leader, {})
                topics.setdefault(where.topic, []).append((where.partition, state.position, most))

    def _request(self, topics: dict[str, list[tuple[int, int, int]]]) -> FetchRequest:
        of = self._fetcher
        return FetchRequest(
            of._fetch_max_wait_ms, of._fetch_min_bytes, of._fetch_max_bytes, of._isolation_level, list(topics.items())
        )


def plan_fetches(consumer: AIOKafkaConsumer) -> None:
    """Let `consumer`, which has been started and has no rack, decide so. There is no public way to do it."""
    fetcher = consumer._fetcher
    fetcher._get_actions_per_node = lambda assignment: _Plan(fetcher, assignment).made()
