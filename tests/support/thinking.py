"""A thinker with a scripted model, in virtual time, and a desk that keeps what it appends.

Responsible for: jobs as an owner would submit them. Must never: open a connection, or wait for real time. Called by:
tests of the thinker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from anabranch import log_events as e
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.model.seam import OnEvent, OnLeft
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.reply import Reply
from anabranch.agent.telemetry.traces import AgentTraces
from anabranch.clockwork import Clockwork
from anabranch.config import AgentSettings
from anabranch.spans import Traces
from anabranch.store import NO_STORE, Store
from anabranch.topics import Namespace
from tests.support import builders as b
from tests.support.an_hour import an_hour
from tests.support.virtual import now

SETTINGS = AgentSettings(model_concurrency=2, model_broken_max=3, model_backoff_s=1.0, model_backoff_max_s=8.0)
DONE = Reply("final", "end_turn", b.message([b.text("done")]), (), {"input_tokens": 10})
Step = Reply | Exception | float


class Script:
    """Does what it is told, one step a call: a reply, an error, or a pause and then a reply."""

    def __init__(self, *steps: Step) -> None:
        self.steps, self.asked = list(steps), []  # type: ignore[var-annotated]
        self.at_once = self.most = 0

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        self.asked.append((body.decode(), now()))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            step = self.steps.pop(0) if self.steps else DONE
            if isinstance(step, float):
                await asyncio.sleep(step)
                step = DONE
            if isinstance(step, Exception):
                raise step
            on_event({"type": "message_stop"})
            return step
        finally:
            self.at_once -= 1


class Desk:
    """Submits jobs, and keeps what is appended with its time."""

    def __init__(self, thinker: Thinker) -> None:
        self.thinker, self.appended = thinker, []  # type: ignore[var-annotated]
        self.heard: list[str] = []

    def job(
        self, name: str = "r", tenant: str = "", deadline: float = 1000.0, wanted: bool = True, model: str = "m",
        trace: str | None = None, used: frozenset[str] = frozenset(),
    ) -> Job:  # fmt: skip
        context = BatchContext(name, 1, "", b.agent(), True, lambda tool: None, trace=trace, used=used)
        request = Request("0", context, deadline, name.encode())
        return Job(
            tenant,
            model,
            prepare=lambda: request if wanted else None,
            append=lambda event: self.appended.append((event, round(now(), 3))),
            on_event=lambda context, _: self.heard.append(context.attempt),
        )

    def submit(self, *args: Any, **fields: Any) -> Job:
        job = self.job(*args, **fields)
        self.thinker.submit(job)
        return job

    @property
    def events(self) -> list[e.Event]:
        return [event for event, _ in self.appended]


def thought(
    model: Script, arrange: Callable[[Desk], object], prices: Any = None, settings: Any = SETTINGS, limits: Any = None,
    traces: Traces | None = None, store: Store = NO_STORE,
) -> Desk:  # fmt: skip
    """What came of the jobs that `arrange` submits, an hour later."""

    def desk(clockwork: Clockwork) -> Desk:
        told = None if traces is None else AgentTraces(traces, Namespace("t"), now)
        return Desk(Thinker(model, settings, prices or {}, clockwork, limits or {}, store, traces=told))

    return an_hour(desk, arrange)


def at(model: Script) -> dict[str, float]:
    """When each was asked, in seconds from the start."""
    return {name: round(when, 2) for name, when in model.asked}


def only(desk: Desk) -> Any:
    (event,) = desk.events
    return event
