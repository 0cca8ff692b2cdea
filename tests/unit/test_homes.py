"""Homes: balanced, stable, never more than what there is to divide, and the parts add up to the limit.

Responsible for: `homes.py`, and what `agent/placing.py` chooses with it.
Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b

from anabranch.agent import placing as module
from anabranch.agent.placing import Placing
from anabranch.errors import BrokerError, TopicsError
from anabranch.homes import Share, home_of, homes, in_turn, open_to_all, share
from anabranch.kafka.seam import Broker
from anabranch.registry import Registry
from anabranch.specs import LimitSpec
from anabranch.topics import Namespace, partition_of

names = st.text("abcdefgh-.0123456789", min_size=1, max_size=12)
rates = st.floats(1 / 86_400, 100_000)
counts = st.integers(1, 200)
limits = st.builds(
    LimitSpec, names, st.just("q"), rates, st.none() | st.integers(1, 500), st.sampled_from([None, "tenant"])
)


def limit(rate: float, concurrency: int | None = None, name: str = "crm", **fields: Any) -> LimitSpec:
    return LimitSpec(name, "q", rate, concurrency, **fields)


@pytest.mark.parametrize(
    ("rate", "concurrency", "count"),
    [(1 / 60, None, 1), (9.9, None, 1), (19, None, 1), (50, None, 5), (50, 3, 3), (2000, None, 24), (2000, 1, 1)],
)
def test_a_limit_has_a_home_for_each_ten_calls_a_second(rate: float, concurrency: int | None, count: int) -> None:
    assert len(homes(limit(rate, concurrency), None, 24)) == count


@given(limits, names, counts)
def test_the_homes_are_different_partitions_and_their_parts_add_up_to_the_limit(
    limit: LimitSpec, tenant: str, partitions: int
) -> None:
    found = homes(limit, tenant, partitions)
    assert len(set(found)) == len(found) <= partitions
    shares = [share(limit, tenant, home, partitions) for home in range(partitions)]
    assert {home for home, part in enumerate(shares) if part is not None} == set(found)
    parts = [part for part in shares if part is not None]
    assert sum(part.per_second for part in parts) == pytest.approx(limit.per_second)
    if limit.concurrency is None:
        assert {part.places for part in parts} == {None}
    else:
        places = [part.places or 0 for part in parts]
        assert sum(places) == limit.concurrency
        assert 1 <= min(places) <= max(places) <= min(places) + 1


@given(names, counts, rates, rates)
def test_a_higher_limit_keeps_the_homes_of_a_lower_one(name: str, partitions: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    fewer, more = homes(limit(low, name=name), None, partitions), homes(limit(high, name=name), None, partitions)
    assert more[: len(fewer)] == fewer


def test_the_homes_of_many_limits_are_spread_evenly() -> None:
    found = Counter(home for n in range(2400) for home in homes(limit(5, name=f"api-{n}"), None, 24))
    assert len(found) == 24
    assert 60 < min(found.values()) <= max(found.values()) < 150


def test_each_tenant_has_homes_of_its_own() -> None:
    per = limit(5, name="crm", per="tenant")
    assert len({homes(per, f"tenant-{n}", 24) for n in range(200)}) == 24
    assert homes(per, "acme", 24) == homes(per, "acme", 24)
    assert homes(limit(5), "acme", 24) == homes(limit(5), "globex", 24), "one budget for all"


@given(st.lists(st.integers(0, 199), min_size=2, max_size=40, unique=True), st.lists(names, max_size=50))
def test_a_key_moves_only_to_a_home_that_is_new(among: list[int], keys: list[str]) -> None:
    *before, new = among
    for key in keys:
        assert home_of(key, among) in (home_of(key, before), new)


def test_keys_are_spread_over_the_homes_evenly() -> None:
    found = Counter(home_of(f"customer-{n}", (3, 7, 11, 20)) for n in range(4000))
    assert 850 < min(found.values()) <= max(found.values()) < 1150


def test_running_numbers_take_the_homes_in_turn() -> None:
    assert [in_turn(n, (4, 9, 2)) for n in range(4)] == [4, 9, 2, 4]


@given(st.frozensets(limits, max_size=12), counts)
def test_calls_without_a_limit_always_have_half_of_the_partitions(found: frozenset[LimitSpec], partitions: int) -> None:
    assert len(open_to_all(found, partitions)) * 2 >= partitions


def test_calls_without_a_limit_keep_off_the_homes_of_those_that_have_few() -> None:
    few, many = limit(10, name="few"), limit(400, name="many")
    (home,) = homes(few, None, 24)
    assert set(range(24)) - set(open_to_all(frozenset({few, many}), 24)) == {home}


def test_what_is_no_home_has_no_share() -> None:
    (home,) = homes(limit(5, 2), None, 8)
    assert [share(limit(5, 2), None, n, 8) for n in (home, (home + 1) % 8)] == [Share(5, 2), None]


# --- where the agent worker puts a call ---------------------------------------------------------------------------


class Topics:
    """A broker of which only the number of partitions is asked."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts, self.fails = counts, False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def partitions(self, topic: str) -> int:
        await self.may_answer.wait()
        if self.fails:
            raise BrokerError("away")
        if topic not in self.counts:
            raise TopicsError(topic)
        return self.counts[topic]


def placing(counts: dict[str, int] | None = None) -> tuple[Placing, Topics, Registry]:
    topics, registry = Topics({"t.tool.calls.q": 24} if counts is None else counts), Registry()
    registry.add([b.tool(limit="crm")], limits=[limit(50)])
    return Placing(cast(Broker, topics), Namespace("t"), registry, Random(1)), topics, registry


