"""Tasks that somebody owns: none outlives its block, and the death of one is the death of the block.

And how the outside asks a process to stop: by signals.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any


@asynccontextmanager
async def alongside(work: Coroutine[Any, Any, object], name: str) -> AsyncIterator[asyncio.Task[object]]:
    """Run `work` while the block runs, and cancel it at the end.

    If it dies, the block is cancelled and its exception raised here. What the block raises comes out as it is,
    not in a group, so that callers can catch it by its type.
    """
    parent = asyncio.current_task()
    assert parent is not None, "alongside() runs in a task"
    task: asyncio.Task[object] = asyncio.create_task(work, name=name)
    dead: list[BaseException] = []

    def ended(_: asyncio.Task[object]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            dead.append(error)
            parent.cancel()

    task.add_done_callback(ended)
    try:
        yield task
    except asyncio.CancelledError:
        if not dead:
            raise
        parent.uncancel()
        raise dead[0] from None
    finally:
        task.remove_done_callback(ended)
        task.cancel()
        await asyncio.wait({task})


@contextmanager
def asked_by_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Each SIGINT, SIGTERM and SIGHUP (where there is one) calls `ask`, while inside; a loop must be running."""
    loop = asyncio.get_running_loop()
    caught = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    for number in caught:
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
