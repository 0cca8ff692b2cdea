"""Hand-off on a real Kafka: workers that come and go under load repeat no model call and no tool call.

Responsible for: the promise of DESIGN, "a rebalance, a deploy or a scale-out", for both roles.
Must never: kill (tests/acceptance/test_kills).
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from tests.support.fleet import by_turn, fleet, settings_for, told
from tests.support.wait import until

from anabranch import App, Call
from anabranch.testing import Answer, Reply, prompt_of, text, tool_use, turn_of

RUNS = 40
executed: Counter[str] = Counter()
app = App("handing-over")


@app.tool(queue="slow")
async def slow(run: int, number: int, call: Call) -> str:
    """Takes its time."""
    executed[call.id] += 1
    await asyncio.sleep(0.4)
    return f"{run}.{number}"


@app.tool(queue="once", delivery="at_most_once")
async def once(run: int, call: Call) -> str:
    """Must not be repeated."""
    executed[call.id] += 1
    await asyncio.sleep(0.3)
    return f"once {run}"


app.agent("walker", model="scripted", tools=["slow", "once"])


def script(request: dict[str, Any]) -> Answer:
    number = int(re.findall(r"\d+", str(request["messages"][0]["content"]))[0])
    turn = turn_of(request)
    if turn < 4:
        calls = [tool_use("slow", {"run": number, "number": n}) for n in range(2)]
        return Reply(content=[*calls, tool_use("once", {"run": number})], latency_s=0.3)
    return Reply(content=[text(f"done {number}")], latency_s=0.3)


async def test_workers_that_come_and_go_repeat_no_model_call_and_no_tool_call(kafka: str, namespace: str) -> None:
    executed.clear()
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        runs = [await running.client.submit("walker", f"run {n}") for n in range(RUNS)]
        await until(lambda: running.model.calls > RUNS, 20, "the first replies")
        first_agent, first_tools = running.agents[0], list(running.tools)
        await running.add_agent()
        await running.add_tools("slow")
        await running.add_tools("once")
        await running.stop(first_agent)
        for shutdown in first_tools:
            await running.stop(shutdown)
        answers = await asyncio.wait_for(asyncio.gather(*runs), 60)
        assert {answer.status for answer in answers} == {"completed"}
        assert [answer.calls.failed for answer in answers] == [0] * RUNS
        assert running.model.calls == RUNS * 4, "a model call was repeated"
        assert set(executed.values()) == {1}, "a tool call was repeated"
        assert len(executed) == RUNS * 9


async def test_an_at_most_once_tool_runs_and_answers(kafka: str, namespace: str) -> None:
    executed.clear()
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        answer = await running.ask("walker", "run 1")
        assert (answer.status, answer.calls.total, answer.calls.failed) == ("completed", 9, 0)
        assert set(executed.values()) == {1}


async def test_a_model_call_that_a_rolling_deploy_interrupts_is_made_again_at_once(kafka: str, namespace: str) -> None:
    """The new worker is up first, so calls are handed off for long; then the old one stops, and its drain is short."""
    asked: Counter[str] = Counter()

    def slow_at_first(request: dict[str, Any]) -> Answer:
        asked[prompt_of(request)] += 1
        return Reply(content=[text("done")], latency_s=60.0 if asked[prompt_of(request)] == 1 else 0.0)

    settings = settings_for(kafka, namespace)
    settings = replace(settings, worker=replace(settings.worker, drain_s=1.0))
    async with fleet(app, slow_at_first, settings) as running:
        runs = [await running.client.submit("walker", f"run {n}") for n in range(16)]
        await until(lambda: len(asked) == len(runs), 20, "the first calls")
        await running.add_agent()
        assert await running.stop(running.agents[0]) == len(runs), "all are abandoned"
        answers = await asyncio.wait_for(asyncio.gather(*runs), settings.agent.hand_off_s / 4)
        assert {answer.status for answer in answers} == {"completed"}
        assert set(asked.values()) == {2}


async def test_a_tool_call_that_a_rolling_deploy_interrupts_is_made_again_at_once(kafka: str, namespace: str) -> None:
    began: Counter[str] = Counter()
    late_app = App("late")

    @late_app.tool(queue="late", timeout=100)
    async def late(call: Call) -> int:
        """Takes long, and no time when it is asked again."""
        began[call.id] += 1
        await asyncio.sleep(60.0 if began[call.id] == 1 else 0.0)
        return call.dispatch

    late_app.agent("walker", model="scripted", tools=[late])
    settings = settings_for(kafka, namespace)
    settings = replace(settings, worker=replace(settings.worker, drain_s=1.0))
    async with fleet(late_app, by_turn([tool_use("late", {})] * 16, "done"), settings) as running:
        run = await running.client.submit("walker", "go")
        await until(lambda: len(began) == 16, 20, "the calls")
        await running.add_tools("late")
        assert await running.stop(running.tools[0]) == 16, "all are abandoned"
        answer = await asyncio.wait_for(run, 20)
        assert (answer.status, answer.calls.total, answer.calls.failed) == ("completed", 16, 0)
        assert told(running.request) == ["2"] * 16, "the second dispatch"
