"""What becomes of a record when a producer says that its topic does not exist.

Responsible for: telling a topic that is missing from a broker that is away, against producers that only play their
part. Must never: reach a broker; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.sent import Acked

SOON_S = 10.0


class Producer:
    """One that cannot learn of any topic while `answers` is None: then nobody can be asked. With a list of topics the
    broker has answered."""

    answers: list[str] | None

    def __init__(self, **_: Any) -> None:
        self.client = self

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def fetch_all_metadata(self) -> Any:
        topics = type(self).answers
        if topics is None:
            type(self).answers = ["t.agent.log"]  # the broker comes back
            raise KafkaError("Unable to get cluster metadata over all known brokers")
        return SimpleNamespace(partitions_for_topic=lambda topic: {0} if topic in topics else None)

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **_: object())

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        if topic not in (type(self).answers or []):
            raise UnknownTopicOrPartitionError
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent.set_result(SimpleNamespace(offset=7, timestamp=1234, timestamp_type=1))
        return sent


async def appended(monkeypatch: pytest.MonkeyPatch, topics: list[str] | None) -> Acked:
    """What becomes of a record for `t.agent.log`."""
    monkeypatch.setattr(Producer, "answers", topics, raising=False)
    monkeypatch.setattr(appender, "AIOKafkaProducer", Producer)
    async with KafkaAppender.opened({"bootstrap_servers": "nowhere"}, idempotent=True) as appending:
        return await asyncio.wait_for(appending.append(Outgoing("t.agent.log", b"r", b"{}", partition=0)), SOON_S)


async def test_a_record_outlives_a_broker_that_is_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka calls a topic unknown when it could ask nobody for a while."""
    assert await appended(monkeypatch, None) == Acked(7, 1234)


async def test_a_record_for_a_topic_that_a_broker_does_not_know_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokerError, match="create it with `anabranch topics apply"):
        await appended(monkeypatch, ["t.agent.requests"])
