"""The two roles on a real Kafka: any number, in any order, of any App, coming and going under load.

Responsible for: that work spreads, that nothing is lost when a worker is added or stopped, and that a role needs only
what is its own. Must never: kill (tests/acceptance/test_kills).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from tests.support.apps.adding import app, check, inputs, script
from tests.support.fleet import ANSWER_S, Fleet, fleet, settings_for
from tests.support.raw import read_until
from tests.support.wait import until

from anabranch import App
from anabranch.agent_role import serve_agent
from anabranch.config import AnthropicSettings
from anabranch.errors import ConfigError, TopicsError
from anabranch.messages import RunResponse
from anabranch.runtime import Shutdown
from anabranch.testing import Answer, last_results, tool_use, turn_of
from anabranch.tool_role import serve_tools

tools_app = App("tools-of-another-team", namespace="shared")
agents_app = App("agents-of-one-team", namespace="shared")


@tools_app.tool(queue="io")
async def shout(word: str) -> str:
    """Says it louder."""
    return word.upper()


agents_app.agent("shouter", model="scripted", tools=["shout"])
RUNS = 60


async def load(running: Fleet, count: int = RUNS) -> list[RunResponse]:
    return await running.ask_all("adder", inputs(count))


async def workers_of(running: Fleet, kind: str) -> set[str]:
    """Who appended the events of a kind."""

    def has_all(found: list[Any]) -> bool:
        outcomes = [dict(record.headers).get("ce_outcome") for record in found]
        return outcomes.count(b"final") >= RUNS

    records = await read_until(running.bootstrap, running.namespace.log, has_all)
    heads = [dict(record.headers) for record in records]
    return {head["ce_source"].decode() for head in heads if head["ce_type"] == kind.encode()}


async def test_runs_spread_over_agent_workers_and_calls_over_tool_workers(kafka: str, namespace: str) -> None:
    queues = ["io", "io", "sums"]
    async with fleet(app, script, settings_for(kafka, namespace), agents=2, queues=queues) as running:
        check(await load(running))
        assert len(await workers_of(running, "model.replied")) == 2
        assert len(await workers_of(running, "tool.returned")) == 3


@pytest.mark.parametrize("order", ["tools first", "agents first", "requests first"])
async def test_the_roles_may_be_started_in_any_order(kafka: str, namespace: str, order: str) -> None:
    settings = settings_for(kafka, namespace)
    async with fleet(app, script, settings, agents=0, queues=[]) as running:
        loading = asyncio.create_task(load(running, 5)) if order == "requests first" else None
        if order != "agents first":
            await running.add_tools("io")
            await running.add_tools("sums")
        await running.add_agent()
        if order == "agents first":
            # Agents know the tools of their own App; calls wait in Kafka for a worker that runs them.
            loading = asyncio.create_task(load(running, 5))
            await until(lambda: running.model.calls >= 5, ANSWER_S, "the model has asked for calls")
            await running.add_tools("io")
            await running.add_tools("sums")
        check(await (loading or load(running, 5)))


async def test_an_agent_may_use_a_tool_that_only_another_app_has(kafka: str, namespace: str) -> None:
    """By the registry: neither of the two imports the other's code."""

    def shouting(request: dict[str, Any]) -> Answer:
        if turn_of(request) == 1:
            return tool_use("shout", {"word": "hello"})
        return str(next(iter(last_results(request).values()))["content"])

    settings = settings_for(kafka, namespace)
    async with fleet(agents_app, shouting, settings, queues=[], also=[tools_app]) as running:
        before = await running.ask("shouter")
        assert before.output is not None
        assert re.search("not available|no tool", before.output), "nobody has registered it yet"
        await running.add_tools("io", tools_app)
        await until(lambda: _has_shouted(running), ANSWER_S, "the agent worker has read the registry")
        request = running.request
    assert [tool["name"] for tool in request["tools"]] == ["shout"]
    assert request["tools"][0]["description"] == "Says it louder."


async def _has_shouted(running: Fleet) -> bool:
    response = await running.ask("shouter")
    return response.output == "HELLO"


async def test_a_tool_worker_needs_no_key_and_an_agent_worker_says_that_it_needs_one(
    kafka: str, namespace: str
) -> None:
    async with fleet(app, script, settings_for(kafka, namespace), agents=0, queues=[]) as running:
        running.settings, with_key = replace(running.settings, anthropic=AnthropicSettings()), running.settings
        await running.add_tools("io")
        await running.add_tools("sums")
        with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
            await serve_agent(app, running.settings, Shutdown())
        running.settings = with_key
        await running.add_agent()
        check(await load(running, 3))


async def test_a_worker_refuses_to_start_without_topics_or_for_a_queue_that_it_has_not(
    kafka: str, namespace: str
) -> None:
    settings = replace(settings_for(kafka, namespace), anthropic=AnthropicSettings(api_key="test"))
    with pytest.raises(TopicsError, match="topics apply"):
        await serve_tools(app, "io", settings, Shutdown())
    with pytest.raises(TopicsError, match="topics apply"):
        await serve_agent(app, settings, Shutdown())
    with pytest.raises(ConfigError, match="io, sums"):
        await serve_tools(app, "oi", settings, Shutdown())


async def test_adding_workers_under_load_loses_nothing(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        loading = asyncio.create_task(load(running, 200))
        await until(lambda: running.model.calls > 30, ANSWER_S, "the load is on")
        await running.add_agent()
        await running.add_tools("io")
        await running.add_tools("sums")
        await running.add_agent()
        check(await loading)
        check(await load(running))


async def test_stopping_workers_under_load_loses_nothing(kafka: str, namespace: str) -> None:
    queues = ["io", "io", "sums", "sums"]
    async with fleet(app, script, settings_for(kafka, namespace), agents=2, queues=queues) as running:
        loading = asyncio.create_task(load(running, 200))
        await until(lambda: running.model.calls > 30, ANSWER_S, "the load is on")
        await running.stop(running.tools[0])
        await running.stop(running.agents[0])
        await running.stop(running.tools[2])
        check(await loading)


async def test_the_last_workers_may_stop_and_others_go_on_with_what_they_left(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        loading = asyncio.create_task(load(running, 100))
        await until(lambda: running.model.calls > 30, ANSWER_S, "the load is on")
        for worker in [*running.agents, *running.tools]:
            await running.stop(worker)
        await running.add_agent()
        await running.add_tools("io")
        await running.add_tools("sums")
        check(await loading)


async def test_who_is_alive_is_in_the_registry_and_who_stopped_is_not(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await until(lambda: _alive(running, 3), ANSWER_S, "three workers are in the registry")
        await running.stop(running.tools[0])
        await until(lambda: _alive(running, 2), ANSWER_S, "one has left it")


async def _alive(running: Fleet, count: int) -> bool:
    found = await read_until(running.bootstrap, running.namespace.registry, lambda records: len(records) >= 3)
    last = {record.key: record.value for record in found if record.key.startswith(b"worker/")}
    return sum(value is not None for value in last.values()) == count
