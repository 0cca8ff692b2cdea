"""The demo, as `make demo` runs it, on fewer records: it works, resumes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.process import is_listening
from tests.support.shell import environment, script, started
from tests.support.wait import until

DEMO = "examples/demo.py"


class Demo:
    """A running demo: what it has said, its children, and the ports that they listen on."""

    def __init__(self, process: Process, build: Path) -> None:
        self.process, self.build, self.said = process, build, ""

    @property
    def out(self) -> Path:
        return self.build / "enriched.jsonl"

    @property
    def workers(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"process (\d+)", self.said)]

    @property
    def ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.said)]

    async def until_said(self, words: str) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while words not in self.said:
                line = await self.process.stderr.readline()
                assert line, f"it ended without saying {words!r}:\n{self.said}"
                self.said += line.decode()

    async def until_workers_run(self) -> None:
        await self.until_said("tool-2.log")

    async def until_lines(self, count: int) -> None:
        await until(lambda: self.out.exists() and self.out.read_bytes().count(b"\n") >= count, 60, "lines are written")

    async def ended(self) -> int:
        async with asyncio.timeout(60):
            _, rest = await self.process.communicate()
        self.said += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    async def is_gone(self) -> None:
        """No child is left, and no port."""
        assert self.workers
        assert self.ports
        await until(lambda: not any(map(_runs, self.workers)), 20, f"no child of {self.workers} is left")
        await until(lambda: not any(map(is_listening, self.ports)), 20, f"no port of {self.ports} is left")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def running(build: Path, *options: str) -> AsyncIterator[Demo]:
    async with started(DEMO, "--build", str(build), *options, env=environment()) as process:
        yield Demo(process, build)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_ctrl_c_drains_the_same_command_goes_on_and_once_complete_it_starts_afresh(tmp_path: Path) -> None:
    few = ("--records", "24", "--concurrency", "4")
    async with running(tmp_path, *few) as demo:
        await demo.until_lines(2)
        demo.process.send_signal(signal.SIGINT)
        assert await demo.ended() == 130
        await demo.is_gone()
    assert "To go on: make demo" in demo.said
    there = len(read(demo.out))
    assert 2 <= there < 24

    async with running(tmp_path, *few) as demo:
        assert await demo.ended() == 0, demo.said
        await demo.is_gone()
    assert f"{there} records are there" in demo.said
    lines = read(demo.out)
    assert sorted(line["record"]["customer_id"] for line in lines) == list(range(1, 25))
    assert {(line["status"], line["record"]["customer_id"] == line["output"]["customer_id"]) for line in lines} == {
        ("completed", True)
    }
    for words in ("widest batch        3 at once", "one after another", "times as long", "✓ propose_offer"):
        assert words in demo.said
    assert "model 'scripted'" in (tmp_path / "demo" / "agent.log").read_text()  # no secret that logs would mask

    async with running(tmp_path, *few) as demo:
        await demo.until_workers_run()
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.ended() == 130
        await demo.is_gone()
    assert "The answers of last time are now in" in demo.said
    assert not demo.out.exists()
    assert len(read(tmp_path / "enriched.before.jsonl")) == 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_whatever_ends_the_demo_while_it_starts_ends_its_children(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and not os.path.exists("/proc"):
        pytest.skip("only Linux ends the children of a killed process")
    async with running(tmp_path) as demo:
        await demo.until_workers_run()
        demo.process.send_signal(number)
        assert await demo.ended() == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        await demo.is_gone()


@pytest.mark.parametrize(("place", "name", "lines"), [(0, "agent", 0), (2, "tool-2", 1)])
async def test_a_child_that_dies_ends_the_demo_which_says_which_one(
    tmp_path: Path, place: int, name: str, lines: int
) -> None:
    async with running(tmp_path, "--concurrency", "2") as demo:
        await demo.until_workers_run()
        await demo.until_lines(lines) if lines else None
        os.kill(demo.workers[place], signal.SIGKILL)
        assert await demo.ended() == 1
        await demo.is_gone()
    assert f"the {name} process died (killed by signal 9). The end of" in demo.said
    assert "\n  | " in demo.said


@pytest.mark.skipif(not os.path.exists("/proc"), reason="finds the broker's process in /proc")
async def test_the_death_of_the_broker_ends_the_demo_which_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as demo:
        await demo.until_workers_run()
        os.kill(_broker_of(demo.process.pid), signal.SIGKILL)
        assert await demo.ended() == 1
        await demo.is_gone()
    assert "the embedded broker at" in demo.said
    assert "died (signal 9)" in demo.said
    assert "Traceback" not in demo.said


def _broker_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [broker] = [child for child in children if b"tansu" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(broker)


async def test_a_real_model_is_not_called_without_a_key(tmp_path: Path) -> None:
    ended = await script(DEMO, "--build", str(tmp_path), "--model", "some-model", env=environment())
    assert ended.status == 1
    assert "ANTHROPIC_API_KEY" in ended.stderr
    assert list(tmp_path.iterdir()) == []
