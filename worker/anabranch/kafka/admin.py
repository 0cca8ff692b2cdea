"""Asks a Kafka about its topics and a group's commits, creates topics and alters them.

Responsible for: every request of `AIOKafkaAdminClient`; repeating what fails for a passing reason, until a deadline;
telling apart what the broker refuses. What a topic should be is judged by `comparison.py`.
Must never: create a topic by asking for it, drop a setting that somebody else made, delete anything, or let an error
of aiokafka out.
Called by: `connect.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    KafkaError,
    NoError,
    NotControllerError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError, TopicsError
from anabranch.kafka import comparison
from anabranch.kafka.comparison import Cluster, Configs, Seen
from anabranch.kafka.login import unreachable
from anabranch.kafka.refusals import FORBIDDEN, missing, refusal
from anabranch.kafka.seam import Committed, Lack, Place
from anabranch.kafka.silent import Silent
from anabranch.tasks import bounded
from anabranch.topics import TopicSpec
from anabranch.wording import counted

log = logging.getLogger(__name__)

CONNECT_S: Final = 15.0
QUIET_S: Final = 2.0
"""How long the first connection may take, and after how long it is told of: whoever waits is to know for whom."""
ANSWER_S: Final = 10.0
"""How long one broker is waited for: there is time to ask another."""
DEADLINE_S: Final = 30.0
"""How long a request is repeated, and how long a change may take to be seen."""
PAUSE_S: Final = 0.1
STOP_S: Final = 5.0

T = TypeVar("T")
_OF_A_GROUP: Final = 0
_OF_THIS_TOPIC: Final = 1  # DescribeConfigs: the source DYNAMIC_TOPIC_CONFIG
_NAMED: Final = "ANABRANCH_BOOTSTRAP names its host and port, ANABRANCH_SECURITY_PROTOCOL and ANABRANCH_SASL_* the way"
# aiokafka's constructors have no types.
_new_topic: Any = NewTopic
_new_partitions: Any = NewPartitions
_resource: Any = ConfigResource


class _NotYet(KafkaError):  # type: ignore[misc]
    """What we wait for is not so yet: ask again."""

    retriable = True


class Admin:
    """A connection for administration. Every method raises `BrokerError` if Kafka cannot be reached, or refuses.

    `arguments` are what every client of aiokafka takes: `bootstrap_servers` and security.
    """

    def __init__(self, settings: KafkaSettings, arguments: dict[str, Any]) -> None:
        self._settings, self._arguments = settings, arguments
        self._asked: set[str] = set()  # the topics that Kafka was asked to create
        self._client: Any = None  # `Any`, because most methods of the client have no types

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: KafkaSettings, arguments: dict[str, Any]) -> AsyncIterator[Admin]:
        admin = cls(settings, arguments)
        try:
            await admin._start()
            yield admin
        finally:
            if admin._client is not None and not await bounded(admin._client.close(), STOP_S):
                log.warning("the connections for administration were not closed within %g s", STOP_S)

    async def _start(self) -> None:
        where, say_so = self._settings.bootstrap, "Kafka at %s has not answered for %g s: still trying"
        silence = asyncio.get_running_loop().call_later(QUIET_S, log.warning, say_so, where, QUIET_S)
        try:
            self._client = AIOKafkaAdminClient(**self._arguments, request_timeout_ms=int(ANSWER_S * 1000))
            Silent(self._client._client).leave_who_is_late()
            async with asyncio.timeout(CONNECT_S):
                await self._client.start()
        except (KafkaError, OSError, TimeoutError, ValueError) as error:
            raise await unreachable(self._arguments, error) from error
        finally:
            silence.cancel()

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has. Raises `TopicsError` if there is no such topic."""
        seen = (await self._look([topic])).topics.get(topic)
        if seen is None:
            raise missing(topic, self._settings.bootstrap)
        return seen.partitions

    async def lacks(self, specs: Sequence[TopicSpec]) -> list[Lack]:
        """What differs from `specs`; settings that the broker does not report count as right."""
        cluster = await self._look([spec.name for spec in specs])
        what = f"read the settings of {', '.join(cluster.topics)}"
        return comparison.lacks(specs, await self._tried(what, lambda: self._with_configs(cluster)))

    async def apply(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create topics, add partitions, alter settings; returns what was done, one line each.

        The counts of `agent.requests` and `agent.log` never change, and settings that are not in `specs` stay.
        Returns when the broker shows all of it.
        """
        made = await self._create(specs)
        done = [f"created {name} with {counted(count, 'partition')}" for name, count in made.items()]
        done += await self._add_partitions(specs)
        done += await self._alter(specs, frozenset(made))
        if done:
            await self._tried("see the topics as they were asked for", lambda: self._settled(specs, frozenset(made)))
        return done

    async def committed(self, group: str, places: Iterable[Place]) -> dict[Place, Committed]:
        """What `group` has committed, with metadata; places without a commit are left out."""
        wanted = frozenset(places)
        if not wanted:
            return {}
        return await self._tried(f"read the commits of group {group}", lambda: self._offsets(group, wanted))

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _look(self, names: Sequence[str]) -> Cluster:
        return await self._tried(f"look at the topics {', '.join(names)}", lambda: self._metadata(names))

    async def _metadata(self, names: Sequence[str]) -> Cluster:
        # The client's own `describe_topics` lets the broker create what it asks for.
        answer = await self._send(MetadataRequest(list(names), allow_auto_topic_creation=False))
        topics = {}
        for entry in answer["topics"]:
            if entry["error_code"] != UnknownTopicOrPartitionError.errno:
                _raise_for(entry["error_code"], entry["topic"])
                topics[entry["topic"]] = _seen(entry["partitions"])
        return Cluster(len(answer["brokers"]), topics)

    async def _with_configs(self, cluster: Cluster) -> Cluster:
        configs = await self._configs(list(cluster.topics))
        topics = {name: replace(seen, configs=configs.get(name)) for name, seen in cluster.topics.items()}
        return replace(cluster, topics=topics)

    async def _configs(self, names: Sequence[str]) -> dict[str, Configs]:
        """The settings of those topics whose settings we may read."""
        # Without a filter: the embedded broker hangs up on a request that names settings.
        resources = [_resource(ConfigResourceType.TOPIC, name) for name in names]
        try:
            answers = await self._client.describe_configs(resources)
        except IncompatibleBrokerVersion:
            return {name: Configs() for name in names}
        found = {}
        for entry in (entry for answer in answers for entry in answer.to_object()["resources"]):
            if for_code(entry["error_code"]) is not TopicAuthorizationFailedError:
                _raise_for(entry["error_code"], entry["resource_name"], entry["error_message"])
                found[entry["resource_name"]] = _read_configs(entry["config_entries"])
        return found

    async def _offsets(self, group: str, places: frozenset[Place]) -> dict[Place, Committed]:
        # The client's own `list_consumer_group_offsets` takes an answer that is an error for one without commits.
        partitions: dict[str, list[int]] = {}
        for place in sorted(places):
            partitions.setdefault(place.topic, []).append(place.partition)
        coordinator = await self._send(FindCoordinatorRequest(group, _OF_A_GROUP))
        _raise_for(coordinator["error_code"], group)
        request = OffsetFetchRequest(group, list(partitions.items()))
        answer = await self._send(request, coordinator["coordinator_id"])
        _raise_for(answer.get("error_code", 0), group)
        found = {}
        for topic in answer["topics"]:
            for entry in topic["partitions"]:
                place = Place(topic["topic"], entry["partition"])
                _raise_for(entry["error_code"], f"{place.topic}/{place.partition}")
                found[place] = Committed(entry["offset"], entry["metadata"] or "")
        if absent := places - found.keys():
            raise _NotYet(f"no word of {sorted(absent)}")
        return {place: committed for place, committed in found.items() if committed.offset >= 0}

    # -- changing --------------------------------------------------------------------------------------------------

    async def _create(self, specs: Sequence[TopicSpec]) -> dict[str, int]:
        """Create what is missing; returns the partitions of each topic that is there by our doing."""
        cluster = await self._look([spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in cluster.topics]
        made: dict[str, int] = {}
        for spec in missing:
            count = comparison.partitions_to_create(spec, specs, cluster)
            what = f"create topic {spec.name} with {counted(count, 'partition')}"
            if await self._tried(what, partial(self._create_one, spec, count, cluster.brokers), "Create"):
                made[spec.name] = count
        if missing:
            names = [spec.name for spec in missing]
            await self._tried(f"see a leader of {', '.join(names)}", lambda: self._led(names, made))
        return made

    async def _create_one(self, spec: TopicSpec, partitions: int, brokers: int) -> bool:
        """Create a topic; False if somebody else just has. It was us if we have asked before: the answer was lost."""
        factor, again = self._settings.replication_factor, spec.name in self._asked
        try:
            await self._request_topic(spec, partitions, factor)
        except TopicAlreadyExistsError:
            return again
        except InvalidReplicationFactorError:
            if factor != -1:
                raise
            # A broker before 2.4 has no default to give, or its default is for more brokers than there are.
            factor = comparison.REPLICAS if brokers >= comparison.REPLICAS else 1
            await self._request_topic(spec, partitions, factor)
        return True

    async def _request_topic(self, spec: TopicSpec, partitions: int, factor: int) -> None:
        # With a factor of -1 the client insists on assignments, even if there are none.
        assignments: dict[int, list[int]] | None = {} if factor == -1 else None
        await self._know_controller()
        self._asked.add(spec.name)
        answer = await self._client.create_topics(
            [_new_topic(spec.name, partitions, factor, assignments, dict(spec.settings))]
        )
        for entry in answer.to_object()["topic_errors"]:
            _raise_for(entry["error_code"], spec.name, entry.get("error_message"))

    async def _add_partitions(self, specs: Sequence[TopicSpec]) -> list[str]:
        names = [spec.name for spec in specs]
        cluster = await self._tried(f"see the topics {', '.join(names)}", lambda: self._led(names, {}))
        done = []
        for spec in specs:
            if added := comparison.partitions_to_add(spec, specs, cluster):
                what = f"add {counted(added, 'partition')} to {spec.name}"
                await self._tried(what, partial(self._request_partitions, spec), "Alter")
                done.append(f"added {counted(added, 'partition')} to {spec.name}, which now has {spec.partitions}")
        return done

    async def _request_partitions(self, spec: TopicSpec) -> None:
        """Nothing is refused where it has so many already: somebody else was quicker, or the answer was lost."""
        await self._know_controller()
        with suppress(InvalidPartitionsError):
            await self._client.create_partitions({spec.name: _new_partitions(spec.partitions)})

    async def _alter(self, specs: Sequence[TopicSpec], new: frozenset[str]) -> list[str]:
        names = [spec.name for spec in specs]
        what = f"read the settings of {', '.join(names)}"
        cluster = await self._tried(what, lambda: self._closely(names))
        done = []
        for spec in specs:
            seen = cluster.topics[spec.name]
            changes = comparison.changes(spec, seen, spec.name in new)
            if changes and seen.configs is not None:
                configs = _merged(spec.name, seen.configs, changes)
                what = f"set {', '.join(f'{name}={value}' for name, value in changes.items())} of {spec.name}"
                await self._tried(what, partial(self._request_configs, spec.name, configs), "AlterConfigs")
                values = seen.configs.values
                done += [f"set {key} of {spec.name} to {value} (was {values[key]})" for key, value in changes.items()]
        return done

    async def _request_configs(self, topic: str, configs: dict[str, str]) -> None:
        answers = await self._client.alter_configs([_resource(ConfigResourceType.TOPIC, topic, configs)])
        for entry in (entry for answer in answers for entry in answer.to_object()["resources"]):
            _raise_for(entry["error_code"], topic, entry["error_message"])

    async def _led(self, names: Sequence[str], counts: Mapping[str, int]) -> Cluster:
        """The topics, each with a leader of every partition, and with as many as `counts` says."""
        cluster = await self._metadata(names)
        for name in names:
            seen = cluster.topics.get(name)
            if seen is None or not seen.led or seen.partitions < counts.get(name, 1):
                raise _NotYet(f"{name} has no leader for each partition yet")
        return cluster

    async def _closely(self, names: Sequence[str]) -> Cluster:
        return await self._with_configs(await self._led(names, {}))

    async def _settled(self, specs: Sequence[TopicSpec], new: frozenset[str]) -> None:
        cluster = await self._closely([spec.name for spec in specs])
        for spec in specs:
            if comparison.partitions_to_add(spec, specs, cluster):
                raise _NotYet(f"{spec.name} does not have all its partitions yet")
            if comparison.changes(spec, cluster.topics[spec.name], spec.name in new):
                raise _NotYet(f"{spec.name} does not have its new settings yet")

    # -- asking ----------------------------------------------------------------------------------------------------

    async def _send(self, request: Any, node: int | None = None) -> dict[str, Any]:
        client = self._client._client
        answer = await client.send(client.get_random_node() if node is None else node, request)
        return dict(answer.to_object())

    async def _know_controller(self) -> None:
        # A Kafka that is just starting names no controller, and then the client trips over None.
        client = self._client._client
        silent, cluster = Silent.of(client), client.cluster
        if cluster.controller is None or silent.is_left(cluster.controller.nodeId):
            await client.force_metadata_update()
        if cluster.controller is None:
            raise _NotYet("Kafka names no controller yet")
        if silent.is_left(cluster.controller.nodeId):
            raise _NotYet(f"broker {cluster.controller.nodeId}, which Kafka names for changes, does not answer")

    async def _tried(self, what: str, ask: Callable[[], Awaitable[T]], needs: str = "Describe") -> T:
        """`ask`, again and again while it fails for a passing reason. `what` says what for: "create topic x", and
        `needs` which operation Kafka must allow us for that.
        """
        last: Exception | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    try:
                        return await ask()
                    except (KafkaError, OSError, TimeoutError) as error:
                        last = error
                        if isinstance(error, NotControllerError):  # a Kafka with ZooKeeper: it has moved
                            self._client._client.force_metadata_update()
                        if isinstance(error, KafkaError) and not error.retriable:
                            raise
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError as error:
            raise self._no_success(what, last or error) from (last or error)
        except KafkaError as error:
            if (refused := refusal(error, self._arguments, needs, what)) is not None:
                raise type(refused)(f"cannot {what}: {refused}") from error
            raise BrokerError(f"cannot {what}: {error}. {_remedy(error)}") from error

    def _no_success(self, what: str, last: Exception) -> BrokerError:
        why = f"in {DEADLINE_S:g} s; the last answer was {str(last) or repr(last)}"
        return BrokerError(f"cannot {what} at {self._settings.bootstrap} {why}. Is every broker up? {_NAMED}")


def _remedy(error: KafkaError) -> str:
    if isinstance(error, IncompatibleBrokerVersion):
        return "This broker cannot do that: delete the topic, and let it be created anew, or take an Apache Kafka"
    if isinstance(error, InvalidReplicationFactorError):
        return "ANABRANCH_REPLICATION_FACTOR is what we ask for; -1 is the broker's default"
    return "The broker refuses it: see what it says, and its own log"


def _raise_for(code: int, subject: str, message: str | None = None) -> None:
    kind = for_code(code)
    if kind is not NoError:
        raise kind(subject if kind in FORBIDDEN else f"{subject}: {message or kind.message}")


def _seen(partitions: Sequence[Mapping[str, Any]]) -> Seen:
    replicas = min((len(entry["replicas"]) for entry in partitions), default=0)
    led = bool(partitions) and all(entry["leader"] >= 0 for entry in partitions)
    return Seen(len(partitions), replicas, led)


def _read_configs(entries: Sequence[Mapping[str, Any]]) -> Configs:
    values = {entry["config_names"]: entry["config_value"] for entry in entries}
    overrides = {entry["config_names"] for entry in entries if entry["config_source"] == _OF_THIS_TOPIC}
    return Configs(
        {name: value for name, value in values.items() if value is not None},
        {name: value for name, value in values.items() if name in overrides},
    )


def _merged(topic: str, configs: Configs, changes: Mapping[str, str]) -> dict[str, str]:
    """All settings that the topic must have: altering replaces them all, and what is not named falls back."""
    merged = {**configs.overrides, **changes}
    if secret := [name for name, value in merged.items() if value is None]:
        wanted = ", ".join(f"{name}={value}" for name, value in changes.items())
        raise TopicsError(
            f"{topic}: {', '.join(secret)} would be lost, for the broker does not tell its value: "
            f"set {wanted} with kafka-configs --alter"
        )
    return {name: value for name, value in merged.items() if value is not None}
