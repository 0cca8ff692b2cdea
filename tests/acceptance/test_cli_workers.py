"""The roles as commands: they come up, do their work, drain, hurry, and explain why they cannot start.

Responsible for: `worker`, `topics`, `agents`, `tools`, `workers` on a real Kafka.
Must never: look inside a worker's process.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.cli import Running, Terminal
from tests.support.process import free_ports
from tests.support.scrape import scrape, status
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
async def workers_of(terminal: Terminal, *queues: str, ports: Sequence[int] = ()) -> AsyncIterator[list[Running]]:
    """An agent worker and one tool worker for each queue, all up, with a scripted model, and with these ports."""
    assert (await terminal.run("topics", "apply", "app.py")).status == 0
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ScriptedModel(load_script(str(terminal.folder / "script.py"))))
        env = {**terminal.env, "ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": model.base_url}
        commands = [("worker", "agent", "app.py"), *(("worker", "tool", "app.py", "--queue", q) for q in queues)]
        ours = [
            replace(terminal, env={**env, "ANABRANCH_HTTP_PORT": str(port)}) for port in ports or [0] * len(commands)
        ]
        starts = [each.start(*command) for each, command in zip(ours, commands, strict=True)]
        workers = [await stack.enter_async_context(start) for start in starts]
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
        assert "no living worker is registered" in gone.err


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
        assert "1 tool call did not finish in time; of each: another worker executes it again" in ended.err


async def test_a_thread_that_hangs_does_not_keep_a_drained_worker_alive(terminal: Terminal) -> None:
    terminal = replace(terminal, env={**terminal.env, "ANABRANCH_DRAIN_S": "0.5"})
    async with workers_of(terminal, "stuck") as [_, stuck], client_of(terminal) as client:
        await _occupy(client, terminal, "hang")
        stuck.send(signal.SIGTERM)
        ended = await stuck.ends(15)
        assert ended.status == 0, ended.err
        assert "1 tool call did not finish in time; of each: another worker executes it again" in ended.err


async def _occupy(client: Client, terminal: Terminal, tool: str) -> None:
    """Give a tool worker a call that does not end, and wait until it is at it."""
    await client.submit("caller", tool)

    async def is_busy() -> bool:
        found = (await terminal.run("workers", "--json")).json()
        return any(worker["role"] == "tool" and worker["running"] == 1 for worker in found)

    await until(is_busy, 20, f"the worker runs {tool}")


# --- health and metrics ---------------------------------------------------------------------------------------------


async def test_a_workers_port_is_what_a_platform_needs(terminal: Terminal) -> None:
    agent_port, tool_port = free_ports(2)
    async with workers_of(terminal, "io", ports=(agent_port, tool_port)) as workers, client_of(terminal) as client:
        for port in (agent_port, tool_port):
            await _answers(port, "/readyz", 200)
            assert [await status(port, path) for path in ("/livez", "/startupz", "/metrics")] == [200, 200, 200]
        run = await client.submit("caller", "add")
        assert await asyncio.wait_for(run.output(), 30) == "add is done"
        agent, tool = await scrape(agent_port), await scrape(tool_port)
        assert agent("anabranch_runs_ended_total", agent="caller", status="completed", code="") == 1
        assert tool("anabranch_tool_calls_total", tool="add", outcome="ok") == 1
        assert tool.sum("process_resident_memory_bytes") > 0
        for worker in workers:
            worker.send(signal.SIGTERM)
        for worker in workers:
            assert (await worker.ends()).status == 0
    assert [await status(port, "/livez") for port in (agent_port, tool_port)] == [0, 0]


async def _answers(port: int, path: str, wanted: int) -> None:
    async def does() -> bool:
        return await status(port, path) == wanted

    await until(does, 20, f"{path} of {port} answers {wanted}")


async def test_a_port_that_is_taken_ends_a_worker_that_says_so(terminal: Terminal) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ours = replace(terminal, env={**terminal.env, "ANABRANCH_HTTP_PORT": str(port)})
        ended = await ours.run("worker", "tool", "app.py", "--queue", "io")
    assert ended.status == 1
    assert f"cannot listen at port {port} of all addresses for health and metrics: Address already in use" in ended.err
    assert "Traceback" not in ended.err


async def test_a_worker_whose_loop_is_blocked_is_dead_and_ends_when_it_is_told_twice(terminal: Terminal) -> None:
    app = terminal.folder / "app.py"
    app.write_text(app.read_text().replace("await asyncio.sleep(600)", "time.sleep(600)"))
    agent_port, slow_port = free_ports(2)
    terminal = replace(terminal, env={**terminal.env, "ANABRANCH_STALLED_S": "1"})
    async with workers_of(terminal, "slow", ports=(agent_port, slow_port)) as [_, slow], client_of(terminal) as client:
        await _answers(slow_port, "/readyz", 200)
        await client.submit("caller", "wait")
        await _answers(slow_port, "/livez", 503)
        assert await status(slow_port, "/metrics") == 200

        def is_gone() -> bool:
            slow.send(signal.SIGTERM)
            return slow.has_ended

        await until(is_gone, 15, "it ends, told more than once")
        ended = await slow.ends()
        assert ended.status == 1
        assert "still not at an end after 4 s: ending at once" in ended.err
