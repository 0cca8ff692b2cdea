"""`anabranch dev` and what any command does before it reaches a broker.

Responsible for: the embedded broker as a user has it, ports, failures that are explained, wrong usage.
Must never: need a real Kafka.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.cli import Terminal
from tests.support.process import free_ports, is_listening
from tests.support.scrape import scrape, status
from tests.support.wait import until

from anabranch.client import Client
from anabranch.config import KafkaSettings, Settings

DEV = ("dev", "app.py", "--script", "script.py")


@pytest.fixture
def port() -> int:
    [port] = free_ports(1)
    return port


@pytest.fixture
def terminal(tmp_path: Path, port: int) -> Terminal:
    return Terminal.at(tmp_path, f"localhost:{port}", "dev", ANABRANCH_DRAIN_S="2")


async def test_dev_runs_an_app_for_commands_with_the_same_settings_until_ctrl_c(terminal: Terminal, port: int) -> None:
    async with terminal.start(*DEV) as dev:
        await dev.says("Ctrl-C ends it")
        assert "export" not in dev.out
        settings = Settings(kafka=KafkaSettings(bootstrap=f"localhost:{port}"))
        async with Client.for_app(settings=settings, namespace="dev") as client:
            run = await client.submit("caller", "add")
            assert await asyncio.wait_for(run.output(), 30) == "add is done"
        workers = (await terminal.run("workers", "--json")).json()
        assert sorted(str(worker["queue"]) for worker in workers) == ["None", "io", "slow", "stuck"]
        dev.send(signal.SIGINT)
        ended = await dev.ends(15)
        assert ended.status == 0, ended.err
    assert not is_listening(port)


async def test_dev_serves_the_metrics_of_all_its_roles_at_one_port(terminal: Terminal, port: int) -> None:
    http = next(free for free in free_ports(2) if free != port)
    terminal = replace(terminal, env={**terminal.env, "ANABRANCH_HTTP_PORT": str(http)})
    async with terminal.start(*DEV) as dev:
        await dev.says("Ctrl-C ends it")
        assert f"http://localhost:{http}/metrics" in dev.out
        await until(lambda: is_ready(http), 20, "all roles are ready")
        found = await scrape(http)
        roles = {tuple(sorted(labels)) for name, labels in found.samples if name == "anabranch_rebalances_total"}
        assert roles == {
            (("queue", queue), ("role", "tool" if queue else "agent")) for queue in ("", "io", "slow", "stuck")
        }


async def is_ready(port: int) -> bool:
    return await status(port, "/readyz") == 200


async def test_dev_serves_an_at_most_once_tool_and_warns_of_its_broker(terminal: Terminal, port: int) -> None:
    app = terminal.folder / "app.py"
    app.write_text(app.read_text().replace('queue="io"', 'queue="io", delivery="at_most_once"'))
    async with terminal.start(*DEV) as dev:
        await dev.says("Ctrl-C ends it")
        assert "tool add is at_most_once, and this broker keeps no commit metadata" in dev.err
        ran = await terminal.run("run", "caller", "add", "--namespace", "dev")
        assert (ran.status, ran.out) == (0, "add is done\n"), ran.err


async def test_dev_takes_another_port_and_says_how_to_find_it(terminal: Terminal, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        async with terminal.start(*DEV) as dev:
            await dev.says("Ctrl-C ends it")
            assert "export ANABRANCH_BOOTSTRAP=127.0.0.1:" in dev.out
            assert f":{port}\n" not in dev.out
        refused = await terminal.run(*DEV, "--port", str(port))
        assert refused.status == 1
        assert f"port {port} is taken" in refused.err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the broker's process in /proc")
async def test_dev_ends_with_an_explanation_when_its_broker_dies(terminal: Terminal) -> None:
    async with terminal.start(*DEV) as dev:
        await dev.says("Ctrl-C ends it")
        [broker] = _children(dev.pid)
        os.kill(broker, signal.SIGKILL)
        ended = await dev.ends()
        assert ended.status == 1
        assert "the embedded broker" in ended.err
        assert "start again" in ended.err
        assert "Traceback" not in ended.err


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize(
    "command",
    [
        ("worker", "tool", "app.py", "--queue", "io"),
        ("topics", "check", "app.py"),
        ("agents",),
        ("dlq", "list"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
async def test_a_broker_that_is_not_there_is_explained(terminal: Terminal, port: int, command: tuple[str, ...]) -> None:
    ended = await terminal.run(*command, deadline_s=20)
    assert ended.status == 1
    assert f"cannot connect to Kafka at localhost:{port}" in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


async def test_wrong_usage_ends_with_status_2(terminal: Terminal) -> None:
    ended = await terminal.run("worker", "tool", "app.py")
    assert ended.status == 2
    assert "--queue" in ended.err


async def test_an_app_that_is_not_there_is_explained(terminal: Terminal) -> None:
    ended = await terminal.run("worker", "agent", "nowhere.py")
    assert ended.status == 1
    assert ended.err.startswith("error: 'nowhere.py': there is no file")


async def test_dev_without_a_key_names_the_scripted_model(terminal: Terminal) -> None:
    ended = await terminal.run("dev", "app.py")
    assert ended.status == 1
    assert "set ANTHROPIC_API_KEY, or give --script" in ended.err
