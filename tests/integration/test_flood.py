"""Floods of runs and of calls, on a real Kafka, of workers that have little room, few places and little patience.

Responsible for: that nothing expires, that admission stops and memory stays bounded meanwhile, that the rate returns,
and that runs of another tenant, or of the interactive lane, are answered long before those that were asked for before.
Must never: measure (`python -m tests.bench.flood` does).
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from tests.bench.processes import ROOT
from tests.support.kafka import BOOTSTRAP_VARIABLE

pytestmark = pytest.mark.timeout(240)

SIZES = ("--requests", "5000", "--calls", "9000", "--tool-ms", "150", "--tenant", "500", "--hurried", "0")
PEAK_MB = {"agent": 300, "tool": 200}
"""What the formula of docs/operations.md gives for these workers, without what is fetched ahead, about."""


async def flooded(kafka: str) -> tuple[dict[str, Any], str]:
    """The phases by name, and what the workers logged. Every run was answered as it should be."""
    command = [sys.executable, "-m", "tests.bench.flood", "--narrow", *SIZES]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, BOOTSTRAP_VARIABLE: kafka}, stdout=PIPE, stderr=PIPE
    )
    out, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    return {phase["phase"]: phase for phase in map(json.loads, out.splitlines())}, log.decode()


async def test_a_flood_makes_the_system_slower_never_wrong_and_passes(kafka: str) -> None:
    phases, log = await flooded(kafka)
    assert "its oldest call has waited" in log, "admission has stopped meanwhile"
    for name, peak_mb in phases["slow tools"]["peak_mb"].items():
        assert peak_mb <= PEAK_MB[name]
    assert phases["after"]["runs_s"] >= 0.3 * phases["before"]["runs_s"]
    for name in ("another tenant", "the other lane"):
        other = phases[name]
        assert other["others_slowest_s"] <= 0.5 * other["answered_s"]
