"""`anabranch worker agent APP` and `anabranch worker tool APP --queue Q`: one role, until a signal.

Responsible for what signals mean: the first drains, the second ends the process quickly, and a process that was
asked to end does end, whatever its tools do. The roles themselves are in `agent_role.py` and `tool_role.py`. `dev.py`
uses `serve` too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

import click

from anabranch.cli import frame, output
from anabranch.tasks import asked_by_signals
from anabranch.wording import counted

if TYPE_CHECKING:
    from anabranch.runtime import Shutdown

log = logging.getLogger(__name__)

GRACE_S: Final = 15.0
"""What a drain may take beyond its time, and the end of a worker that cannot go on: the last records, closing."""
HURRY_S: Final = 4.0
"""What the second signal leaves."""


@click.group(cls=frame.Commands)
def worker() -> None:
    """Run one role against Kafka, until SIGTERM or Ctrl-C.

    The first signal drains: what is in flight is finished, for ANABRANCH_DRAIN_S seconds at most. The second one
    ends the worker quickly. Either way no run is lost: what was not finished is taken up by another worker.
    """


@worker.command("agent")
@click.argument("reference", metavar="APP")
@frame.options(least="debug")
def agent(common: frame.Frame, reference: str) -> int:
    """Run the agents of APP: read requests, call the model, send tool calls out, answer."""
    from anabranch.agent_role import serve_agent

    app, settings = common.app(reference), common.settings
    log.info("agent worker of namespace %s at %s", common.namespace(app).name, settings.kafka.bootstrap)
    serving = serve(lambda shutdown: serve_agent(app, settings, shutdown), settings.worker.drain_s)
    return _ended(frame.run_async(serving), "model call", "another worker makes it again")


@worker.command("tool")
@click.argument("reference", metavar="APP")
@click.option("--queue", required=True, metavar="Q", help="Serve the tools of this queue.")
@frame.options(least="debug")
def tool(common: frame.Frame, reference: str, queue: str) -> int:
    """Run the tools of APP that are in one queue. It needs no key for the model."""
    from anabranch.tool_role import serve_tools

    app, settings = common.app(reference), common.settings
    where = common.namespace(app).name, settings.kafka.bootstrap
    log.info("tool worker of queue %s of namespace %s at %s", queue, *where)
    serving = serve(lambda shutdown: serve_tools(app, queue, settings, shutdown), settings.worker.drain_s)
    again = "another worker executes it again, or ends it as unknown if its tool is at most once"
    return _ended(frame.run_async(serving), "tool call", again)


def _ended(abandoned: int, what: str, then: str) -> int:
    """A drain that ran out of time is no failure. `then` says what becomes of each call that it left behind."""
    if abandoned:
        output.say(f"{counted(abandoned, what)} did not finish in time; of each: {then}")
    return 0


async def serve(work: Callable[[Shutdown], Awaitable[int]], drain_s: float) -> int:
    """Do `work` until it ends by itself or signals end it; returns what it returns, how much was abandoned."""
    from anabranch.runtime import Shutdown

    shutdown = Shutdown()
    with _Deadline() as deadline:
        times = count()

        def at_once() -> None:
            deadline.within(HURRY_S if next(times) else drain_s + GRACE_S)

        shutdown.on_failure = lambda: deadline.within(GRACE_S)
        with asked_by_signals(shutdown.ask, at_once):
            return await _until_stopped(work, shutdown)


async def _until_stopped(work: Callable[[Shutdown], Awaitable[int]], shutdown: Shutdown) -> int:
    async with asyncio.TaskGroup() as tasks:
        serving = asyncio.ensure_future(work(shutdown))
        ending = tasks.create_task(_end_a_start(serving, shutdown), name="signals")
        try:
            return await serving
        except asyncio.CancelledError:
            if not shutdown.asked.is_set():
                raise
            return 0  # asked before it was up: there was nothing to drain
        finally:
            ending.cancel()


async def _end_a_start(serving: asyncio.Future[int], shutdown: Shutdown) -> None:
    await shutdown.asked.wait()
    if not shutdown.ready.is_set():
        serving.cancel()


class _Deadline:
    """Ends the process if it has not ended in time: in a thread, because a tool may block the loop, or swallow its
    cancellation.
    """

    def __init__(self) -> None:
        self._orders: SimpleQueue[float | None] = SimpleQueue()

    def __enter__(self) -> _Deadline:
        threading.Thread(target=self._wait, name="deadline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(None)

    def within(self, seconds: float) -> None:
        """From now on it has so long, if it has not less already. May be called from a signal's handler."""
        self._orders.put(seconds)

    def _wait(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are to interrupt the main thread
        ends_at, told = math.inf, 0.0
        while True:
            left = max(0.0, ends_at - time.monotonic())
            try:
                seconds = self._orders.get(timeout=left if ends_at < math.inf else None)
            except Empty:
                return _end(told)
            if seconds is None:
                return None
            if time.monotonic() + seconds < ends_at:
                ends_at, told = time.monotonic() + seconds, seconds


def _end(seconds: float) -> None:
    sys.stderr.write(
        f"still not at an end after {seconds:g} s: ending at once; what was not finished is done elsewhere\n"
    )
    sys.stderr.flush()
    os._exit(frame.FAILED)
