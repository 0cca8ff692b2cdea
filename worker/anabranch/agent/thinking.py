"""Model calls: who may make one now, how often it is tried, and what event it ends in.

`Thinker` runs as many calls at once as the settings allow, fair between tenants. Each is tried until the
run's deadline; what was paid for and could not be used is told to the log as `model.discarded`. It knows no
partitions: the owner gives it a `Job` and is called back with the event to append.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from anabranch import messages as m
from anabranch.agent.large import HEADER_BYTES, REPLY_BYTES, Incomplete, Large
from anabranch.agent.model import Hopeless, Model, Transient
from anabranch.agent.plan import BatchContext, plan
from anabranch.agent.reply import Reply
from anabranch.bodies import dump
from anabranch.config import AgentSettings, Price
from anabranch.store import NO_STORE, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A model call, ready to be made, or `incomplete`. `deadline` is epoch seconds."""

    life: str
    context: BatchContext
    deadline: float
    body: bytes
    incomplete: Incomplete | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A model call that is due. `prepare` is asked when its time has come, and may say that it no longer is."""

    tenant: str
    prepare: Callable[[], Request | None]
    append: Callable[[m.Event], None]
    on_event: Callable[[Request, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Clockwork:
    """What is not pure: the time in epoch seconds, ids, chance. A simulation puts in its own."""

    now: Callable[[], float]
    new_id: Callable[[], str]
    chance: random.Random


class Thinker:
    """Makes model calls. `run` must be running for it to do anything."""

    def __init__(
        self,
        model: Model,
        settings: AgentSettings,
        prices: dict[str, Price],
        clockwork: Clockwork,
        store: Store = NO_STORE,
    ) -> None:
        self._model, self._settings, self._prices, self._clockwork = model, settings, prices, clockwork
        self._large = Large(store, clockwork.now)
        self._waiting: dict[str, deque[Job]] = {}
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopped = False

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> None:
        self._waiting.setdefault(job.tenant, deque()).append(job)
        self._wake.set()

    def cancel(self, job: Job) -> None:
        """Its reply is no longer wanted."""
        if (task := self._running.get(job)) is not None:
            task.cancel()
        elif (queue := self._waiting.get(job.tenant)) is not None and job in queue:
            queue.remove(job)
            if not queue:
                del self._waiting[job.tenant]

    def stop(self) -> None:
        """Start nothing more; what runs goes on."""
        self._stopped = True
        self._waiting.clear()

    async def idle(self) -> None:
        """Wait until no call is running."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def run(self) -> None:
        """Start calls as they fit in, for ever. Whatever a call raises that is not its own failure ends this."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                while len(self._running) < self._settings.model_concurrency and (job := self._next()) is not None:
                    task = tasks.create_task(self._think(job), name="model call")
                    self._running[job] = task
                    task.add_done_callback(lambda _, job=job: self._ended(job))  # type: ignore[misc]
                self._wake.clear()
                await self._wake.wait()

    def _ended(self, job: Job) -> None:
        self._running.pop(job, None)
        self._wake.set()

    def _next(self) -> Job | None:
        """The tenants take turns."""
        if self._stopped or not self._waiting:
            return None
        tenant, queue = next(iter(self._waiting.items()))
        del self._waiting[tenant]
        job = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        return job

    # --- one call ------------------------------------------------------------------------------------------

    async def _think(self, job: Job) -> None:
        request = job.prepare()
        if request is None:
            return
        try:
            if request.incomplete is None:
                event = await self._until_answered(job, request)
            else:
                async with self._large.completed(request.incomplete, request.deadline) as body:
                    event = await self._until_answered(job, replace(request, body=body))
        except Hopeless as error:
            event = self._failed(request, error.code, error.message)
        except Exception as error:
            log.exception("a model call of run %s failed inside", request.context.run_id)
            event = self._failed(request, "internal", f"{type(error).__name__}: {error}")
        job.append(event)

    async def _until_answered(self, job: Job, request: Request) -> m.Event:
        tries = broken = 0
        while True:
            context = replace(request.context, attempt=self._clockwork.new_id())
            try:
                told = partial(job.on_event, replace(request, context=context))
                reply = await self._model.reply(request.body, told)
                return await self._replied(job, request, context, reply)
            except Transient as error:
                tries, broken = tries + 1, broken + error.broken
                if error.usage:
                    job.append(self._discarded(request, context, error.usage, error.reason))
                if broken >= self._settings.model_broken_max:
                    message = f"{broken} replies could not be used; the last: {error.reason}"
                    raise Hopeless("model_unavailable", message) from None
                await self._pause(request, error, tries)
            except Hopeless as error:
                if error.usage:
                    job.append(self._discarded(request, context, error.usage, error.message))
                raise

    async def _pause(self, request: Request, error: Transient, tries: int) -> None:
        """Full jitter, or what the provider asks for; never past the deadline."""
        longest = min(self._settings.model_backoff_max_s, self._settings.model_backoff_s * 2 ** min(tries - 1, 16))
        pause = self._clockwork.chance.uniform(0, longest)
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if self._clockwork.now() + pause >= request.deadline:
            message = f"the model cannot be had before the run's deadline, after {tries} tries: {error.reason}"
            raise Hopeless("model_unavailable", message) from None
        log.info("run %s: the model is tried again in %.1f s: %s", request.context.run_id, pause, error.reason)
        await asyncio.sleep(pause)

    # --- events ----------------------------------------------------------------------------------------------

    async def _replied(self, job: Job, request: Request, context: BatchContext, reply: Reply) -> m.Event:
        planned = plan(reply.calls, context)
        plan_bytes = len(dump(planned))
        body = await self._large.body_of(reply, job.tenant or None, request.deadline)
        if len(body) > REPLY_BYTES or plan_bytes > HEADER_BYTES:
            size = len(reply.body) + plan_bytes
            mend = "lower the agent's max_tokens, or give the workers a store (ANABRANCH_STORE)"
            raise Hopeless("internal", f"the reply of {size} bytes does not fit into the log: {mend}")
        return m.ModelReplied(
            context.run_id,
            request.life,
            context.turn,
            context.attempt,
            reply.outcome,
            planned,
            self._usage(context.agent.model, reply.usage),
            body,
        )

    def _failed(self, request: Request, code: str, message: str) -> m.Event:
        error = m.RunError(code, message[:4000])
        return m.ModelFailed(
            request.context.run_id, request.life, request.context.turn, self._clockwork.new_id(), error
        )

    def _discarded(self, request: Request, context: BatchContext, raw: dict[str, Any], reason: str) -> m.Event:
        usage = self._usage(context.agent.model, raw)
        return m.ModelDiscarded(context.run_id, request.life, context.turn, context.attempt, usage, reason[:1000])

    def _usage(self, model: str, raw: dict[str, Any]) -> m.Usage:
        return priced(raw, self._prices.get(model))


def priced(raw: dict[str, Any], price: Price | None) -> m.Usage:
    """The provider's usage with its cost. Without a price the cost is 0."""
    counts = [_count(raw.get(name)) for name in _COUNTED]
    cost = 0.0
    if price is not None:
        rates = (price.input, price.output, price.cache_read, price.cache_creation)
        cost = sum(count * rate for count, rate in zip(counts, rates, strict=True)) / 1e6
    return m.Usage(counts[0], counts[1], counts[2], counts[3], round(cost, 9))


_COUNTED: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0
