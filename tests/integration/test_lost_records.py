"""Topics that are deleted and created anew under a worker: who has read what is gone ends, says so, and begins anew.

Responsible for: that nothing is served wrongly or not at all without a word, and that no request is paid for again.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.deaths import apart, death_of
from tests.support.fleet import ANSWER_S, Fleet, fleet, settings_for
from tests.support.kafka_admin import admin_of, drop_topics
from tests.support.wait import until

from anabranch import App
from anabranch.agent_role import serve_agent
from anabranch.config import Settings
from anabranch.errors import BrokerError
from anabranch.kafka import pump
from anabranch.roles import broker_of, topic_specs
from anabranch.runtime import Shutdown
from anabranch.testing import Answer, prompt_of, tool_use, turn_of
from anabranch.tool_role import serve_tools

pytestmark = pytest.mark.timeout(120)

RUNS = 40
Serve = Callable[[Settings, Shutdown], Coroutine[Any, Any, int]]

app = App("lost")


@app.tool(queue="io")
async def near() -> str:
    """Answers."""
    return "near"


app.agent("caller", model="scripted", tools=[near])


@pytest.fixture(autouse=True)
def _slow_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a topic is gone is another matter: this is of those that are there again."""
    monkeypatch.setattr(pump, "GONE_S", 60.0)


def script(request: dict[str, Any]) -> Answer:
    return tool_use("near", {}) if turn_of(request) == 1 else f"done with {prompt_of(request)}"


async def anew(running: Fleet, topic: str) -> None:
    """Delete a topic, and create it as soon as that is done: sooner than its readers notice that it is gone."""
    await asyncio.to_thread(drop_topics, running.bootstrap, topic)

    async def made() -> bool:
        try:
            done = await broker_of(running.settings).apply(topic_specs(app, running.settings))
        except BrokerError:  # it is being deleted still
            return False
        return any(topic in line for line in done)

    await until(made, ANSWER_S, f"{topic} to be created")


async def all_are_committed(running: Fleet) -> None:
    """Wait until the group has committed that it has taken up every request."""

    async def are_committed() -> bool:
        async with admin_of(running.bootstrap) as admin:
            offsets = await admin.list_consumer_group_offsets(running.namespace.agents_group)
        requests = running.namespace.requests
        return bool(sum(at.offset for where, at in offsets.items() if where.topic == requests) == RUNS)

    await until(are_committed, ANSWER_S, "a commit of all requests")


async def answers(running: Fleet, name: str) -> None:
    names = [f"{name} {number}" for number in range(RUNS)]
    assert [answer.output for answer in await running.ask_all("caller", names)] == [
        f"done with {name}" for name in names
    ]


@asynccontextmanager
async def going_on(running: Fleet, start: Serve, topic: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """A worker serves; then its topic is created anew, and in the end there is one that has noticed it.

    It is the same one if the group has divided its partitions meanwhile, so that it has looked at once.
    """
    shutdown = Shutdown()
    async with apart(start(running.settings, shutdown), shutdown) as first:
        await answers(running, "early")
        await all_are_committed(running)
        await anew(running, topic)
        await until(lambda: first.done() or f"{topic}/" in caplog.text, ANSWER_S, "somebody to notice")
        if first.done():
            assert "ends before that now: records are lost" in await death_of(first)
        next_one = Shutdown()
        async with apart(start(running.settings, next_one), next_one) as second:
            yield
            assert not second.done()


async def test_a_log_that_was_created_anew_is_served_and_nothing_is_paid_for_again(
    kafka: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    def start(settings: Settings, shutdown: Shutdown) -> Coroutine[Any, Any, int]:
        return serve_agent(app, settings, shutdown)

    async with (
        fleet(app, script, settings_for(kafka, namespace), agents=0) as running,
        going_on(running, start, running.namespace.log, caplog),
    ):
        paid = running.model.calls
        await answers(running, "late")
        assert running.model.calls == paid + 2 * RUNS


async def test_a_queue_that_was_created_anew_is_served(
    kafka: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    def start(settings: Settings, shutdown: Shutdown) -> Coroutine[Any, Any, int]:
        return serve_tools(app, "io", settings, shutdown)

    async with (
        fleet(app, script, settings_for(kafka, namespace), queues=()) as running,
        going_on(running, start, running.namespace.calls("io"), caplog),
    ):
        await answers(running, "late")
