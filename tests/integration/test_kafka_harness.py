"""The harness itself: a real Kafka is there, can be broken and mended, and outlives nobody.

Responsible for: the claims on which all other integration tests rest.
Must never: test Anabranch.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from tests.support.kafka import BOOTSTRAP_VARIABLE, Broker
from tests.support.kafka_admin import admin_of
from tests.support.kafka_sources import ROOT, KafkaUnavailable, find_source
from tests.support.process import is_listening
from tests.support.wait import until

# Skips where there is nothing to start a Kafka with, even if one that is running already was given to us.
needs_own_kafka = pytest.mark.usefixtures("broker")
_namespaces_seen: set[str] = set()


# aiokafka's constructors have no types.
_new_topic: Any = NewTopic
_producer: Any = AIOKafkaProducer
_consumer: Any = AIOKafkaConsumer


async def create_topic(bootstrap: str, topic: str) -> None:
    async with admin_of(bootstrap) as admin:
        answer = await admin.create_topics([_new_topic(topic, num_partitions=3, replication_factor=1)])
        assert [error[1] for error in answer.topic_errors] == [0]


async def send(bootstrap: str, topic: str, value: bytes, idempotent: bool = True) -> None:
    async with _producer(bootstrap_servers=bootstrap, enable_idempotence=idempotent) as producer:
        await producer.send_and_wait(topic, value, key=b"key")


async def read_one(bootstrap: str, topic: str) -> bytes:
    async with _consumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        record = await asyncio.wait_for(consumer.getone(), 20)
        return bytes(record.value)


async def test_a_record_goes_through_the_sessions_kafka_and_back(kafka: str, namespace: str) -> None:
    await create_topic(kafka, f"{namespace}.greetings")
    await send(kafka, f"{namespace}.greetings", b"hello")
    assert await read_one(kafka, f"{namespace}.greetings") == b"hello"


async def test_a_topic_is_not_created_by_asking_for_it(kafka: str, namespace: str) -> None:
    async with admin_of(kafka) as admin:
        await admin.describe_topics([f"{namespace}.unasked"])
        assert f"{namespace}.unasked" not in await admin.list_topics()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_namespace_of_its_own_and_leaves_no_topic(kafka: str, namespace: str, turn: int) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,40}", namespace)
    assert namespace not in _namespaces_seen
    async with admin_of(kafka) as admin:

        async def all_are_gone() -> bool:
            return not [topic for topic in await admin.list_topics() if topic.split(".")[0] in _namespaces_seen]

        await until(all_are_gone, 10, "the topics of the tests before to be gone")  # a broker hears of it later
    _namespaces_seen.add(namespace)
    await create_topic(kafka, f"{namespace}.turn-{turn}")


async def test_a_killed_broker_refuses_and_a_restarted_one_has_its_records(broker: Broker, namespace: str) -> None:
    topic = f"{namespace}.kept"
    await create_topic(broker.bootstrap, topic)
    await send(broker.bootstrap, topic, b"kept")
    await asyncio.to_thread(broker.kill)
    assert not broker.is_running()
    assert not is_listening(port_of(broker.bootstrap))
    await asyncio.to_thread(broker.start)
    assert await read_one(broker.bootstrap, topic) == b"kept"


async def test_a_broker_stops_in_order_and_starts_again(broker: Broker) -> None:
    await asyncio.to_thread(broker.stop)
    assert not broker.is_running()
    assert "kafka-shutdown-hook" in broker.log_tail()
    await asyncio.to_thread(broker.start)
    assert broker.is_running()


async def test_the_embedded_broker_carries_a_record(tansu: str, namespace: str) -> None:
    await create_topic(tansu, f"{namespace}.greetings")
    await send(tansu, f"{namespace}.greetings", b"hello", idempotent=False)  # it has no idempotent producers
    assert await read_one(tansu, f"{namespace}.greetings") == b"hello"


@needs_own_kafka
async def test_a_kafka_whose_owner_is_killed_ends_by_itself(tmp_path: Path) -> None:
    with launcher(tmp_path) as process:
        port = port_of(announced(process))
        process.kill()
        await until(lambda: not is_listening(port), 20, "the broker of the killed owner is gone")
    await until(lambda: not list(tmp_path.iterdir()), 20, "its folder is gone")


@needs_own_kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_launcher_ends_in_order_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with launcher(tmp_path) as process:
        port = port_of(announced(process))
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert not is_listening(port)
    assert list(tmp_path.iterdir()) == []


async def test_the_launcher_serves_an_external_kafka_until_its_input_ends(kafka: str, tmp_path: Path) -> None:
    with launcher(tmp_path, {BOOTSTRAP_VARIABLE: kafka}) as process:
        assert announced(process) == kafka
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 20) == 0


def test_a_machine_without_kafka_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match=r"Maven(?s:.*)Docker(?s:.*)ANABRANCH_TEST_BOOTSTRAP") as caught:
        find_source()
    assert "java: not found; mvn: not found; docker: not found" in str(caught.value)


def test_an_old_java_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    (tmp_path / "mvn").write_text("#!/bin/sh\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match="java: is 11, older than 17"):
        find_source()


async def test_waiting_gives_the_value_of_a_plain_or_an_async_condition() -> None:
    values = iter([0, 0, 7])
    assert await until(lambda: next(values), 5, "the third value") == 7

    async def condition() -> str:
        return "there"

    assert await until(condition) == "there"


async def test_waiting_in_vain_says_for_what_and_what_was_there_instead() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: a worker \(last value: 0\)"):
        await until(lambda: 0, 0.05, "a worker")


async def test_waiting_ends_at_its_deadline_even_if_the_condition_hangs() -> None:
    with pytest.raises(AssertionError, match="a hanging condition"):
        await until(asyncio.Event().wait, 0.05, "a hanging condition")


@contextmanager
def launcher(scratch: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """`python -m tests.support.kafka` with `scratch` as its folder for temporary files."""
    inherited = {name: value for name, value in os.environ.items() if name != BOOTSTRAP_VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.kafka"],
        cwd=ROOT,
        env={**inherited, "TMPDIR": str(scratch), **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def announced(process: subprocess.Popen[str]) -> str:
    """The bootstrap that the launcher prints; the test's own time limit bounds the wait."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line.startswith("bootstrap="), line
    return line.removeprefix("bootstrap=")


def port_of(bootstrap: str) -> int:
    return int(bootstrap.rsplit(":", 1)[1])
