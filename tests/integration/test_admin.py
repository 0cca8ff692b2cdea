"""Topics and commits on a real Kafka, and what is different on the embedded broker.

Responsible for: that `Admin` creates, alters and reports what it says, and explains what it cannot do.
Must never: test the judgement itself (tests/unit/test_topic_comparison.py).
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata
from tests.support.kafka import Broker
from tests.support.kafka_admin import admin_of
from tests.support.wait import until

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError, TopicsError
from anabranch.kafka import admin as admin_module
from anabranch.kafka.admin import Admin
from anabranch.kafka.seam import Committed, Place
from anabranch.topics import Namespace, TopicSpec

# aiokafka's constructors have no types.
_new_topic: Any = NewTopic
_resource: Any = ConfigResource
_consumer: Any = AIOKafkaConsumer
_metadata: Any = OffsetAndMetadata


@asynccontextmanager
async def admin_at(bootstrap: str, replication_factor: int = -1) -> AsyncIterator[Admin]:
    settings = KafkaSettings(bootstrap=bootstrap, replication_factor=replication_factor)
    async with Admin.opened(settings, {"bootstrap_servers": bootstrap}) as admin:
        yield admin


def specs_of(namespace: str, partitions: int = 3) -> list[TopicSpec]:
    """The namespace's topics, the wide ones cut down, so that a test creates few partitions."""
    specs = Namespace(namespace).specs(["io"], partitions)
    return [TopicSpec(spec.name, min(spec.partitions, 3), spec.settings) for spec in specs]


async def create(bootstrap: str, topic: str, partitions: int, **settings: str) -> None:
    configs = {name.replace("_", "."): value for name, value in settings.items()}
    async with admin_of(bootstrap) as admin:
        answer = await admin.create_topics([_new_topic(topic, partitions, 1, topic_configs=configs)])
        assert [entry[1] for entry in answer.topic_errors] == [0]

        async def is_known() -> bool:
            [found] = await admin.describe_topics([topic])
            return bool(found["error_code"] == 0)

        await until(is_known, what=f"the broker tells of {topic}")


async def settings_of(bootstrap: str, topic: str) -> dict[str, str]:
    async with admin_of(bootstrap) as admin:
        [answer] = await admin.describe_configs([_resource(ConfigResourceType.TOPIC, topic)])
        [resource] = answer.to_object()["resources"]
        return {entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]}


def messages(lacks: Sequence[Any]) -> str:
    return "\n".join(lack.message for lack in lacks)


async def test_a_fresh_namespace_lacks_every_topic_and_after_apply_none(kafka: str, namespace: str) -> None:
    specs = specs_of(namespace)
    async with admin_at(kafka) as admin:
        missing = await admin.lacks(specs)
        assert [(lack.topic, lack.dangerous) for lack in missing] == [(spec.name, True) for spec in specs]
        done = await admin.apply(specs)
        assert f"created {namespace}.agent.log with 3 partitions" in done
        assert len(done) == len(specs)
        assert messages(await admin.lacks(specs)) == ""
        assert await admin.apply(specs) == []
        assert await admin.partitions(f"{namespace}.agent.log") == 3
    assert (await settings_of(kafka, f"{namespace}.agent.log"))["message.timestamp.type"] == "LogAppendTime"


async def test_asking_for_a_missing_topic_names_the_command_and_creates_nothing(kafka: str, namespace: str) -> None:
    async with admin_at(kafka) as admin:
        for _ in range(2):
            with pytest.raises(TopicsError, match=f"{namespace}.agent.log .*anabranch topics apply APP"):
                await admin.partitions(f"{namespace}.agent.log")


async def test_apply_corrects_a_setting_and_keeps_those_of_the_user(kafka: str, namespace: str) -> None:
    log = f"{namespace}.agent.log"
    await create(kafka, log, 3, cleanup_policy="compact", segment_ms="1234567", retention_ms="1000")
    async with admin_at(kafka) as admin:
        found = [lack for lack in await admin.lacks(specs_of(namespace)) if lack.topic == log]
        assert all(lack.dangerous for lack in found)
        assert f"{log}: cleanup.policy is compact and must be delete" in messages(found)
        done = await admin.apply(specs_of(namespace))
        assert f"set cleanup.policy of {log} to delete (was compact)" in done
        assert messages(await admin.lacks(specs_of(namespace))) == ""
    settings = await settings_of(kafka, log)
    assert settings["segment.ms"] == "1234567"
    assert settings["retention.ms"] == "604800000"


async def test_apply_adds_partitions_but_never_to_requests_and_log(kafka: str, namespace: str) -> None:
    names = Namespace(namespace)
    for topic in (names.requests, names.log, names.responses):
        await create(kafka, topic, 2)
    async with admin_at(kafka) as admin:
        assert f"added 1 partition to {names.responses}, which now has 3" in await admin.apply(specs_of(namespace))
        counts = [await admin.partitions(topic) for topic in (names.requests, names.log, names.responses)]
        assert counts == [2, 2, 3]
        assert messages(await admin.lacks(specs_of(namespace))) == ""


async def test_a_missing_log_gets_as_many_partitions_as_the_requests_have(kafka: str, namespace: str) -> None:
    names = Namespace(namespace)
    await create(kafka, names.requests, 5)
    async with admin_at(kafka) as admin:
        assert f"created {names.log} with 5 partitions" in await admin.apply(specs_of(namespace))


