"""The seam to a provider: one call of its model, the two ways in which it can fail, and what it says is left.

`anthropic_model.py` implements it; `thinking.py` calls it, and retries. Imports no provider's library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from anabranch.agent.reply.reply import Reply
from anabranch.values import frozen
from anabranch.wording import writable


@frozen()
class Quota:
    """One of a model's limits a minute, and what is left of it now, for the whole organisation; None: not said."""

    limit: float | None = None
    remaining: float | None = None


@frozen()
class Left:
    """What a provider said with one response."""

    requests: Quota = Quota()
    input_tokens: Quota = Quota()
    output_tokens: Quota = Quota()


OnEvent = Callable[[dict[str, Any]], None]
OnLeft = Callable[[Left], None]
"""Is told when the provider has accepted or refused a request, if it says what is left."""


Failure = Literal["rate_limit", "overload", "server", "transport", "broken", "silence", "conflict"]
"""The classes of what is worth another try: a limit (429), an overload (529), an error inside the provider (5xx), no
connection, a reply that cannot be used, a stream that says nothing, and what happens to clash (408, 409).
"""


@dataclass(eq=False)
class Transient(Exception):
    """Worth another try, after `retry_after` seconds if the provider named them.

    `slow_down`: it was refused because of a limit or an overload, so that other calls would be, too. Without a `kind`
    it is what `broken` and `slow_down` say, or else the provider's error.
    """

    reason: str
    retry_after: float | None = None
    broken: bool = False
    usage: dict[str, Any] | None = None
    slow_down: bool = False
    kind: Failure | None = None

    def __post_init__(self) -> None:
        self.reason = writable(self.reason)  # it goes into the log, and a gateway may cut it in a character

    @property
    def failure(self) -> Failure:
        """Its class."""
        return self.kind or ("broken" if self.broken else "rate_limit" if self.slow_down else "server")


@dataclass(eq=False)
class Hopeless(Exception):
    """No repetition cures it; `code` is the run's `error.code`."""

    code: str
    message: str
    usage: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.message = writable(self.message)


class Model(Protocol):
    """What the agent role needs of a provider."""

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        """One attempt. Raises `Transient` or `Hopeless`."""
        ...
