"""Workers that a test lets die by themselves, and what they say then.

Responsible for: that. Called by: integration tests of what a worker cannot go on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from anabranch.errors import BrokerError
from anabranch.runtime import Shutdown

ENDS_S: Final = 40.0


@asynccontextmanager
async def apart(serving: Coroutine[Any, Any, int], shutdown: Shutdown) -> AsyncIterator[asyncio.Task[int]]:
    """A worker whose death is not the test's; it has stopped at the end of the block."""
    task = asyncio.create_task(serving)
    ready = asyncio.create_task(shutdown.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        yield task
    finally:
        ready.cancel()
        shutdown.ask()
        await asyncio.wait({task}, timeout=ENDS_S)


async def death_of(task: asyncio.Task[int]) -> str:
    """Why a worker ended by itself: the one error that the command prints before it exits with 1."""
    await asyncio.wait({task}, timeout=ENDS_S)
    assert task.done(), f"still running after {ENDS_S:g} s"
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, BrokerError), repr(error)
    return str(error)
