"""The two lanes on a real Kafka: what is asked for by one while the other is flooded, and cancels meanwhile.

Responsible for: that runs of the interactive lane do not wait behind a backlog of the bulk lane, wherever that is; that
the bulk lane goes on; and that a cancel is heard as soon as its run's request could be.
Must never: bound a time by the clock where the bulk runs that went before say as much.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, Fleet, fleet, settings_for
from tests.support.wait import until

from anabranch import App
from anabranch.client import Run
from anabranch.config import Settings
from anabranch.testing import prompt_of

pytestmark = pytest.mark.timeout(180)

app = App("lanes")
app.agent("echoer", model="scripted")
BACKLOG = 2000


def narrow(kafka: str, namespace: str) -> Settings:
    """Room for a hundred open runs or so, and for few model calls."""
    settings = settings_for(kafka, namespace)
    return replace(settings, agent=replace(settings.agent, model_concurrency=8, max_open_bytes=1_500_000))


class Model:
    """Answers after a while, but for what is asked to wait; and notes what it was asked."""

    def __init__(self, seconds: float) -> None:
        self.asked, self._seconds = list[str](), seconds

    async def __call__(self, request: dict[str, Any]) -> str:
        prompt = prompt_of(request)
        self.asked.append(prompt)
        await asyncio.sleep(600 if prompt == "wait" else self._seconds)
        return prompt


async def submitted(running: Fleet, count: int) -> list[Run]:
    """A backlog of the bulk lane."""
    asking = (running.client.submit("echoer", f"bulk {number}", lane="bulk") for number in range(count))
    return list(await asyncio.gather(*asking))


def answered(runs: Sequence[Run]) -> int:
    return sum(run.done for run in runs)


async def test_ten_runs_do_not_wait_behind_two_thousand_of_the_bulk_lane(kafka: str, namespace: str) -> None:
    async with fleet(app, Model(0.02), narrow(kafka, namespace)) as running:
        bulk = await submitted(running, BACKLOG)
        await until(lambda: answered(bulk) >= 20, ANSWER_S, "the flood has begun")
        before = answered(bulk)
        ten = await running.ask_all("echoer", [f"now {number}" for number in range(10)])
        meanwhile = answered(bulk) - before
        await until(lambda: answered(bulk) >= before + meanwhile + 20, ANSWER_S, "the bulk lane goes on")
    assert [response.output for response in ten] == [f"now {number}" for number in range(10)]
    assert meanwhile <= BACKLOG / 8, "of the runs that had been asked for before"


async def test_a_cancel_is_heard_during_a_flood_as_soon_as_its_request_could_be(kafka: str, namespace: str) -> None:
    model = Model(0.002)
    async with fleet(app, model, narrow(kafka, namespace)) as running:
        client = running.client
        opened = await client.submit("echoer", "wait")
        await until(lambda: "wait" in model.asked, ANSWER_S, "a run is open")
        bulk = await submitted(running, 1000)
        last = await client.submit("echoer", "the last", lane="bulk")
        behind = await submitted(running, 50)
        await last.cancel("not any more")
        assert not last.done, "it waits in Kafka"
        await opened.cancel()
        assert (await asyncio.wait_for(asyncio.ensure_future(opened._response()), ANSWER_S)).status == "cancelled"
        assert answered(bulk) <= 500
        response = await asyncio.wait_for(asyncio.ensure_future(last._response()), ANSWER_S)
        await until(lambda: answered([*bulk, *behind]) >= 1000, ANSWER_S, "the flood has passed")
    assert (response.status, response.error and response.error.message) == ("cancelled", "not any more")
    assert response.turns == 0
    assert "the last" not in model.asked
