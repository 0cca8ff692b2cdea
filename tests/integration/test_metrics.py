"""What the roles measure on a real Kafka, read over HTTP: runs, calls, retries and limits that are known beforehand.

Responsible for: that the numbers are those of the work that was done, from start to drain. Must never: check a name
or a format (tests/unit/test_metrics). Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import PARTITIONS, Fleet, Request, fleet, settings_for
from tests.support.process import free_ports
from tests.support.scrape import Scrape, scrape, status
from tests.support.wait import until

from anabranch import App, Limit, Retryable
from anabranch.prices import Price
from anabranch.testing import Answer, Reply, prompt_of, text, tool_use, turn_of

app = App("measured")
tried: set[str] = set()


@app.tool(queue="io", limit=Limit("api", "50/s"), retries=2)
async def flaky(run: str) -> str:
    """Fails the first time."""
    if run not in tried:
        tried.add(run)
        raise Retryable("not yet")
    return "fine"


@app.tool(queue="io")
async def bad() -> str:
    """Fails."""
    raise ValueError("no")


@app.tool(queue="io", timeout=60)
async def slow() -> str:
    """Does not end by itself."""
    await asyncio.Event().wait()
    return "never"


app.agent("measured", model="scripted", tools=[flaky, bad, slow])


def script(request: Request) -> Answer:
    prompt = prompt_of(request)
    if prompt == "cut off":
        return Reply(content=[text("too lo")], stop_reason="max_tokens")
    if turn_of(request) > 1:
        return "done"
    if prompt == "slow":
        return tool_use("slow", {})
    return [tool_use("flaky", {"run": prompt}), tool_use("bad", {}), tool_use("unheard_of", {})]


@asynccontextmanager
async def measured(kafka: str, namespace: str) -> AsyncIterator[tuple[Fleet, int, int]]:
    """A fleet of one worker each, and their ports."""
    agent_port, tool_port = free_ports(2)
    settings = replace(settings_for(kafka, namespace), prices={"scripted": Price(3.0, 15.0)})
    async with fleet(app, script, settings, agents=0, queues=[]) as running:
        await running.add_agent(settings=running.with_port(agent_port))
        await running.add_tools("io", settings=running.with_port(tool_port))
        await until(lambda: status_is(agent_port, "/readyz", 200), 20, "the agent worker is ready")
        await until(lambda: status_is(tool_port, "/readyz", 200), 20, "the tool worker is ready")
        yield running, agent_port, tool_port


async def status_is(port: int, path: str, wanted: int) -> bool:
    return await status(port, path) == wanted


async def when(port: int, name: str, value: float, **labels: str) -> Scrape:
    """A scrape in which that series has this value."""

    async def scraped() -> Scrape | None:
        found = await scrape(port)
        return found if found(name, **labels) == value else None

    found = await until(scraped, 15, f"{name}{labels} is {value}")
    assert found is not None
    return found


async def test_what_was_done_is_what_is_measured(kafka: str, namespace: str) -> None:
    async with measured(kafka, namespace) as (running, agent_port, tool_port):
        answers = await running.ask_all("measured", ["one", "two", "cut off"])
        assert [answer.status for answer in answers] == ["completed", "completed", "failed"]
        refused = await running.ask("nobody", "hi")
        assert refused.error is not None
        agent = await when(agent_port, "anabranch_requests_noted_total", 1, code="rejected")
        tool = await when(tool_port, "anabranch_tool_slots", 1000, queue="io")
    of = {"agent": "measured"}
    assert agent("anabranch_runs_admitted_total", **of) == 3
    assert agent("anabranch_runs_ended_total", status="completed", code="", **of) == 2
    assert agent("anabranch_runs_ended_total", status="failed", code="max_tokens", **of) == 1
    assert agent.sum("anabranch_run_duration_seconds_count") == agent.sum("anabranch_run_queued_seconds_count") == 3
    assert agent("anabranch_dead_letters_total", role="agent", queue="", reason="bad_request") == 1
    _check_model(agent, [answer.usage for answer in answers])
    assert agent("anabranch_calls_published_total", queue="io") == 4
    answered = {"ok": 2.0, "error": 2.0, "rejected": 2.0}
    for outcome, count in answered.items():
        queue = "" if outcome == "rejected" else "io"
        assert agent("anabranch_calls_answered_total", queue=queue, outcome=outcome) == count, outcome
    assert agent("anabranch_call_turnaround_seconds_count", queue="io") == 4
    assert tool("anabranch_tool_calls_total", tool="flaky", outcome="ok") == 2
    assert tool("anabranch_tool_calls_total", tool="bad", outcome="error") == 2
    assert tool("anabranch_tool_retries_total", tool="flaky") == 2
    assert tool("anabranch_limit_started_total", limit="api") == 4
    assert tool("anabranch_limit_share_rate", limit="api") == pytest.approx(50.0)
    assert tool("anabranch_tool_call_wait_seconds_count", queue="io") == 4


def _check_model(agent: Scrape, usages: list[Any]) -> None:
    """By what the answers themselves say."""
    assert agent("anabranch_model_calls_total", model="scripted", outcome="ok") == 5
    assert agent("anabranch_model_call_duration_seconds_count", model="scripted") == 5
    told = sum(usage.input_tokens for usage in usages), sum(usage.output_tokens for usage in usages)
    counted = [agent("anabranch_model_tokens_total", model="scripted", kind=kind) for kind in ("input", "output")]
    assert tuple(counted) == told
    assert agent("anabranch_model_cost_usd_total", model="scripted") == pytest.approx(
        sum(usage.cost_usd for usage in usages)
    )


async def test_the_gauges_follow_the_work_and_the_drain(kafka: str, namespace: str) -> None:
    async with measured(kafka, namespace) as (running, agent_port, tool_port):
        ours = {"role": "agent", "queue": ""}
        agent = await when(agent_port, "anabranch_ready", 1, **ours)
        log = running.namespace.log
        await when(agent_port, "anabranch_partitions_owned", PARTITIONS, topic=log, **ours)
        assert agent.sum("anabranch_rebalances_total") == 1
        assert agent("anabranch_takeover_duration_seconds_count", **ours) == PARTITIONS
        await running.client.submit("measured", "slow")
        await when(agent_port, "anabranch_runs_open", 1)
        tool = await when(tool_port, "anabranch_tool_slots_used", 1, queue="io")
        assert tool("anabranch_tool_calls_waiting", queue="io") == 0
        worker = running.tools[0]
        worker.ask()
        await until(lambda: status_is(tool_port, "/readyz", 503), what="it is not ready while it drains")
        assert await status(tool_port, "/livez") == 200
        tool = await when(tool_port, "anabranch_draining", 1, role="tool", queue="io")
        assert tool("anabranch_ready", role="tool", queue="io") == 0
        assert agent("anabranch_draining", **ours) == 0
        await when(tool_port, "anabranch_handoffs_total", 1, kind="call", side="given")
        worker.ask()  # it has a minute: hurry
        await when(agent_port, "anabranch_handoffs_total", 1, kind="call", side="waited")
        low = await scrape(agent_port)
        assert low("anabranch_open_bytes") > 0
        assert low("anabranch_committed_low_age_seconds") > 0
