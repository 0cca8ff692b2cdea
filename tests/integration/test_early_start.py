"""Calls that begin while their model speaks, on a real Kafka: they are used if the reply has them, and never else.

Responsible for: early starts through both roles, a reply that breaks off, and an agent worker that is killed meanwhile.
Every other order of events is in the simulation. Must never: look inside a worker.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, fleet, settings_for, told
from tests.support.process import Command, GuardedProcess, tail
from tests.support.wait import until

from anabranch import App, Call
from anabranch.events import CallResult, Turn
from anabranch.testing import Answer, Reply, last_results, tool_use, turn_of

app = App("early")
began: list[tuple[int, int, float]] = []
"""Number, dispatch and time of each execution."""


@app.tool(queue="io", read_only=True)
async def look(number: int, call: Call) -> str:
    """Looks."""
    began.append((number, call.dispatch, time.time()))
    return f"seen {number}"


app.agent("eager", model="scripted", tools=[look], early_start=True)


@pytest.fixture(autouse=True)
def nothing_has_begun() -> None:
    began.clear()


def calls(*numbers: int, **faults: Any) -> Reply:
    return Reply(content=[tool_use("look", {"number": number}) for number in numbers], chunk_s=0.1, **faults)


async def test_calls_begin_while_the_model_speaks_and_their_results_are_used_once(kafka: str, namespace: str) -> None:
    def asking(request: dict[str, Any]) -> Answer:
        return calls(1, 2, 3) if turn_of(request) == 1 else " | ".join(told(request))

    async with fleet(app, asking, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("eager", "go")
        async with asyncio.timeout(ANSWER_S):
            events = [event async for event in run.events()]
            assert await run.output() == "seen 1 | seen 2 | seen 3"
    (turn,) = (event for event in events if isinstance(event, Turn))
    assert sorted((number, dispatch) for number, dispatch, _ in began) == [(1, 0), (2, 0), (3, 0)]
    assert min(at for *_, at in began) < turn.at
    assert [event.outcome for event in events if isinstance(event, CallResult)] == ["ok"] * 3


async def test_what_began_of_a_reply_that_broke_off_is_of_no_use(kafka: str, namespace: str) -> None:
    replies = iter([calls(1, 2, 3, drop_after=14), calls(2, 4)])

    def breaking(request: dict[str, Any]) -> Answer:
        return " | ".join(told(request)) if last_results(request) else next(replies)

    async with fleet(app, breaking, settings_for(kafka, namespace)) as running:
        response = await running.ask("eager")
    assert response.output == "seen 2 | seen 4"
    executed = [(number, dispatch) for number, dispatch, _ in began]
    assert (1, 0) in executed
    assert sorted(pair for pair in executed if pair[1] == 1) == [(2, 1), (4, 1)]


async def test_an_agent_worker_that_is_killed_leaves_early_calls_that_nobody_uses(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    """As a process, by SIGKILL, when the first call has been executed: the next worker asks the model anew."""
    victim: list[GuardedProcess] = []

    def asking(request: dict[str, Any]) -> Answer:
        if last_results(request):
            return " | ".join(told(request))
        return calls(5, 6) if not victim[0].is_running() else calls(1, 2, 3, hang_after=14)

    async with fleet(app, asking, settings_for(kafka, namespace), agents=0) as running:
        victim.append(worker(kafka, namespace, running.model.base_url, tmp_path / "agent.log"))
        try:
            run = await running.client.submit("eager", "go")
            await until(lambda: bool(began), ANSWER_S, "a call begins early")
            assert not run.done
        finally:
            await asyncio.to_thread(victim[0].kill)
        await running.add_agent()
        async with asyncio.timeout(ANSWER_S):
            assert await run.output() == "seen 5 | seen 6", tail(tmp_path / "agent.log")


def worker(kafka: str, namespace: str, model: str, log: Path) -> GuardedProcess:
    argv = [sys.executable, "-m", "anabranch.cli", "worker", "agent", __file__]
    environment = {
        "ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": model, "ANABRANCH_BOOTSTRAP": kafka,
        "ANABRANCH_NAMESPACE": namespace, "ANABRANCH_PARTITIONS": "4", "ANABRANCH_SESSION_TIMEOUT_S": "6",
    }  # fmt: skip
    return GuardedProcess(Command(argv, environment), log)
