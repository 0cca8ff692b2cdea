"""A session's time that the brokers do not take: said by the setting's name, with what they take.

Responsible for: the one refusal of a group that a setting of ours causes. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support.log_worlds import KafkaWorld, Member, topic

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError
from anabranch.kafka.connect import KafkaBroker


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
