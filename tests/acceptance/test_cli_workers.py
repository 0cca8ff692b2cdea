"""The roles as commands: they come up, do their work, drain, hurry, and explain why they cannot start.

Responsible for: `worker`, `topics`, `agents`, `tools`, `workers` on a real Kafka.
Must never: look inside a worker's process.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.cli import Running, Terminal
from tests.support.wait import until

from anabranch.client import Client
from anabranch.config import KafkaSettings, Settings
from anabranch.testing import ScriptedModel
from anabranch.testing.load import load_script


@pytest.fixture
def terminal(tmp_path: Path, kafka: str, namespace: str) -> Terminal:
    return Terminal.at(tmp_path, kafka, namespace)


@asynccontextmanager
async def client_of(terminal: Terminal) -> AsyncIterator[Client]:
    settings = Settings(kafka=KafkaSettings(bootstrap=terminal.env["ANABRANCH_BOOTSTRAP"]))
    async with Client.for_app(settings=settings, namespace=terminal.env["ANABRANCH_NAMESPACE"]) as client:
        yield client


@asynccontextmanager
async def workers_of(terminal: Terminal, *queues: str) -> AsyncIterator[list[Running]]:
    """An agent worker and one tool worker for each queue, all up, with a scripted model."""
    assert (await terminal.run("topics", "apply", "app.py")).status == 0
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ScriptedModel(load_script(str(terminal.folder / "script.py"))))
        env = {**terminal.env, "ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": model.base_url}
        commands = [("worker", "agent", "app.py"), *(("worker", "tool", "app.py", "--queue", q) for q in queues)]
        ours = replace(terminal, env=env)
        workers = [await stack.enter_async_context(ours.start(*command)) for command in commands]
        for worker in workers:
            await worker.says(" is up")
        yield workers


async def test_a_worker_without_topics_says_which_command_creates_them(terminal: Terminal) -> None:
    ended = await terminal.run("worker", "tool", "app.py", "--queue", "io")
    assert ended.status == 1
    assert f"{terminal.env['ANABRANCH_NAMESPACE']}.tool.calls.io is missing" in ended.err
    assert "anabranch topics apply" in ended.err
    assert "Traceback" not in ended.err


async def test_topics_are_checked_created_and_found_right(terminal: Terminal) -> None:
    missing = await terminal.run("topics", "check", "app.py", "--json")
    assert missing.status == 1
    assert all(lack["dangerous"] for lack in missing.json())
    applied = await terminal.run("topics", "apply", "app.py")
    assert applied.status == 0, applied.err
    assert f"created {terminal.env['ANABRANCH_NAMESPACE']}.agent.log with 4 partitions" in applied.out
    right = await terminal.run("topics", "check", "app.py")
    assert right.status == 0, right.out
    again = await terminal.run("topics", "apply", "app.py", "--json")
    assert again.json()["done"] == []


async def test_workers_serve_are_listed_and_drain_on_sigterm(terminal: Terminal) -> None:
    async with workers_of(terminal, "io") as workers:
        async with client_of(terminal) as client:
            run = await client.submit("caller", "add")
            assert await asyncio.wait_for(run.output(), 30) == "add is done"
        agents, tools, alive = [(await terminal.run(what, "--json")).json() for what in ("agents", "tools", "workers")]
        assert [agent["name"] for agent in agents] == ["caller"]
        assert [tool["name"] for tool in tools] == ["add", "wait", "hang"]  # by queue
        assert sorted((worker["role"], worker["queue"], worker["alive"]) for worker in alive) == [
            ("agent", None, True),
            ("tool", "io", True),
        ]
        for worker in workers:
            worker.send(signal.SIGTERM)
        for worker in workers:
            ended = await worker.ends(15)
            assert ended.status == 0, ended.err
        gone = await terminal.run("workers")
        assert (gone.status, gone.out) == (0, "")
        assert "no worker is registered" in gone.err


async def test_a_second_sigterm_ends_a_worker_quickly(terminal: Terminal) -> None:
    async with workers_of(terminal, "slow") as [_, slow], client_of(terminal) as client:
        await _occupy(client, terminal, "wait")
        slow.send(signal.SIGTERM)
        await slow.says("draining: 1 in flight")
        asked = time.monotonic()
        slow.send(signal.SIGTERM)
        ended = await slow.ends()
        assert time.monotonic() - asked < 8
        assert ended.status == 0, ended.err
        assert "1 tool call did not finish in time" in ended.err


async def test_a_thread_that_hangs_does_not_keep_a_drained_worker_alive(terminal: Terminal) -> None:
    terminal = replace(terminal, env={**terminal.env, "ANABRANCH_DRAIN_S": "0.5"})
    async with workers_of(terminal, "stuck") as [_, stuck], client_of(terminal) as client:
        await _occupy(client, terminal, "hang")
        stuck.send(signal.SIGTERM)
        ended = await stuck.ends(15)
        assert ended.status == 0, ended.err
        assert "1 tool call did not finish in time" in ended.err


async def _occupy(client: Client, terminal: Terminal, tool: str) -> None:
    """Give a tool worker a call that does not end, and wait until it is at it."""
    await client.submit("caller", tool)

    async def is_busy() -> bool:
        found = (await terminal.run("workers", "--json")).json()
        return any(worker["role"] == "tool" and worker["running"] == 1 for worker in found)

    await until(is_busy, 20, f"the worker runs {tool}")
