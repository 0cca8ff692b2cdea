"""Partitions that are added to a queue's topic are used by the workers that are there.

Responsible for: calls with and without a limit that go to new partitions, on a real Kafka. Must never: wait as long as
workers do in earnest before they count again. Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from tests.support.fleet import fleet, settings_for
from tests.support.kafka_admin import admin_of
from tests.support.raw import read_until

from anabranch import App, Limit
from anabranch.agent import placing
from anabranch.kafka import appender, pump
from anabranch.kafka.produce import producing
from anabranch.testing import Answer, tool_use, turn_of

FEW, MORE = 24, 36
CALLS = 60

app = App("growing")
limit = Limit("api", "2000/s")


@app.tool(queue="q", limit=limit)
async def ask(n: int) -> str:
    """Uses an API."""
    return f"asked {n}"


@app.tool(queue="q")
async def look(n: int) -> str:
    """Uses none."""
    return f"looked {n}"


app.agent("curious", model="scripted", tools=["ask", "look"])


def script(request: dict[str, Any]) -> Answer:
    if turn_of(request) > 1:
        return "done"
    return [tool_use(("ask", "look")[n % 2], {"n": n}) for n in range(CALLS)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (pump, "COUNT_AGAIN_S"),
        (appender, "COUNT_AGAIN_S"),
        (producing, "METADATA_S"),
        (placing, "AGAIN_S"),
    ):
        monkeypatch.setattr(module, name, 1.0)


async def test_added_partitions_are_used_without_a_restart(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await running.add_tools("q")
        topic = running.namespace.calls("q")
        assert (await running.ask("curious")).calls.failed == 0
        async with admin_of(kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(MORE)})
        new: set[int] = set()
        sent = CALLS

        async def is_everywhere() -> bool:
            nonlocal sent
            response = await running.ask("curious")
            assert (response.status, response.calls.failed) == ("completed", 0)
            sent += CALLS
            records = await read_until(kafka, topic, lambda found: len(found) >= sent)
            new.update(record.partition for record in records if record.partition >= FEW)
            return len(new) == MORE - FEW

        while not await is_everywhere():
            pass