async def test_calls_of_a_limit_go_to_its_homes_in_turn() -> None:
    where, _, _ = placing()
    await where.learn()
    chosen = Counter(where.partition(b.tool(limit="crm"), f"c{n}", None) for n in range(50))
    assert chosen == dict.fromkeys(homes(limit(50), None, 24), 10)


async def test_calls_with_one_serial_key_go_to_one_home() -> None:
    where, _, _ = placing()
    await where.learn()
    spec = b.tool(limit="crm", serial_key="id")
    assert {where.partition(spec, "k", None) for _ in range(9)} == {home_of("k", homes(limit(50), None, 24))}


async def test_other_calls_go_beside_the_homes_unless_their_key_must_meet_others() -> None:
    where, _, registry = placing()
    assert where.partition(b.tool(), "c", None) is None, "the queue is not known yet"
    await where.learn()
    assert where.partition(b.tool(serial_key="id"), "c", None) is None
    free = sorted(set(range(24)) - set(homes(limit(50), None, 24)))
    assert Counter(where.partition(b.tool(), f"c{n}", None) for n in range(2 * len(free))) == dict.fromkeys(free, 2)
    registry.add(limits=[limit(400)])
    chosen = {where.partition(b.tool(), "c", None) for _ in range(24)}
    assert chosen == set(range(24)), "its homes are all partitions"


async def test_calls_without_a_limit_take_the_partitions_of_their_queue_in_turn() -> None:
    where, _, registry = placing({"t.tool.calls.q": 24, "t.tool.calls.other": 7})
    registry.limits.clear()
    await where.learn()
    places = [where.partition(b.tool(), f"c{n}", None) for n in range(48)]
    assert Counter(places) == dict.fromkeys(range(24), 2)
    assert len({*places[:10]}) == 10, "no two calls of a turn of ten wait behind each other"


async def test_where_a_call_may_be_placed_again_its_key_decides() -> None:
    where, _, registry = placing()
    await where.learn()
    for _ in range(2):
        chosen = [where.partition(b.tool(), f"c{n}", None, again=True) for n in range(50)]
        assert chosen == [where.partition(b.tool(), f"c{n}", None, again=True) for n in range(50)]
        assert not set(chosen) & set(homes(limit(50), None, 24)) or not registry.limits
        registry.limits.clear()
    assert chosen == [partition_of(f"c{n}", 24) for n in range(50)], "as if it had not been placed"


async def test_calls_of_a_limit_that_are_placed_twice_reach_all_of_its_homes() -> None:
    where, _, _ = placing()
    await where.learn()
    spec, found = b.tool(limit="crm"), Counter[int | None]()
    for n in range(300):
        first, second = (where.partition(spec, f"c{n}", None, again=True) for _ in range(2))
        assert first == second
        found[first] += 1
    assert set(found) == set(homes(limit(50), None, 24))
    assert min(found.values()) > 30, "five homes have 60 each, about"


async def test_calls_that_alternate_reach_all_homes_of_each() -> None:
    where, _, registry = placing({"t.tool.calls.q": 24, "t.tool.calls.other": 24})
    registry.add([b.tool("other", queue="other")], limits=[limit(20, name="pair")])
    await where.learn()
    tools = b.tool(limit="pair"), b.tool("other", queue="other")
    chosen = Counter((spec.name, where.partition(spec, "c", None)) for _ in range(48) for spec in tools)
    assert {n for (name, _), n in chosen.items() if name == "t"} == {24}, "two homes"
    assert {n for (name, _), n in chosen.items() if name == "other"} == {2}, "24 partitions"


async def test_turns_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    where, _, registry = placing()
    registry.add(limits=[limit(5, per="tenant")])
    await where.learn()
    for n in range(100):
        assert (where.partition(b.tool(limit="crm"), "c", f"t{n}"),) == homes(limit(5, per="tenant"), f"t{n}", 24)
    assert len(where._placed) <= 10


async def test_a_tenants_calls_go_to_its_own_homes() -> None:
    where, _, registry = placing()
    per = limit(5, per="tenant")
    registry.add(limits=[per])
    await where.learn()
    for tenant in ("acme", "globex", None):
        assert (where.partition(b.tool(limit="crm"), "c", tenant),) == homes(per, tenant, 24)


async def test_while_partitions_are_counted_anew_calls_go_to_the_homes_that_are_known() -> None:
    where, topics, _ = placing()
    await where.learn()
    topics.may_answer.clear()
    counting = asyncio.create_task(where.learn(anew=True))
    await asyncio.sleep(0)
    assert where.partition(b.tool(limit="crm"), "c", None) in homes(limit(50), None, 24), "it takes its time"
    topics.counts["t.tool.calls.q"], topics.fails = 48, True
    topics.may_answer.set()
    await counting
    assert where.partition(b.tool(limit="crm"), "c", None) in homes(limit(50), None, 24), "it could not be had"
    topics.fails = False
    await where.learn(anew=True)
    assert {where.partition(b.tool(limit="crm"), "c", None) for _ in range(9)} == set(homes(limit(50), None, 48))
    topics.counts.clear()
    await where.learn(anew=True)
    assert where.partition(b.tool(limit="crm"), "c", None) is None, "it is gone"


@pytest.mark.parametrize("counts", [{}, {"t.tool.calls.q": 24}])
async def test_while_a_queue_or_a_limit_is_unknown_the_key_decides(counts: dict[str, int]) -> None:
    where, _, registry = placing(counts)
    await where.learn()
    if counts:
        registry.limits.clear()
    assert where.partition(b.tool(limit="crm"), "c", None) is None