async def test_two_that_apply_at_once_both_succeed(kafka: str, namespace: str) -> None:
    specs = specs_of(namespace)
    async with admin_at(kafka) as one, admin_at(kafka) as other:
        first, second = await asyncio.gather(one.apply(specs), other.apply(specs))
        assert messages(await one.lacks(specs)) == ""
    assert sorted(line.split()[1] for line in first + second) == sorted(spec.name for spec in specs)


async def test_a_topic_whose_creation_took_effect_without_an_answer_is_told_of(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, lost = specs_of(namespace), [f"{namespace}.agent.log"]
    request = Admin._request_topic

    async def losing_an_answer(self: Admin, spec: TopicSpec, partitions: int, factor: int) -> None:
        await request(self, spec, partitions, factor)
        if spec.name in lost:
            lost.remove(spec.name)
            raise RequestTimedOutError

    monkeypatch.setattr(Admin, "_request_topic", losing_an_answer)
    async with admin_at(kafka) as admin:
        done = await admin.apply(specs)
    assert lost == []
    assert sorted(line.split()[1] for line in done) == sorted(spec.name for spec in specs)


async def test_partitions_that_were_added_without_an_answer_or_by_another_are_no_error(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, lost = specs_of(namespace), [1]
    more = [replace(spec, partitions=4) if spec.name.endswith(".responses") else spec for spec in specs]
    request = Admin._request_partitions

    async def losing_an_answer(self: Admin, spec: TopicSpec) -> None:
        await request(self, spec)
        if lost:
            lost.pop()
            raise RequestTimedOutError

    monkeypatch.setattr(Admin, "_request_partitions", losing_an_answer)
    async with admin_at(kafka) as admin:
        await admin.apply(specs)
        assert await admin.apply(more) == [f"added 1 partition to {namespace}.agent.responses, which now has 4"]
        assert await admin.partitions(f"{namespace}.agent.responses") == 4
    assert lost == []


async def test_commits_are_read_with_their_metadata(kafka: str, namespace: str) -> None:
    log, group = f"{namespace}.agent.log", f"{namespace}.agents"
    await create(kafka, log, 2)
    async with admin_at(kafka) as admin:
        places = [Place(log, 0), Place(log, 1)]
        assert await admin.committed(group, places) == {}
        async with _consumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False) as consumer:
            consumer.assign([TopicPartition(log, 1)])
            await consumer.commit({TopicPartition(log, 1): _metadata(7, "done=5")})
        assert await admin.committed(group, places) == {Place(log, 1): Committed(7, "done=5")}
        assert await admin.committed(group, []) == {}


async def test_an_answer_that_is_an_error_is_not_taken_for_no_commits(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = f"{namespace}.agent.log"
    await create(kafka, log, 1)
    odd: list[dict[str, Any]] = [{"error_code": 16, "topics": []}, {"error_code": 0, "topics": []}]
    send = Admin._send

    async def send_after_odd_answers(self: Admin, request: Any, node: int | None = None) -> dict[str, Any]:
        return odd.pop() if odd and isinstance(request, OffsetFetchRequest) else await send(self, request, node)

    async with admin_at(kafka) as admin:
        monkeypatch.setattr(Admin, "_send", send_after_odd_answers)
        assert await admin.committed(f"{namespace}.agents", [Place(log, 0)]) == {}
    assert odd == []


async def test_a_factor_that_the_cluster_cannot_give_is_explained(kafka: str, namespace: str) -> None:
    async with admin_at(kafka, replication_factor=100) as admin:
        with pytest.raises(BrokerError, match=r"cannot create topic .*ANABRANCH_REPLICATION_FACTOR"):
            await admin.apply(specs_of(namespace))


async def test_a_kafka_that_is_not_there_is_named_with_the_setting() -> None:
    with pytest.raises(BrokerError, match=r"at 127.0.0.1:1 \(ANABRANCH_BOOTSTRAP\): nobody listens"):
        async with admin_at("127.0.0.1:1"):
            pytest.fail("there is no Kafka at port 1")


async def test_a_kafka_that_goes_away_is_waited_for_until_the_deadline(
    broker: Broker, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = f"{namespace}.agent.log"
    await create(broker.bootstrap, log, 2)
    async with admin_at(broker.bootstrap) as admin:
        await asyncio.to_thread(broker.kill)
        monkeypatch.setattr(admin_module, "DEADLINE_S", 0.5)
        with pytest.raises(BrokerError, match=r"look at the topics .* in 0.5 s; .*ANABRANCH_BOOTSTRAP"):
            await admin.partitions(log)
        monkeypatch.setattr(admin_module, "DEADLINE_S", 30.0)
        asked = asyncio.ensure_future(admin.partitions(log))
        await asyncio.to_thread(broker.start)
        assert await asked == 2


async def test_the_embedded_broker_is_given_its_topics_and_lacks_nothing(tansu: str, namespace: str) -> None:
    specs = specs_of(namespace)
    async with admin_at(tansu) as admin:
        with pytest.raises(TopicsError):
            await admin.partitions(specs[0].name)
        assert len(await admin.lacks(specs)) == len(specs)
        assert len(await admin.apply(specs)) == len(specs)
        assert messages(await admin.lacks(specs)) == ""
        assert await admin.apply(specs) == []
        assert await admin.committed(f"{namespace}.agents", [Place(specs[0].name, 0)]) == {}


async def test_a_setting_that_the_embedded_broker_cannot_change_is_explained(tansu: str, namespace: str) -> None:
    await create(tansu, f"{namespace}.registry", 1, cleanup_policy="delete")
    async with admin_at(tansu) as admin:
        with pytest.raises(BrokerError, match=r"cannot set cleanup.policy=compact .*delete the topic"):
            await admin.apply(specs_of(namespace))
