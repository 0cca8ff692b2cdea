"""Three brokers: nothing is lost, doubled, reordered or stuck, whichever leads, dies, stands still or comes back.

Responsible for: what a single broker cannot show, of our way to write, our way to read, the group, and whole runs.
Must never: wait for a time. Called by: pytest. `ANABRANCH_TEST_ROUNDS=20` lets leaders come and go for 20 rounds.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from tests.support.apps.adding import app, check, inputs, script
from tests.support.cluster import Cluster, launch_cluster
from tests.support.fleet import ANSWER_S, fleet, settings_for
from tests.support.kafka_sources import KafkaFailed, KafkaUnavailable
from tests.support.log_worlds import KafkaWorld, record_for
from tests.support.need import unavailable
from tests.support.raw import read_until
from tests.support.traffic import Traffic
from tests.support.wait import until

from anabranch.config import KafkaSettings
from anabranch.kafka import admin, silent
from anabranch.kafka.admin import Admin
from anabranch.kafka.fetch import fetching
from anabranch.kafka.link import Link
from anabranch.kafka.produce import producing
from anabranch.kafka.seam import Place
from anabranch.topics import TopicSpec

ROUNDS = int(os.environ.get("ANABRANCH_TEST_ROUNDS", "1"))
PARTITIONS = 6
WELL_S = 30.0
"""Within so long all goes on after whatever happened, on a machine that is busy with other things."""
pytestmark = pytest.mark.timeout(120 + 60 * ROUNDS)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[Cluster]:
    try:
        cluster = launch_cluster()
    except KafkaUnavailable as error:
        unavailable(str(error))
    except KafkaFailed as error:
        pytest.fail(str(error), pytrace=False)
    with cluster:
        yield cluster


@pytest.fixture
async def cluster(_cluster: Cluster) -> Cluster:
    """One for all tests, whole at the beginning of each."""
    await asyncio.to_thread(_cluster.start)
    await _cluster.whole()
    return _cluster


@asynccontextmanager
async def traffic(cluster: Cluster, namespace: str) -> AsyncIterator[Traffic]:
    """Traffic that is checked in the end: from then on everything comes through, and so has all that was."""
    topic = await cluster.create(f"{namespace}.log", PARTITIONS)
    async with Traffic.going(KafkaWorld(cluster.bootstrap, namespace), topic, PARTITIONS) as going:
        yield going
        await going.goes_on(WELL_S)
        await going.commits(WELL_S)
        await going.end(WELL_S)
        going.check(await read_until(cluster.bootstrap, topic, going.is_all))


async def test_leaders_that_move_die_and_come_back_cost_nothing(cluster: Cluster, namespace: str, seed: int) -> None:
    chance = random.Random(seed)
    async with traffic(cluster, namespace) as going:
        for turn in range(ROUNDS):
            for step in range(2):
                await cluster.lead(going.topic, {n: (n + turn + step) % 3 + 1 for n in range(PARTITIONS)})
                await going.goes_on(WELL_S)
            number = await cluster.coordinator(namespace)  # it leads two of the partitions too
            broker = cluster.brokers[number]
            await asyncio.to_thread(chance.choice([broker.kill, broker.stop]) if turn else broker.kill)
            await going.goes_on(WELL_S)
            await going.commits(WELL_S)
            await asyncio.to_thread(cluster.start)
            await cluster.whole()
            await cluster.lead(going.topic, dict.fromkeys(range(PARTITIONS), number))


async def test_a_broker_that_stands_still_is_left(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hangs up on us: it is as if its machine had lost its network. Whoever starts then finds the others."""
    monkeypatch.setattr(producing, "REPLICAS_S", 3.0)  # instead of 10
    monkeypatch.setattr(producing, "REQUEST_S", 4.0)  # instead of 15
    monkeypatch.setattr(fetching, "SILENT_S", 4.0)
    monkeypatch.setattr(admin, "ANSWER_S", 2.0)  # instead of 10
    monkeypatch.setattr(silent, "SERVER_S", 1.0)  # instead of 4
    more = await cluster.create(f"{namespace}.more", 1)
    async with traffic(cluster, namespace) as going:
        number = await cluster.coordinator(namespace)
        cluster.freeze(number)
        try:
            await going.goes_on(WELL_S)
            await going.commits(WELL_S)
            late = KafkaWorld(cluster.bootstrap_from(number), f"{namespace}.late")
            async with Traffic.going(late, more, 1) as starting:
                await starting.end(WELL_S)
        finally:
            cluster.thaw()
        await cluster.whole()


