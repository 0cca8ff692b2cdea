"""The benchmark of the peers, in its quick form: the gather loop and the table. It installs nothing.

Responsible for: the shape of build/peers.json, that a peer in trouble ends nobody else's measurement, and that nothing
is left behind.
Must never: judge a figure.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from tests.bench.load import Cell, Effort
from tests.bench.peers import catalogue
from tests.bench.peers.__main__ import main, parse
from tests.bench.peers.catalogue import PEERS, Peer
from tests.bench.peers.environments import CannotBeHad
from tests.bench.peers.leftovers import end_leftovers
from tests.bench.peers.place import Place
from tests.bench.peers.report import Line, Outcome, print_table

LINE = Line(50, 100, 400, 123.4, 80.0, 99.5, 6.5, 1.25, 2.5, 2500.0)
NAMES = {field.name for field in fields(Line)}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in our own environment, which has all that the gather loop needs."""
    monkeypatch.setattr(catalogue, "environment", lambda folder: None)


def quick(tmp_path: Path, *names: str) -> tuple[int, list[dict[str, Any]]]:
    """The status and what was written, of `names` alone."""
    out = tmp_path / "peers.json"
    status = main(["--quick", "--only", *names, "--out", str(out)])
    entries: list[dict[str, Any]] = json.loads(out.read_text())
    return status, entries


def test_the_gather_loop_is_measured_over_http_and_leaves_no_process(ours: None, tmp_path: Path) -> None:
    status, entries = quick(tmp_path, "gather", "gather, streamed")
    assert status == 0, entries
    assert [entry["name"] for entry in entries] == ["gather", "gather, streamed"]
    for entry in entries:
        [line] = entry["lines"]
        assert line.keys() == NAMES
        assert (line["tool_ms"], line["concurrency"]) == (0, 4)
        assert line["runs"] >= 8
        assert line["runs_s"] > 0
        assert line["server_cpu_ms_per_run"] == 0
        assert "anthropic" in entry["versions"]
    assert not [child for child in psutil.Process().children(recursive=True) if "tests.bench.peers" in child.cmdline()]


def test_a_peer_that_cannot_be_had_is_skipped_with_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise CannotBeHad(f"could not install {folder.name}")

    monkeypatch.setattr(catalogue, "environment", refuse)
    status, [entry] = quick(tmp_path, "langgraph")
    assert status == 0
    assert (entry["skipped"], entry["lines"]) == ("could not install langgraph", [])


def test_a_job_that_finds_no_server_is_skipped_with_its_own_word(
    ours: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Peer, "module", "tests.support.apps.serverless")
    status, [entry] = quick(tmp_path, "gather")
    assert (status, entry["skipped"]) == (0, "there is no server here")


def test_a_job_that_breaks_is_a_failure_and_the_others_are_measured(ours: None, tmp_path: Path) -> None:
    """LangGraph is not in our own environment, so that its job ends at its first import."""
    status, [gather, broken] = quick(tmp_path, "gather", "langgraph")
    assert status == 1
    assert gather["lines"]
    assert "ended" in broken["failed"]


async def test_a_measurement_that_is_terminated_leaves_no_process(tmp_path: Path) -> None:
    program = "from tests.bench.peers import catalogue, __main__ as m\n"
    program += "catalogue.environment = lambda folder: None\n"
    program += f"raise SystemExit(m.main(['--only', 'gather', '--out', {str(tmp_path / 'peers.json')!r}]))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=PIPE, stdout=PIPE)
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"in flight" not in await process.stderr.readline():
            assert process.returncode is None
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.terminate()
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode == 130
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, 15)
    assert not alive
    assert not (tmp_path / "peers.json").exists()


def test_what_a_killed_program_leaves_behind_is_ended_and_nothing_else() -> None:
    ours, other = (Place(f"home {name}", "", "", "", "") for name in ("a", "b"))
    waiting = [sys.executable, "-c", "input()"]
    left, foreign = (
        subprocess.Popen(waiting, env={**os.environ, **place.environment()}, stdin=subprocess.PIPE)
        for place in (ours, other)
    )
    try:
        assert end_leftovers(ours) == [left.pid]
        assert not psutil.pid_exists(left.pid)
        assert foreign.poll() is None
    finally:
        for process in (left, foreign):
            process.kill()
            process.wait(10)


def test_the_table_has_a_section_for_each_load_and_a_word_for_each_peer() -> None:
    printed = io.StringIO()
    outcomes = [
        Outcome("quick one", {"library": "1.2.3"}, [LINE]),
        Outcome("absent", skipped="no server here"),
        Outcome("broken", failed="it did not answer in time"),
    ]
    print_table(Console(file=printed, width=130), outcomes)
    shown = printed.getvalue()
    for expected in ("123", "80.0", "99.5", "6.50", "1.25", "2.5", "library 1.2.3"):
        assert expected in shown
    assert "absent: skipped: no server here" in shown
    assert "broken: failed: it did not answer in time" in shown


def test_loads_and_peers_can_be_chosen() -> None:
    plan = parse(["--only", "celery", "--tool-ms", "5", "--concurrency", "2", "3"])
    assert [peer.name for peer in plan.peers] == ["celery"]
    assert plan.cells == [Cell(5, 2), Cell(5, 3)]


def test_to_warm_up_is_the_same_load_with_fewer_runs() -> None:
    effort = Effort(seconds=4.0, limit_s=12.0, least=2, floor=50, warm_up=20).shorter(Cell(0, 100))
    assert effort.enough(Cell(0, 100), submitted=100, elapsed_s=0.0)
    assert not effort.enough(Cell(0, 100), submitted=99, elapsed_s=0.0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_pins_what_it_installs_and_names_no_registry(peer: Peer) -> None:
    folder = Path(catalogue.__file__).with_name(peer.folder)
    assert (folder / "job.py").exists()
    if (requirements := folder / "requirements.txt").exists():
        for line in requirements.read_text().splitlines():
            assert "==" in line
            assert "://" not in line
            assert not line.startswith("-")
