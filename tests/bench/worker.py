"""The program of one worker process: `python -m tests.bench.worker ROLE BOOTSTRAP NAMESPACE`.

Responsible for: one role of Anabranch or of the floor, in a process of its own, so that its CPU time is its own. It
says `ready` on standard output once it serves. Lines on standard input are orders, each answered with a line: `cpu`
(the CPU seconds of this process so far), `peak` (the most memory that it has had, in bytes), `now` (what it has),
`profile`, `dump FILE`
(what the profiler has seen since). The end of standard input ends it, so it outlives nobody.
Must never: measure anything else.
Called by: `processes.py`.
"""

from __future__ import annotations

import asyncio
import cProfile
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from anabranch.agent_role import serve_agent
from anabranch.config import Settings
from anabranch.environment import load
from anabranch.runtime import Shutdown
from anabranch.tool_role import serve_tools
from tests.bench import dressed, floor, logged
from tests.bench.app import LATER, QUEUE, SOON, InstantModel, app
from tests.bench.settings import settings_for

MB: Final = 1024 * 1024
MODEL_S, MODEL_CONCURRENCY = 0.25, 32
NARROW_HOLD_S, NARROW_CONCURRENCY = 2.0, 100


async def _agent(settings: Settings, shutdown: Shutdown) -> None:
    await serve_agent(app, settings, shutdown, model=InstantModel())


async def _agent_over_http(settings: Settings, shutdown: Shutdown) -> None:
    """With the model at `ANTHROPIC_BASE_URL`, through the SDK."""
    await serve_agent(app, replace(settings, anthropic=load().anthropic), shutdown)


async def _narrow_agent(settings: Settings, shutdown: Shutdown) -> None:
    """One that feels a small flood as others feel a large one: see `flood.py`."""
    agent = replace(settings.agent, hold_after_s=NARROW_HOLD_S, max_open_bytes=16 * MB, max_partition_bytes=2 * MB)
    await serve_agent(app, replace(settings, agent=agent), shutdown, model=InstantModel())


async def _thinking_agent(settings: Settings, shutdown: Shutdown) -> None:
    """One whose model has a latency, and few places: its model is what the runs wait for."""
    agent = replace(settings.agent, model_concurrency=MODEL_CONCURRENCY)
    await serve_agent(app, replace(settings, agent=agent), shutdown, model=InstantModel(MODEL_S))


async def _narrow_tool(settings: Settings, shutdown: Shutdown) -> None:
    tool = replace(settings.tool, concurrency=NARROW_CONCURRENCY, max_taken_bytes=8 * MB)
    worker = replace(settings.worker, heartbeat_s=0.5)
    await serve_tools(app, QUEUE, replace(settings, tool=tool, worker=worker), shutdown)


async def _later_tool(settings: Settings, shutdown: Shutdown) -> None:
    await serve_tools(app, LATER, settings, shutdown)


async def _soon_tool(settings: Settings, shutdown: Shutdown) -> None:
    await serve_tools(app, SOON, settings, shutdown)


async def _tool(settings: Settings, shutdown: Shutdown) -> None:
    await serve_tools(app, QUEUE, settings, shutdown)


ROLES: Final[dict[str, Callable[[Settings, Shutdown], Awaitable[None]]]] = {
    "agent": _agent,
    "agent-http": _agent_over_http,
    "tool": _tool,
    "later-tool": _later_tool,
    "soon-tool": _soon_tool,
    "thinking-agent": _thinking_agent,
    "narrow-agent": _narrow_agent,
    "narrow-tool": _narrow_tool,
    "floor-agent": floor.relay_agent,
    "logged-agent": logged.relay_agent,
    "dressed-agent": dressed.relay_agent,
    "dressed-tool": dressed.relay_tool,
    "floor-tool": floor.relay_tool,
}


async def serve(role: str, bootstrap: str, namespace: str) -> None:
    """Serve `role` until standard input ends."""
    shutdown = Shutdown()
    async with asyncio.TaskGroup() as tasks:
        saying = tasks.create_task(_say_when_ready(shutdown), name="ready")
        obeying = tasks.create_task(_obey(shutdown), name="orders")
        try:
            await ROLES[role](settings_for(bootstrap, namespace), shutdown)
        finally:
            saying.cancel()
            obeying.cancel()


async def _say_when_ready(shutdown: Shutdown) -> None:
    await shutdown.ready.wait()
    _say("ready")


async def _obey(shutdown: Shutdown) -> None:
    profiler = cProfile.Profile()
    orders = await _standard_input()
    while line := await orders.readline():
        order, _, argument = line.decode().strip().partition(" ")
        if order == "cpu":
            _say(repr(time.process_time()))
        elif order == "peak":
            _say(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        elif order == "now":
            _say(str(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()))
        elif order == "profile":
            profiler.enable()
            _say("profiling")
        elif order == "dump":
            profiler.disable()
            profiler.dump_stats(argument)
            _say("dumped")
        else:
            raise ValueError(f"there is no order {order!r}")
    shutdown.ask()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format=f"{sys.argv[1]}: %(name)s: %(message)s")
    asyncio.run(serve(*sys.argv[1:]))
