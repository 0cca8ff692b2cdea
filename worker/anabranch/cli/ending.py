"""What may keep a process from ending, or end it before its time: threads, coroutines and tasks of tools.

Python waits for what does not end by itself, and nothing ends that from outside; and an order to exit by any task ends
the loop of all. Responsible for: going on after such an order, waiting for what is left for so long, and saying
whether any is. Must never: end the process. Called by: `frame.py`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

LAST_S: Final = 0.5
"""How long what is still at work when all is done is waited for."""

_left: list[asyncio.Task[Any]] = []
"""Kept: a task that is dropped before its end has that logged."""


class Unwaited(ThreadPoolExecutor):
    """Threads of `asyncio.to_thread`. One that hangs must not keep the loop from closing."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, but only `work` itself, or Ctrl-C, ends it by `SystemExit` or `KeyboardInterrupt`.

    asyncio lets these out of the loop, whichever task raises them: one that a tool has started would end the worker,
    and so would its call, redelivered, the next one. Whoever awaits that task is told of it all the same.
    """
    main: list[asyncio.Task[T]] = []

    async def running() -> T:
        main.append(asyncio.current_task())  # type: ignore[arg-type]
        return await work

    with asyncio.Runner() as runner:
        go_on = partial(runner.run, running())
        while True:
            try:
                return go_on()
            except (SystemExit, KeyboardInterrupt) as order:
                if not main or main[0].done() or (isinstance(order, KeyboardInterrupt) and _by_ctrl_c()):
                    raise
                log.error("a task or callback of a tool raised %s: this process goes on", type(order).__name__)
            go_on = partial(runner.get_loop().run_until_complete, main[0])


def _by_ctrl_c() -> bool:
    """Whether Ctrl-C is an error here, and no signal that the loop is told of."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def cancel_others() -> None:
    """`asyncio.run` waits for each task that it cancels: for ever for one that swallows this, unless it is left out."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        _, late = await asyncio.wait(others, timeout=LAST_S)
        for task in late:
            asyncio.tasks._unregister_task(task)
        _left.extend(late)


def is_anything_left() -> bool:
    """Whether Python would wait for something, after having waited for it."""
    deadline = time.monotonic() + LAST_S
    others = [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return bool(_left) or any(thread.is_alive() for thread in others)
