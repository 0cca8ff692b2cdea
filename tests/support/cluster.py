"""A Kafka of three brokers, of which two are enough: whose leaders move, and which are killed, frozen and restarted.

Responsible for: the brokers' settings and processes, who leads what, and when all is as it should be again.
Must never: know about agents, tools or our own clients. Called by: the tests of the cluster.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from tests.support.kafka import PORT_TAKEN, Broker, new_node
from tests.support.kafka_admin import admin_of
from tests.support.kafka_sources import Jars, KafkaFailed, KafkaUnavailable, Node, find_source, new_cluster_id
from tests.support.wait import until

BROKERS: Final = 3
WHOLE_S: Final = 60.0
MOVED_S: Final = 20.0
EPOCH: Final = re.compile(r"Becoming the active controller at epoch (\d+)")
ANSWER_MS: Final = 3000
"""For how long the harness waits for a broker that may stand still."""
_new_topic: Any = NewTopic  # aiokafka's constructors have no types


class ElectLeadersResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 43, 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "topics",
            Array(
                ("name", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("error_code", Int16), ("error_message", String("utf-8"))),
                ),
            ),
        ),
    )


class ElectLeadersStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, RESPONSE_TYPE = 43, 1, ElectLeadersResponse
    SCHEMA = Schema(
        ("election_type", Int8),
        ("topics", Array(("name", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class ElectPreferredLeaders(Request[ElectLeadersStruct]):  # type: ignore[misc]
    """The first replica of each is to lead. aiokafka has no such request."""

    API_KEY = 43

    def __init__(self, topic: str, partitions: Iterable[int]) -> None:
        self._topic, self._partitions = topic, list(partitions)

    def build(self, request_struct_class: type[ElectLeadersStruct]) -> ElectLeadersStruct:
        return request_struct_class(0, [(self._topic, self._partitions)], 10_000)


class ClusterJars(Jars):
    """Kafka from Maven's jars: nodes of one cluster, each a broker and a voter."""

    jvm: Sequence[str] = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes, self._id = nodes, new_cluster_id()

    def cluster_id(self) -> str:
        return self._id

    def settings(self, node: Node) -> dict[str, str]:
        voters = [f"{number}@127.0.0.1:{each.controller_port}" for number, each in enumerate(self._nodes, 1)]
        return super().settings(node) | {
            "node.id": str(self._nodes.index(node) + 1),
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": str(BROKERS),
            "min.insync.replicas": "2",
            "offsets.topic.replication.factor": str(BROKERS),
            "transaction.state.log.replication.factor": str(BROKERS),
            "transaction.state.log.min.isr": "2",
            "share.coordinator.state.topic.replication.factor": str(BROKERS),
            "share.coordinator.state.topic.min.isr": "2",
            "auto.leader.rebalance.enable": "false",  # leaders move when a test wants it
            # How long a dead broker goes on leading, and how long a silent controller is waited for.
            "broker.session.timeout.ms": "2000",
            "controller.socket.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "300",
            "replica.fetch.backoff.ms": "100",  # a follower that has asked who leads no longer
        }


@dataclass(frozen=True, slots=True)
class Led:
    """A partition: its leader (-1: none) and the replicas that are in sync."""

    leader: int
    in_sync: frozenset[int]
    replicas: tuple[int, ...]


