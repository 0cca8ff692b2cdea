"""What may keep a process from ending: threads and coroutines of tools that do not end by themselves.

Python waits for both, and nothing ends them from outside. Responsible for: waiting for them for so long, and saying
whether any is left. Must never: end the process. Called by: `frame.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

LAST_S: Final = 0.5
"""How long what is still at work when all is done is waited for."""

_left: list[asyncio.Task[Any]] = []
"""Kept: a task that is dropped before its end has that logged."""


class Unwaited(ThreadPoolExecutor):
    """Threads of `asyncio.to_thread`. One that hangs must not keep the loop from closing."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


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
