"""The seam to a provider: one call of its model, and the two ways in which it can fail.

`anthropic_model.py` implements it; `thinking.py` calls it, and retries. Imports no provider's library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from anabranch.agent.reply import Reply

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Transient(Exception):
    """Worth another try, after `retry_after` seconds if the provider named them."""

    reason: str
    retry_after: float | None = None
    broken: bool = False
    usage: dict[str, Any] | None = None


@dataclass(eq=False)
class Hopeless(Exception):
    """No repetition cures it; `code` is the run's `error.code`."""

    code: str
    message: str
    usage: dict[str, Any] | None = None


class Model(Protocol):
    """What the agent role needs of a provider."""

    async def reply(self, body: bytes, on_event: OnEvent) -> Reply:
        """One attempt. Raises `Transient` or `Hopeless`."""
        ...