async def test_whoever_starts_while_the_controller_stands_still_waits_for_its_successor(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get no numbers for producers before they give up asking it."""
    monkeypatch.setattr(producing, "REQUEST_S", 2.0)  # instead of 15
    monkeypatch.setattr(silent, "SERVER_S", 1.0)  # instead of 4
    topic = await cluster.create(f"{namespace}.log", 1)
    number = cluster.controller()
    cluster.freeze(number)
    try:
        async with KafkaWorld(cluster.bootstrap_from(number), namespace).broker().appender() as appender:
            written = appender.append(record_for(Place(topic, 0), b"at last"))
            await until(lambda: written.is_written, WELL_S, "a successor")
    finally:
        cluster.thaw()
    await cluster.whole()


async def _as_of(seen: Any, names: Any) -> Any:
    return seen


@pytest.mark.parametrize("connected", [True, False])
async def test_topics_are_made_although_the_broker_that_is_asked_for_them_stands_still(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    monkeypatch.setattr(admin, "ANSWER_S", 2.0)  # instead of 10
    asked: list[int] = []
    async with Admin.opened(
        KafkaSettings(bootstrap=cluster.bootstrap), {"bootstrap_servers": cluster.bootstrap}
    ) as asking:
        client = asking._client._client
        send, number = client.send, client.cluster.controller.nodeId

        async def seen(node_id: int, request: Any, **arguments: Any) -> Any:
            if "CreateTopics" in type(request).__name__:
                asked.append(node_id)
            return await send(node_id, request, **arguments)

        monkeypatch.setattr(client, "send", seen)
        monkeypatch.setattr(asking, "_look", partial(_as_of, await asking._look([f"{namespace}.log"])))
        if connected:
            assert await client.ready(number)
        elif (connection := client._conns.pop((number, ConnectionGroup.DEFAULT), None)) is not None:
            connection.close()
        cluster.freeze(number)
        try:
            await asking.apply([TopicSpec(f"{namespace}.log", 1, {})])
        finally:
            cluster.thaw()
    assert asked.count(number) == connected, "it is asked once at most, and then another one is"
    assert len(asked) > connected
    await cluster.whole()


async def test_all_brokers_may_be_away_for_a_while(cluster: Cluster, namespace: str) -> None:
    async with traffic(cluster, namespace):
        await asyncio.to_thread(cluster.kill)
        await asyncio.to_thread(cluster.start)


async def test_a_partition_without_a_leader_is_waited_for_at_leisure(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await cluster.create_alone(f"{namespace}.log", 3)
    asked = asked_for(monkeypatch)
    async with Traffic.going(KafkaWorld(cluster.bootstrap, namespace), topic, 1) as going:
        await asyncio.to_thread(cluster.brokers[3].kill)
        await cluster.until(topic, lambda led: led[0].leader < 0)
        asked.clear()
        began, cpu_began = time.monotonic(), time.process_time()
        await asyncio.to_thread(cluster.start)
        took, cpu = time.monotonic() - began, time.process_time() - cpu_began
        rates = {name: count / took for name, count in asked.items()}
        await going.goes_on(WELL_S)
        await going.end(WELL_S)
        going.check(await read_until(cluster.bootstrap, topic, going.is_all))
    assert took > 0.5, "else this measures nothing"
    assert max(rates.values(), default=0) < 60, f"a second, of an appender, a member and a reader: {rates}"
    assert cpu < took / 2, f"busy for {cpu:.1f} of {took:.1f} s: {rates}"


def asked_for(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each request is made from now on, by us (these have numbers) and by aiokafka."""
    asked: Counter[str] = Counter()
    ask, send = Link.ask, AIOKafkaConnection.send

    def counted(link: Link, api_key: int, *arguments: Any) -> None:
        asked[str(api_key)] += 1
        ask(link, api_key, *arguments)

    def sent(connection: Any, request: Any, *arguments: Any, **more: Any) -> Any:
        asked[type(request).__name__] += 1
        return send(connection, request, *arguments, **more)

    monkeypatch.setattr(Link, "ask", counted)
    monkeypatch.setattr(AIOKafkaConnection, "send", sent)
    return asked


async def test_hundreds_of_runs_survive_a_broker_and_have_one_answer_each(cluster: Cluster, namespace: str) -> None:
    count = 300
    async with fleet(app, script, settings_for(cluster.bootstrap, namespace)) as running:
        loading = asyncio.create_task(running.ask_all("adder", inputs(count), within_s=120))
        await until(lambda: running.model.calls > count // 3, ANSWER_S, "the load is on")
        number = await cluster.coordinator(running.namespace.agents_group)
        await asyncio.to_thread(cluster.brokers[number].kill)
        check(await loading)
        topic = running.namespace.responses

        def all_answered(there: list[Any]) -> bool:
            return len({record.key for record in there}) >= count

        answers = await read_until(cluster.bootstrap, topic, all_answered)
    assert set(Counter(record.key for record in answers).values()) == {1}
