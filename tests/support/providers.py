"""Providers whose models fail by the clock, and a desk that submits calls of them to a thinker, in virtual time.

Responsible for: who was asked when, and what came of it an hour later. Must never: open a connection, or wait for real
time. Called by: tests of the thinker.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from anabranch import log_events as e
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.model.seam import Failure, OnEvent, OnLeft, Transient
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.reply import Reply
from anabranch.config import AgentSettings, ModelLimits
from anabranch.prices import Price
from tests.support import builders as b
from tests.support.an_hour import an_hour
from tests.support.virtual import now

SETTINGS = AgentSettings(
    model_concurrency=64,
    model_backoff_s=1.0,
    model_backoff_max_s=4.0,
    model_breaker_calls=4,
    model_breaker_open_s=20.0,
    model_breaker_lasting_s=0.0,
)
DONE = Reply("final", "end_turn", b.message([b.text("done")]), (), {"input_tokens": 10, "output_tokens": 1})
Does = Callable[[float], Exception | float | None]
"""What a model does at a time: an error, or a reply after so many seconds."""


def fails(kind: Failure = "server", until: float = 1e9, **fields: Any) -> Does:
    return lambda at: Transient(f"{kind}!", kind=kind, **fields) if at < until else None


def works(at: float) -> None:
    return None


class Provider:
    """Each model as `does` says. `asked` are the model, the run and the time of each request."""

    def __init__(self, **does: Does) -> None:
        self._does = does
        self.asked: list[tuple[str, str, float]] = []

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        model, run_id = body.decode().split()
        self.asked.append((model, run_id, now()))
        outcome = self._does[model](now())
        if isinstance(outcome, Exception):
            raise outcome
        await asyncio.sleep(outcome or 0.0)
        on_event({"type": "message_stop"})
        return DONE

    def of(self, run_id: str) -> list[str]:
        return [model for model, asked, _ in self.asked if asked == run_id]

    def times(self, model: str) -> list[float]:
        return [round(at, 3) for asked, _, at in self.asked if asked == model]


class Desk:
    def __init__(self, thinker: Thinker) -> None:
        self.thinker = thinker
        self.events: list[e.Event] = []
        self._numbers = itertools.count()

    def submit(self, count: int = 1, fallback: str | None = "other", deadline: float = 1e6) -> list[Job]:
        jobs = [self._job(f"r{next(self._numbers)}", fallback, deadline) for _ in range(count)]
        for job in jobs:
            self.thinker.submit(job)
        return jobs

    def _job(self, name: str, fallback: str | None, deadline: float) -> Job:
        context = BatchContext(name, 1, "", b.agent(model="own", fallback=fallback), True, lambda tool: None)
        request = Request(
            "0", context, deadline, f"own {name}".encode(), build=lambda found, model: f"{model} {name}".encode()
        )
        return Job("", "own", lambda: request, self.events.append, lambda *_: None, fallback=fallback)

    @property
    def replies(self) -> list[e.ModelReplied]:
        return [event for event in self.events if isinstance(event, e.ModelReplied)]

    @property
    def models(self) -> Counter[str]:
        """Who made the replies."""
        return Counter(reply.model or "own" for reply in self.replies)


def thought(
    provider: Provider, arrange: Callable[[Desk], object], settings: AgentSettings = SETTINGS,
    prices: dict[str, Price] | None = None, limits: dict[str, ModelLimits] | None = None,
) -> Desk:  # fmt: skip
    """What came of the jobs that `arrange` submits, an hour later."""
    return an_hour(lambda clockwork: Desk(Thinker(provider, settings, prices or {}, clockwork, limits or {})), arrange)
