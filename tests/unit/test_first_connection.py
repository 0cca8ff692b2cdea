"""Who waits for a Kafka that does not answer is told so, long before it is given up.

Responsible for: `kafka/admin.py`, around a fake of aiokafka's client. Must never: open a socket. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError
from anabranch.kafka import admin

SAID = ["Kafka at nowhere:9092 has not answered for 0.01 s: still trying"]


class Client:
    """Answers after `answers_s`."""

    answers_s = 0.0

    def __init__(self, **arguments: Any) -> None:
        self._client = self

    def leave_who_is_late(self) -> None:
        pass

    async def start(self) -> None:
        await asyncio.sleep(self.answers_s)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(("answers_s", "said"), [(0.0, []), (0.1, SAID), (60.0, SAID)])
async def test_a_kafka_that_takes_its_time_is_told_of_once(
    answers_s: float, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def unreachable(*_: object) -> BrokerError:
        return BrokerError("unreachable")

    monkeypatch.setattr(Client, "answers_s", answers_s)
    for name, value in {
        "AIOKafkaAdminClient": Client,
        "Silent": lambda client: client,
        "unreachable": unreachable,
    }.items():
        monkeypatch.setattr(admin, name, value)
    monkeypatch.setattr(admin, "QUIET_S", 0.01)
    monkeypatch.setattr(admin, "CONNECT_S", 0.3)
    caplog.set_level(logging.WARNING)
    try:
        async with admin.Admin.opened(KafkaSettings(bootstrap="nowhere:9092"), {}):
            assert answers_s < 60
    except BrokerError:
        assert answers_s == 60
    assert [record.getMessage() for record in caplog.records] == said
