"""Runs a tool's function in a thread or another process so that nothing of it reaches past its own call, and makes
content of its value there.

It must stay small, for each process imports it, and must never catch an ordinary error: `executor.py`, which calls
it, tells those to the model.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, Final

from anabranch.content import cut, to_content

_STREAMS: Final = (0, 1, 2)


class Escaped(Exception):
    """What the function raised was an order to the interpreter: its name and text."""


def encoded(function: Callable[[], Any], max_bytes: int) -> Any:
    """What `function` returns, as the content of a result: for that, code of its own may run, such as a generator in a
    list. What is still to be awaited is left as it is. Raises `ResultError`.
    """
    value = function()
    return value if inspect.isawaitable(value) else cut(to_content(value), max_bytes)


def contained(function: Callable[[], Any]) -> Any:
    """Call `function`. Raises `Escaped` for what would end a process, or could not be set on an asyncio future."""
    try:
        return function()
    except (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration) as error:
        name, text = type(error).__name__, str(error)
        raise Escaped(f"{name}: {text}" if text else name) from None


def alone(function: Callable[[], Any]) -> Any:
    """The same in a process that is spoken to by its standard streams: until the function is over they lead nowhere,
    also for the programs that it starts, and a fork of it that comes back here ends. Else what they write would be read
    as a result, if need be that of the next call.
    """
    process, nowhere = os.getpid(), os.open(os.devnull, os.O_RDWR)
    kept = [(stream, os.dup(stream)) for stream in _STREAMS]
    try:
        for stream in _STREAMS:
            os.dup2(nowhere, stream)
        return contained(function)
    finally:
        if os.getpid() != process:
            os._exit(0)
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)
