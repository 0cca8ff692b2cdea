"""The commits of an agent worker, against a subscription that only writes them down.

Responsible for: `agent/committing.py`. Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, cast

from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk

from anabranch.agent.committing import Commits
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.errors import BrokerError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Committed, Place, Subscription

LOG = Place(NAMESPACE.log, 0)
SOON_S = 10.0


class Away:
    """In the place of a subscription: it takes commits, and is away when it is asked for them the first time."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.last: dict[Place, Committed] = {}
        self.asked = 0
        self.told = asyncio.Event()

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        self.last.update(offsets)
        return True

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        self.asked += 1
        if self.asked == 1:
            self._desk.write(b.requested(), b.replied("final"))  # there will be more to commit
            raise BrokerError("cannot read the commits in 30 s")
        self.told.set()
        return {place: self.last[place] for place in places}


async def test_a_kafka_that_goes_away_after_the_first_commit_ends_no_worker() -> None:
    desk = Desk().begin()
    away = Away(desk)
    membership = Membership(cast(Any, None), 60.0, AgentMeters())
    membership.attach(cast(Subscription, away))
    commits = Commits(desk.station, membership, {0: desk.owner}, lambda: frozenset(), 0.001)
    running = asyncio.create_task(commits.run())
    told = asyncio.create_task(away.told.wait())
    async with asyncio.timeout(SOON_S):
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
    assert told.done(), running
    assert away.asked == 2
    running.cancel()
