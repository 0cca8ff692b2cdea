"""A lane that has more requests than are held ready is paused, and read on once they are taken up.

Responsible for: the pauses of `AgentWorker`.
Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support.virtual import now, virtually
from tests.unit.test_gaps import NAMES, asked, until, working

from anabranch.agent.admission import waiting
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.memory.read import MemorySubscription
from anabranch.kafka.seam import Place


def test_a_lane_that_was_paused_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "BUFFER", 0)  # one delivery is too many
    paused: list[Place] = []
    pause = MemorySubscription.pause

    def noted(self: MemorySubscription, place: Place) -> None:
        paused.append(place)
        pause(self, place)

    monkeypatch.setattr(MemorySubscription, "pause", noted)

    async def story() -> None:
        cluster = MemoryBroker(NAMES.specs([], 1), clock=now)
        places = [Place(NAMES.responses, number) for number in range(24)]
        async with cluster.appender() as client, working(cluster.another()):
            for number in range(30):
                await client.append(asked(f"r{number}"))
            await until(lambda: sum(len(cluster.records(place)) for place in places) == 30)

    virtually(story)
    assert len(paused) > 1
