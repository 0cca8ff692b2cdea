"""What a member of a group asks Kafka for until it has it, and how often it says that it does not.

Responsible for: `Membership.end_of`, in virtual time. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, cast

from tests.support.virtual import now, virtually

from anabranch.cli.loglines import Repeats
from anabranch.errors import BrokerError
from anabranch.kafka.membership import Membership
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Place, Subscription

LOG = "t.agent.log"


class Away:
    """A subscription to a Kafka that answers from `until_s` on."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        if now() < self.until_s:
            raise BrokerError("it does not answer")
        return dict.fromkeys(places, 7)


def member_of(subscription: Away) -> Membership:
    membership = Membership(cast(Any, None), 1.0, RoleMeters())
    membership.attach(cast(Subscription, subscription))
    return membership


class Screen(logging.Handler):
    """Counts what a command shows."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0
        self.addFilter(Repeats(now))

    def emit(self, record: logging.LogRecord) -> None:
        self.shown += 1


def test_the_end_of_a_log_is_asked_for_until_kafka_is_back_and_that_is_said_now_and_then() -> None:
    async def asking() -> list[int | None]:
        membership = member_of(Away(25.0))
        return await asyncio.gather(*(membership.end_of(Place(LOG, number), lambda: True) for number in range(24)))

    logger, screen = logging.getLogger("anabranch"), Screen()
    logger.addHandler(screen)
    try:
        assert virtually(asking) == [7] * 24
    finally:
        logger.removeHandler(screen)
    assert screen.shown == 3


def test_nobody_asks_any_more_for_what_is_no_longer_wanted() -> None:
    async def asking() -> int | None:
        return await member_of(Away(1e9)).end_of(Place(LOG, 0), lambda: now() < 60)

    assert virtually(asking) is None
