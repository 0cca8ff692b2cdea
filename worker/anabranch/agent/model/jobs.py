"""A model call, from when it is due until it is answered: values that `Thinker` works with, and nothing else.

`agent/prompt/asking.py` makes requests of runs, `calling.py` jobs of what is due; `Thinker` tries them, and
`outcomes.py` says what came of it. Must never: decide anything, or wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anabranch import log_events as e
from anabranch.agent.large import Incomplete
from anabranch.agent.model.breaker import Pass
from anabranch.agent.model.budget import Attempt
from anabranch.agent.model.lanes import ModelLane
from anabranch.agent.model.retrying import Tries
from anabranch.agent.prompt.fitting import Fitting
from anabranch.agent.reply.content import Found
from anabranch.agent.reply.plan import BatchContext
from anabranch.clockwork import steady_time
from anabranch.fields import Lane
from anabranch.values import frozen


@frozen()
class Request:
    """A model call, ready to be made, or `incomplete`. `deadline` is epoch seconds. `body` is for the agent's own
    model, and `build` makes one, of what is found in the store, for any; without it they are the same.
    """

    life: str
    context: BatchContext
    deadline: float
    body: bytes
    incomplete: Incomplete | None = None
    build: Callable[[Found, str], bytes] | None = None
    fitting: Fitting | None = None


@frozen(eq=False)
class Job:
    """A model call that is due, since `due_at` by the loop's clock. `prepare` is asked when its time has come, and may
    say that it no longer is. `fallback` may be asked instead of `model`. `on_event` hears each attempt speak, and
    `on_end` whether it gave a whole reply.
    """

    tenant: str
    model: str
    prepare: Callable[[], Request | None]
    append: Callable[[e.Event], None]
    on_event: Callable[[BatchContext, dict[str, Any]], None] | None
    due_at: float = field(default_factory=steady_time)
    lane: Lane = "interactive"
    fallback: str | None = None
    on_end: Callable[[BatchContext, bool], None] | None = None

    def other_than(self, model: str) -> str | None:
        return self.fallback if model == self.model else self.model


@frozen(eq=False)
class Grant:
    """The right to one attempt, of a model's limits and of its breaker."""

    attempt: Attempt
    passed: Pass


@dataclass(slots=True, eq=False)
class Trying:
    """A call that has begun. `grant` is None between two of its attempts, while `granted` is to give the next."""

    job: Job
    lane: ModelLane[Call]
    request: Request
    untold: Tries
    context: BatchContext  # of the attempt that is out, or was last
    grant: Grant | None = None
    found: Found = field(default_factory=dict)
    granted: asyncio.Future[None] | None = None
    is_late: bool = False  # it waits for what it is made of, and has no place meanwhile
    body_for: str = ""  # the model that the request's body is for
    asked: set[str] = field(default_factory=set)  # models
    tries: int = 0
    in_a_row: int = 0  # failures of the model that is asked now
    broken: int = 0
    used: dict[str, Any] = field(default_factory=dict)  # by the attempt that is out, so far
    began: tuple[float, float] = (0.0, 0.0)  # that attempt, by both clocks
    warned_at: float | None = None

    @property
    def foreign(self) -> str | None:
        """The model that is asked, unless it is the agent's own."""
        return None if self.lane.model == self.job.model else self.lane.model


Call = Job | Trying
"""What waits for its turn in a lane: a call that has not begun, or one that is made again."""
