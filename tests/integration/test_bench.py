"""The benchmark, in its quick form: that it runs, and what it writes.

Responsible for: the shape of build/bench.json, which others read, and that nothing is left behind.
Must never: judge a figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import pytest
from tests.bench.load import percentile
from tests.bench.processes import ROOT
from tests.support.kafka import BOOTSTRAP_VARIABLE
from tests.support.kafka_admin import admin_of
from tests.support.wait import until

NUMBERS = ("runs_s", "p50_ms", "p99_ms", "cpu_ms_per_run", "bytes_per_run")
END_S = 60.0


async def start(kafka: str, *options: str) -> Process:
    command = [sys.executable, "-m", "tests.bench", *options]
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, BOOTSTRAP_VARIABLE: kafka}, stdout=PIPE, stderr=PIPE
    )


async def measuring(process: Process) -> None:
    """Wait until it says that it measures: then the workers serve."""
    assert process.stderr is not None
    while line := await process.stderr.readline():
        if b"runs in flight" in line:
            return
    raise AssertionError("the benchmark ended before it measured anything")


async def topics_of(kafka: str, process: Process) -> list[str]:
    async with admin_of(kafka) as admin:
        return [name for name in await admin.list_topics() if name.startswith(f"bench-{process.pid}-")]


async def gone(kafka: str, process: Process) -> None:
    """Its topics are no longer there. A busy Kafka lists what was deleted for a moment longer."""

    async def no_topic() -> bool:
        return not await topics_of(kafka, process)

    await until(no_topic, 15, "its topics are gone")


@pytest.mark.parametrize(
    ("options", "subjects"),
    [((), ["anabranch", "floor"]), (("--logged",), ["anabranch", "floor", "logged", "dressed"])],
    ids=["ordinary", "logged"],
)
async def test_a_quick_benchmark_writes_an_entry_for_each_subject_and_leaves_nothing_behind(
    kafka: str, tmp_path: Path, options: tuple[str, ...], subjects: list[str]
) -> None:
    out = tmp_path / "bench.json"
    process = await start(kafka, "--quick", *options, "--out", str(out))
    shown, errors = await asyncio.wait_for(process.communicate(), END_S)
    assert process.returncode == 0, errors.decode()
    assert b"ratio" in shown
    entries: list[dict[str, Any]] = json.loads(out.read_text())
    assert [entry["name"] for entry in entries] == subjects
    for entry in entries:
        assert (entry["tool_ms"], entry["concurrency"]) == (0, 8)
        assert all(isinstance(entry[name], float) and entry[name] > 0 for name in NUMBERS), entry
        by_process: dict[str, float] = entry["cpu_ms_by_process"]
        assert by_process.keys() == {"agent", "tool", "client"}
        assert abs(sum(by_process.values()) - entry["cpu_ms_per_run"]) < 0.01
    await gone(kafka, process)


async def test_a_benchmark_that_is_terminated_leaves_no_topic_and_no_process(kafka: str, tmp_path: Path) -> None:
    process = await start(kafka, "--only", "anabranch", "--out", str(tmp_path / "bench.json"))
    await asyncio.wait_for(measuring(process), END_S)
    assert await topics_of(kafka, process) != []
    process.send_signal(signal.SIGTERM)
    # Its standard error is the workers' too, so that it ends only when the last of them is gone.
    _, errors = await asyncio.wait_for(process.communicate(), END_S)
    assert process.returncode == 130, errors.decode()
    await gone(kafka, process)
    assert not (tmp_path / "bench.json").exists()


async def test_how_often_each_function_is_called_for_a_run_can_be_asked() -> None:
    command = [sys.executable, "-m", "tests.bench.instructions", "--functions", "--runs", "5"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    shown, errors = await asyncio.wait_for(process.communicate(), END_S)
    assert process.returncode == 0, errors.decode()
    calls, unit = shown.decode().split(" ", 1)
    assert int(calls) > 100
    assert unit.startswith("calls a run\n")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.50), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([7.0], 0.99) == 7.0
