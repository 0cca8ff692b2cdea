"""What a tool's error is called and says, and whether it is one: an order to end is none.

Must never: fail itself, whatever the error's own `__str__` does, or decide what becomes of the call. Called by:
`executor.py`, `serving.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import anyio

from anabranch.app import RateLimited, Retryable
from anabranch.tools.contained import Escaped
from anabranch.wording import writable

SHOWN: Final = 4000
"""Characters of an error that the model is shown."""


def ends_us(error: BaseException) -> bool:
    """Are we cancelled or closed? Or has the tool let such an error of its own escape? A worker that ended with it
    would leave the call to the next one, and so end them all; Ctrl-C comes as a signal, not as an error.
    """
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the loop is over
        return True
    return task is None or (isinstance(error, asyncio.CancelledError) and task.cancelling() > 0)


async def take_back(task: asyncio.Task[Any]) -> None:
    """The tool has cancelled the task that it ran in, which is the current one: that ends nothing but the tool."""
    while task.uncancel():
        pass
    with suppress(asyncio.CancelledError):  # an order that it has given last of all comes through where we wait next
        await asyncio.sleep(0)


class ToolsOwn(Exception):
    """A TimeoutError that the tool raised itself."""


def kind_of(error: BaseException) -> str:
    """The name of what the tool raised."""
    cause = error.__cause__ if isinstance(error, ToolsOwn | Escaped) else None
    return type(cause or error).__name__


def described(error: BaseException) -> str:
    if isinstance(error, anyio.BrokenWorkerProcess):
        return "its process ended without a result"
    text = text_of(error)
    if isinstance(error, ToolsOwn | Escaped | Retryable | RateLimited):
        return text[:SHOWN]
    return f"{type(error).__name__}: {text}"[:SHOWN] if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """The error is the tool's, and so is its `__str__`: it may fail, and the worker must not."""
    try:
        return writable(str(error))
    except BaseException as unsayable:  # noqa: BLE001 - an order to end, perhaps: the call gets its result
        return f"(its text cannot be had: {type(unsayable).__name__})"
