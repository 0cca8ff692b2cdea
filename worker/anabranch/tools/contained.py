"""Runs a tool's function in a thread or another process so that nothing of it reaches past its own call, and makes
content of its value there.

It must stay small, for each process imports it, and must never catch an ordinary error: `executor.py`, which calls
it, tells those to the model.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from io import FileIO
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


class _Elsewhere:
    """Whoever unpickles it speaks to us by other files than its standard streams from then on."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _speak_elsewhere, ()


ELSEWHERE: Final = _Elsewhere()


@cache
def _speak_elsewhere() -> None:
    """By copies of them, for as long as the process lives."""
    for stream, mode in ((sys.__stdin__, "rb"), (sys.__stdout__, "wb")):
        assert stream is not None, "we are spoken to by it"
        file: Any = getattr(stream.buffer, "raw", stream.buffer)  # of which there may be none around it
        FileIO.__init__(file, os.dup(file.fileno()), mode, closefd=False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in _STREAMS:
        os.dup2(nowhere, number)
    os.close(nowhere)


def alone(_: _Elsewhere | None, function: Callable[[], Any]) -> Any:
    """The same in a process that is spoken to by its standard streams: these lead nowhere, also for the modules that
    are imported for `function` (so it stands behind `ELSEWHERE`), for threads that outlive it and for the programs that
    it starts; and a fork of it that comes back here ends. Else what they write would be read as a result, if need be
    that of the next call.
    """
    process = os.getpid()
    try:
        return contained(function)
    finally:
        if os.getpid() != process:
            os._exit(0)
