"""What becomes of a record when a producer says that its topic does not exist.

Responsible for: telling a topic that is missing from a broker that is away, against producers that only play their
part. Must never: reach a broker; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka.errors import UnknownTopicOrPartitionError

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.produce.producing import Batch
from anabranch.kafka.sent import Acked

SOON_S = 10.0


class Producer:
    """One that cannot learn of any topic while `answers` is None: then nobody can be asked. With a list of topics the
    broker has answered."""

    answers: list[str] | None

    def __init__(self, arguments: dict[str, Any], idempotent: bool) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def partitions(self, topic: str) -> int | None:
        return None

    async def look_up(self, topic: str, anew: bool = False) -> int:
        if topic not in (type(self).answers or []):
            raise UnknownTopicOrPartitionError
        return 1

    async def is_missing(self, topic: str) -> bool:
        if type(self).answers is None:
            type(self).answers = ["t.agent.log"]  # the broker comes back
            return False
        return True

    def send(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            batch.then(Acked(7, 1234))


async def appended(monkeypatch: pytest.MonkeyPatch, topics: list[str] | None) -> Acked:
    """What becomes of a record for `t.agent.log`."""
    monkeypatch.setattr(Producer, "answers", topics, raising=False)
    monkeypatch.setattr(appender, "Producer", Producer)
    async with KafkaAppender.opened({"bootstrap_servers": "nowhere"}, idempotent=True) as appending:
        return await asyncio.wait_for(appending.append(Outgoing("t.agent.log", b"r", b"{}", partition=0)), SOON_S)


async def test_a_record_outlives_a_broker_that_is_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka calls a topic unknown when it could ask nobody for a while."""
    assert await appended(monkeypatch, None) == Acked(7, 1234)


async def test_a_record_for_a_topic_that_a_broker_does_not_know_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokerError, match="create it with `anabranch topics apply"):
        await appended(monkeypatch, ["t.agent.requests"])