class Cluster:
    """Three brokers, 1 to 3. Methods that are no coroutines block: from one, use `asyncio.to_thread`."""

    def __init__(self) -> None:
        """Formats; does not start. Raises KafkaFailed."""
        nodes = [new_node() for _ in range(BROKERS)]
        source = ClusterJars(nodes)
        source.fetch()
        try:
            with ThreadPoolExecutor(BROKERS) as pool:
                made = list(pool.map(lambda node: Broker(source, node=node), nodes))
        except BaseException:
            for node in nodes:
                shutil.rmtree(node.home, ignore_errors=True)
            raise
        self.brokers = dict(enumerate(made, 1))
        self._frozen: set[int] = set()

    @property
    def bootstrap(self) -> str:
        """All of them, running or not."""
        return ",".join(broker.bootstrap for broker in self.brokers.values())

    def bootstrap_from(self, number: int) -> str:
        """All of them, and this one first."""
        return ",".join(self.brokers[each].bootstrap for each in sorted(self.brokers, key=lambda n: n != number))

    def start(self) -> None:
        """Start those that do not run, and wait until each answers."""
        for broker in self.brokers.values():
            broker.begin()
        for broker in self.brokers.values():
            broker.start()

    def kill(self) -> None:
        """All, at once."""
        for broker in self.brokers.values():
            broker.kill()

    def close(self) -> None:
        for broker in self.brokers.values():
            broker.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- topics and who leads them ----------------------------------------------------------------------------

    def freeze(self, number: int) -> None:
        """Let one stand still, as a machine does that nobody reaches any more: its connections stay."""
        self._frozen.add(number)
        self.brokers[number].freeze()

    def thaw(self) -> None:
        """Let those go on that stand still."""
        for number in self._frozen:
            self.brokers[number].thaw()
        self._frozen.clear()

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        well = self.brokers.keys() - self._frozen
        running = [self.brokers[number].bootstrap for number in well if self.brokers[number].is_running()]
        async with admin_of(",".join(running), request_timeout_ms=ANSWER_MS) as admin:
            yield admin

    async def create(self, topic: str, partitions: int) -> str:
        """A topic of which every broker has all."""
        return await self._create(topic, partitions, _new_topic(topic, partitions, BROKERS))

    async def create_alone(self, topic: str, broker: int) -> str:
        """A topic of one partition, which has no leader while that broker is away."""
        alone = _new_topic(topic, -1, -1, {0: [broker]}, {"min.insync.replicas": "1"})
        return await self._create(topic, 1, alone)

    async def _create(self, topic: str, partitions: int, new: Any) -> str:
        async with self._admin() as admin:
            answer = await admin.create_topics([new])
        assert not any(error[1] for error in answer.topic_errors), answer
        await self.until(topic, lambda led: len(led) == partitions and all(each.leader > 0 for each in led.values()))
        return topic

    async def led(self, topic: str) -> dict[int, Led]:
        """The partitions of a topic, as some broker that runs sees them."""
        async with self._admin() as admin:
            (told,) = await admin.describe_topics([topic])
        return {
            part["partition"]: Led(part["leader"], frozenset(part["isr"]), tuple(part["replicas"]))
            for part in told["partitions"]
        }

    async def until(
        self, topic: str, condition: Callable[[Mapping[int, Led]], bool], deadline_s: float = MOVED_S
    ) -> Mapping[int, Led]:
        """Wait until the partitions of a topic are as they should be."""
        last: object = None

        async def is_so() -> Mapping[int, Led] | None:
            nonlocal last
            try:
                last = led = await self.led(topic)
            except (KafkaError, OSError, TimeoutError) as error:
                last = error
                return None
            return led if condition(led) else None

        found = await until(is_so, deadline_s, f"{topic} to be led as wanted")
        assert found is not None
        return found

    async def lead(self, topic: str, leaders: Mapping[int, int]) -> None:
        """Let brokers lead partitions, one each, in all order: what is in sync goes on, and nobody has to restart."""
        led = await self.led(topic)
        wanted = {part: (leader, *(n for n in led[part].replicas if n != leader)) for part, leader in leaders.items()}
        async with self._admin() as admin:
            moves: list[Any] = [(part, list(replicas), {}) for part, replicas in wanted.items()]
            answer = await admin._send_request(AlterPartitionReassignmentsRequest(10_000, [(topic, moves, {})], {}))
            _check(answer.to_object()["error_code"])
        await self.until(topic, lambda now: all(now[part].replicas == replicas for part, replicas in wanted.items()))
        async with self._admin() as admin:
            _check((await admin._send_request(ElectPreferredLeaders(topic, leaders))).to_object()["error_code"])
        await self.until(topic, lambda now: all(now[part].leader == leader for part, leader in leaders.items()))

    def controller(self) -> int:
        """The broker that leads them all, as their logs say: it was the last to become that."""
        began = {number: EPOCH.findall(broker.logged()) for number, broker in self.brokers.items()}
        return max(began, key=lambda number: max(map(int, began[number]), default=-1))

    async def coordinator(self, group: str) -> int:
        """The broker that keeps a group."""
        async with self._admin() as admin:
            return int(await admin.find_coordinator(group))

    async def whole(self) -> None:
        """Wait until all brokers are there and every replica is in sync. What does not run is not started."""

        async def is_so() -> bool:
            try:
                async with self._admin() as admin:
                    brokers = (await admin.describe_cluster())["brokers"]
                    topics = await admin.describe_topics()
            except (KafkaError, OSError, TimeoutError):
                return False
            parts = [part for topic in topics for part in topic["partitions"]]
            return len(brokers) == BROKERS and all(
                part["leader"] > 0 and set(part["isr"]) == set(part["replicas"]) for part in parts
            )

        await until(is_so, WHOLE_S, "every replica to be in sync")


def _check(code: int) -> None:
    kind = for_code(code)
    if kind is not NoError:
        raise kind()


def launch_cluster() -> Cluster:
    """One that serves; close it. Raises KafkaUnavailable, or KafkaFailed with the end of a log."""
    if not isinstance(find_source(), Jars):
        raise KafkaUnavailable(
            "these tests need a Java runtime and Maven: brokers in containers do not reach each other"
        )
    for _ in range(2):
        cluster = Cluster()
        try:
            cluster.start()
        except BaseException as error:
            cluster.close()
            if not PORT_TAKEN.search(str(error)):
                raise
        else:
            return cluster
    raise KafkaFailed("two times in a row another process took the ports that were free for Kafka; try again")
