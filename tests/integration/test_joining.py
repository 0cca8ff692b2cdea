"""A group that does not take a worker says why: a session's time that the brokers refuse, members that are not ours.

Responsible for: those refusals that access control has no part in. Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from tests.support.log_worlds import KafkaWorld, Member, topic

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError
from anabranch.kafka.connect import KafkaBroker

_consumer: Any = AIOKafkaConsumer


@pytest.mark.parametrize("session_s", [1.0, 80_000.0])
async def test_a_session_that_the_brokers_do_not_take_is_told_by_its_setting(
    kafka: str, namespace: str, session_s: float
) -> None:
    name = await topic(KafkaWorld(kafka, namespace), "t", 1)
    broker = KafkaBroker(KafkaSettings(bootstrap=kafka, session_timeout_s=session_s))
    said = rf"ANABRANCH_SESSION_TIMEOUT_S {session_s:g}: it must lie between their group\.min\.session\.timeout\.ms"
    with pytest.raises(BrokerError, match=said):
        async with broker.subscribe([name], f"{namespace}.g", Member()):
            pass


async def test_members_that_share_out_in_another_way_are_told_of(kafka: str, namespace: str) -> None:
    name, group = await topic(KafkaWorld(kafka, namespace), "t", 1), f"{namespace}.g"
    async with _consumer(name, bootstrap_servers=kafka, group_id=group):
        with pytest.raises(BrokerError, match=rf"group {group} .* they are no workers of ours, or of a version"):
            async with KafkaBroker(KafkaSettings(bootstrap=kafka)).subscribe([name], group, Member()):
                pass
