"""`python -m tests.bench.instructions`: how many instructions a run takes, where the clock says nothing.

Both roles and the client in one process, over the broker in memory, with the benchmark's tools and its model that
replies at once; valgrind's callgrind counts while the runs are under way. The figure repeats to 1 or 2 %, whatever else
the machine does, so a change that saves that much can be told from noise. A third of it is the broker in memory and the
event loop under it. What a real Kafka costs, it does not show: `python -m tests.bench` does.

    python -m tests.bench.instructions                 # instructions a run; needs valgrind, takes half a minute
    python -m tests.bench.instructions --functions     # calls a run and own time of each function, by cProfile

Responsible for: that count. Must never: judge it. Called by: whoever makes a run cheaper.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from anabranch.agent_role import serve_agent
from anabranch.client import Client
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.roles import topic_specs
from anabranch.runtime import Shutdown
from anabranch.tool_role import serve_tools
from tests.bench import workload
from tests.bench.app import AGENT, QUEUE, InstantModel, app
from tests.bench.processes import ROOT
from tests.bench.settings import settings_for
from tests.bench.subject import WrongAnswer

WARM_UP: Final = 60
IN_FLIGHT: Final = 200
SHOWN: Final = 60
TOTAL: Final = re.compile(r"^totals: (\d+)", re.MULTILINE)


async def _ask(client: Client, runs: int) -> None:
    """So many runs, many at a time."""
    left = iter(range(runs))

    async def one_after_another() -> None:
        for _ in left:
            response = await (await client.submit(AGENT, workload.prompt(0)))
            if response.output != workload.ANSWER:
                raise WrongAnswer(f"a run ended as {response}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(runs, IN_FLIGHT)):
            tasks.create_task(one_after_another())


async def _run(runs: int, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """`begin` and `end` are called around `runs` runs, once others have been answered."""
    settings = settings_for("memory:0", "instructions")
    broker = MemoryBroker(topic_specs(app, settings))
    agent, tool = Shutdown(), Shutdown()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_agent(app, settings, agent, broker=broker.another(), model=InstantModel()))
        tasks.create_task(serve_tools(app, QUEUE, settings, tool, broker=broker.another()))
        await agent.ready.wait()
        await tool.ready.wait()
        async with Client.for_app(app, settings=settings, broker=broker.another()) as client:
            await _ask(client, WARM_UP)
            begin()
            await _ask(client, runs)
            end()
        agent.ask()
        tool.ask()


def _count(runs: int) -> int:
    """Instructions of `runs` runs. Raises CalledProcessError if valgrind fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "callgrind.out")
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "--quiet"]
        inside = [sys.executable, "-m", "tests.bench.instructions", "--inside", "--runs", str(runs)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run(["valgrind", *options, *inside], cwd=ROOT, env=environment, check=True)
        found = TOTAL.search(out.read_text())
        assert found is not None, "callgrind has written no total"
        return int(found[1])


def _switch(state: str) -> None:
    """Count from now on, or no longer."""
    command = ["callgrind_control", "-i", state, str(os.getpid())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _print_functions(profile: cProfile.Profile, runs: int) -> None:
    found = pstats.Stats(profile).strip_dirs().stats  # type: ignore[attr-defined]  # typeshed leaves it out
    rows = [(count / runs, own / runs * 1e6, *where) for where, (_, count, own, _, _) in found.items()]
    sys.stdout.write(f"{sum(row[0] for row in rows):.0f} calls a run\n   calls     own us\n")
    for count, own_us, file, line, name in sorted(rows, reverse=True)[:SHOWN]:
        sys.stdout.write(f"{count:8.1f} {own_us:10.1f}  {file}:{line} {name}\n")


def main(arguments: list[str]) -> int:
    """The status is 1 if there is no valgrind."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description="Instructions of a run.")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="how many runs are counted (200)")
    parser.add_argument("--functions", action="store_true", help="calls a run, by function, instead")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        asyncio.run(_run(options.runs, lambda: _switch("on"), lambda: _switch("off")))
    elif options.functions:
        profile = cProfile.Profile()
        asyncio.run(_run(options.runs, profile.enable, profile.disable))
        _print_functions(profile, options.runs)
    elif shutil.which("valgrind") is None:
        sys.stderr.write("there is no valgrind on the PATH: install it, or use --functions\n")
        return 1
    else:
        sys.stdout.write(f"{_count(options.runs) / options.runs / 1000:,.0f} k instructions a run\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
