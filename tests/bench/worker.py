"""The program of one worker process: `python -m tests.bench.worker ROLE BOOTSTRAP NAMESPACE`.

Responsible for: one role of Anabranch or of the floor, in a process of its own, so that its CPU time is its own. It
says `ready` on standard output once it serves. Lines on standard input are orders, each answered with a line: `cpu`
(the CPU seconds of this process so far), `profile`, `dump FILE` (what the profiler has seen since). The end of standard
input ends it, so it outlives nobody.
Must never: measure anything else.
Called by: `processes.py`.
"""

from __future__ import annotations

import asyncio
import cProfile
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from anabranch.config import Settings, load
from anabranch.runtime import Shutdown, serve_agent, serve_tools
from tests.bench import floor
from tests.bench.app import QUEUE, InstantModel, app
from tests.bench.settings import settings_for


async def _agent(settings: Settings, shutdown: Shutdown) -> None:
    await serve_agent(app, settings, shutdown, model=InstantModel())


async def _agent_over_http(settings: Settings, shutdown: Shutdown) -> None:
    """With the model at `ANTHROPIC_BASE_URL`, through the SDK."""
    await serve_agent(app, replace(settings, anthropic=load().anthropic), shutdown)


async def _tool(settings: Settings, shutdown: Shutdown) -> None:
    await serve_tools(app, QUEUE, settings, shutdown)


ROLES: Final[dict[str, Callable[[Settings, Shutdown], Awaitable[None]]]] = {
    "agent": _agent,
    "agent-http": _agent_over_http,
    "tool": _tool,
    "floor-agent": floor.relay_agent,
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
