"""Runs a tool's function in a thread or another process so that nothing of it reaches past its own call.

It must stay small, for each process imports it, and must never catch an ordinary error: `executor.py`, which calls
it, tells those to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Escaped(Exception):
    """What the function raised was an order to the interpreter: its name and text."""


def contained(function: Callable[[], Any]) -> Any:
    """Call `function`. Raises `Escaped` for what would end a process, or could not be set on an asyncio future."""
    try:
        return function()
    except (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration) as error:
        name, text = type(error).__name__, str(error)
        raise Escaped(f"{name}: {text}" if text else name) from None
