"""Model calls: who may make one now, how often it is tried, and what event it ends in.

`Thinker` runs as many calls at once as the settings allow, over all models, and of each model as many as its limits let
start (`lanes.py`). A call that waits, for its model or to be tried again, takes no other model's place. Each is tried
until the run's deadline; what was paid for and could not be used is told to the log as `model.discarded`. It knows no
partitions but which are ours: the owner gives it a `Job` and is called back with the event to append.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from anabranch import messages as m
from anabranch.about import TOPIC
from anabranch.agent.budget import Attempt
from anabranch.agent.fitting import BUDGET, Fitting
from anabranch.agent.lanes import Lane, Lanes, steady_time
from anabranch.agent.large import HEADER_BYTES, REPLY_BYTES, Incomplete, Large
from anabranch.agent.meters import AgentMeters
from anabranch.agent.model import Hopeless, Left, Model, Transient
from anabranch.agent.plan import BatchContext, plan, used_again
from anabranch.agent.reply import Reply
from anabranch.agent.traces import AgentTraces, Attempted
from anabranch.bodies import dump
from anabranch.config import AgentSettings, ModelLimits
from anabranch.meters import Counter
from anabranch.prices import Price, price_of, usage_of
from anabranch.sealing import NO_SEALING, Sealing
from anabranch.store import NO_STORE, Store

log = logging.getLogger(__name__)

WARN_AGAIN_S: Final = 60.0
"""How often the log warns of a run whose model keeps failing."""


@dataclass(frozen=True, slots=True)
class Request:
    """A model call, ready to be made, or `incomplete`. `deadline` is epoch seconds."""

    life: str
    context: BatchContext
    deadline: float
    body: bytes
    incomplete: Incomplete | None = None
    fitting: Fitting | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A model call that is due, since `due_at` by the loop's clock. `prepare` is asked when its time has come, and may
    say that it no longer is.
    """

    tenant: str
    model: str
    prepare: Callable[[], Request | None]
    append: Callable[[m.Event], None]
    on_event: Callable[[BatchContext, dict[str, Any]], None]
    due_at: float = field(default_factory=steady_time)
    lane: m.Lane = "interactive"


@dataclass(frozen=True, slots=True)
class Clockwork:
    """What is not pure: the time in epoch seconds, ids, chance, what this process is called. A simulation puts in its
    own."""

    now: Callable[[], float]
    new_id: Callable[[], str]
    chance: random.Random
    process: str = "process"
    steady: Callable[[], float] = steady_time
    """A time that is never set back, in seconds: the loop's."""


@dataclass(slots=True, eq=False)
class _Trying:
    """A call that has begun. `attempt` is None between two of its attempts, while `granted` is to give the next."""

    job: Job
    lane: Lane[Job | _Trying]
    request: Request
    attempt: Attempt | None
    granted: asyncio.Future[None] | None = None
    tries: int = 0
    broken: int = 0
    warned_at: float | None = None


class Thinker:
    """Makes model calls. `run` must be running for it to do anything.

    `limits` are those of models, by name or pattern; this worker has the share of them that `own` says.
    """

    def __init__(
        self,
        model: Model,
        settings: AgentSettings,
        prices: Mapping[str, Price],
        clockwork: Clockwork,
        limits: Mapping[str, ModelLimits],
        store: Store = NO_STORE,
        meters: AgentMeters | None = None,
        traces: AgentTraces | None = None,
        sealing: Sealing = NO_SEALING,
    ) -> None:
        self._meters, self._traces = meters or AgentMeters(), traces
        self._ask = self._asked if traces is None else partial(self._traced, traces)
        self._model, self._settings, self._prices, self._clockwork = model, settings, prices, clockwork
        self._large = Large(store, clockwork.now, sealing)
        self._steady = clockwork.steady
        self._lanes: Lanes[Job | _Trying] = Lanes(
            limits, settings.model_concurrency, self._wake_up, self._steady, settings.interactive_weight
        )
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._unpriced: set[str] = set()
        self._attempts = 0
        self._wake = asyncio.Event()
        self._stopped = False
        self.own, self.disown = self._lanes.own, self._lanes.disown

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    @property
    def lanes(self) -> Collection[Lane[Job | _Trying]]:
        """What waits and runs, by the limit's name."""
        return self._lanes.all

    @property
    def waiting(self) -> dict[str, int]:
        """How many calls wait for a place or for their model's limit, by its name."""
        return self._lanes.waiting

    def submit(self, job: Job) -> None:
        if self._stopped:
            return
        self._lanes.of(job.model).line.add(job.tenant, job, job.lane)
        self._wake_up()

    def cancel(self, job: Job) -> None:
        """Its reply is no longer wanted."""
        if (task := self._running.get(job)) is not None:
            task.cancel()
        else:
            self._lanes.of(job.model).line.remove(job.tenant, job, job.lane)

    def stop(self) -> None:
        """Start nothing more; what runs goes on."""
        self._stopped = True
        self._lanes.drop_fresh()

    async def idle(self) -> None:
        """Wait until no call is running."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def run(self) -> None:
        """Start calls as they fit in, for ever. Whatever a call raises that is not its own failure ends this."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                self._start_what_fits(tasks)
                await self._wake.wait()

    def _wake_up(self) -> None:
        self._wake.set()

    # --- starting ----------------------------------------------------------------------------------------------

    def _start_what_fits(self, tasks: asyncio.TaskGroup) -> None:
        while self._attempts < self._settings.model_concurrency and (found := self._lanes.next()) is not None:
            lane, call = found
            if isinstance(call, Job):
                self._begin(lane, call, tasks)
            elif call.granted is not None and not call.granted.done():
                call.attempt = self._attempt(lane, call.request)
                call.granted.set_result(None)
        self._lanes.watch()

    def _begin(self, lane: Lane[Job | _Trying], job: Job, tasks: asyncio.TaskGroup) -> None:
        request = job.prepare()
        if request is None:
            return
        trying = _Trying(job, lane, request, self._attempt(lane, request))
        self._meters.model_wait.observe(self._steady() - job.due_at, request.context.agent.model)
        lane.begun += 1
        task = self._running[job] = tasks.create_task(self._think(trying), name="model call")
        task.add_done_callback(partial(self._ended, trying))

    def _attempt(self, lane: Lane[Job | _Trying], request: Request) -> Attempt:
        self._attempts += 1
        size = len(request.body)
        if request.incomplete is not None:
            size += request.incomplete.size
        return lane.budget.start(size, request.context.agent.max_tokens, self._steady())

    def _settle(self, trying: _Trying, usage: dict[str, Any] | None) -> None:
        """An attempt is over. Without `usage` nobody knows what it has used."""
        if trying.attempt is not None:
            self._attempts -= 1
            trying.lane.budget.ended(trying.attempt, usage, self._steady())
            trying.attempt = None
            self._wake_up()

    def _ended(self, trying: _Trying, _: asyncio.Task[None]) -> None:
        self._settle(trying, {})  # what was cancelled before it asked
        del self._running[trying.job]
        trying.lane.begun -= 1
        self._wake_up()

    async def _again(self, trying: _Trying) -> None:
        """Wait for the turn of the next attempt."""
        granted = trying.granted = asyncio.get_running_loop().create_future()
        trying.lane.line.add_begun(trying.job.tenant, trying, trying.job.lane)
        self._wake_up()
        since = self._steady()
        try:
            await granted
            self._meters.model_wait.observe(self._steady() - since, trying.request.context.agent.model)
        finally:
            trying.lane.line.remove(trying.job.tenant, trying, trying.job.lane)

    # --- one call ------------------------------------------------------------------------------------------

    async def _think(self, trying: _Trying) -> None:
        request = trying.request
        TOPIC.set(request.context)
        try:
            if request.incomplete is None:
                event = await self._until_answered(trying)
            else:
                async with self._large.completed(request.incomplete, request.deadline) as (body, sealer):
                    context = replace(request.context, sealer=sealer)
                    trying.request = replace(request, body=body, incomplete=None, context=context)
                    event = await self._until_answered(trying)
        except Hopeless as error:
            event = self._failed(trying.request, error.code, error.message)
        except Exception as error:
            log.exception("a model call of run %s failed inside", request.context.run_id)
            event = self._failed(trying.request, "internal", f"{type(error).__name__}: {error}")
        trying.job.append(event)

    async def _until_answered(self, trying: _Trying) -> m.Event:
        job, request = trying.job, trying.request
        while True:
            context = replace(request.context, attempt=self._clockwork.new_id())
            try:
                return await self._replied(job, request, context, await self._ask(trying, context))
            except Transient as error:
                trying.tries, trying.broken = trying.tries + 1, trying.broken + error.broken
                if error.usage:
                    job.append(self._discarded(request, context, error.usage, error.reason))
                if trying.broken >= self._settings.model_broken_max:
                    message = f"{trying.broken} replies could not be used; the last: {error.reason}"
                    raise Hopeless("model_unavailable", message) from None
                await self._pause(trying, error)
                self._meters.model_retries.count(context.agent.model, _kind(error))
                await self._again(trying)
            except Hopeless as error:
                if error.usage:
                    job.append(self._discarded(request, context, error.usage, error.message))
                raise

    async def _traced(self, traces: AgentTraces, trying: _Trying, context: BatchContext) -> Reply:
        """One attempt, of which the run's trace tells."""
        waited_s = self._steady() - trying.job.due_at if trying.tries == 0 else None
        made = Attempted(context, trying.request.life, trying.tries + 1, traces.now(), trying.request.body, waited_s)
        try:
            reply = await self._asked(trying, context)
        except BaseException as error:
            traces.attempted(made, None, error)
            raise
        traces.attempted(made, reply, None)
        return reply

    async def _asked(self, trying: _Trying, context: BatchContext) -> Reply:
        """One attempt, and what it tells of the model's limits."""
        budget, attempt = trying.lane.budget, trying.attempt
        assert attempt is not None, "an attempt is granted before it is made"
        usage: dict[str, Any] | None = None
        began, outcome = self._steady(), "ended"

        def on_event(event: dict[str, Any]) -> None:
            budget.accepted(attempt)
            trying.job.on_event(context, event)

        def on_left(left: Left) -> None:
            budget.told(attempt, left, self._steady())

        try:
            reply = await self._model.reply(self._fitted(trying.request, context), on_event, on_left)
            budget.accepted(attempt)
            if (again := used_again(reply.calls, context)) is not None:
                raise Transient(f"the reply uses the id {again!r} of an earlier call", broken=True, usage=reply.usage)
            usage, outcome = reply.usage, "ok"
            return reply
        except (Transient, Hopeless) as error:
            usage, outcome = error.usage or {}, _outcome(error)
            if isinstance(error, Transient) and error.slow_down:
                budget.refused(attempt, error.retry_after, self._steady())
            raise
        finally:
            model = context.agent.model
            self._meters.model_calls.count(model, outcome)
            self._meters.model_duration.observe(self._steady() - began, model)
            self._settle(trying, usage)

    def _fitted(self, request: Request, context: BatchContext) -> bytes:
        """What the money and the context that are left allow. Raises `Hopeless`."""
        if request.fitting is None:
            return request.body
        return request.fitting.fitted(request.body, context.agent.model, self._clockwork.now())

    async def _pause(self, trying: _Trying, error: Transient) -> None:
        """Full jitter, or what the provider asks for. A run fails only if that would pass its deadline."""
        first, tries = self._settings.model_backoff_s, trying.tries
        pause = self._clockwork.chance.uniform(
            0, min(self._settings.model_backoff_max_s, first * 2 ** min(tries - 1, 16))
        )
        left = trying.request.deadline - self._clockwork.now()
        if pause >= left > first:
            pause = left / 2  # there is time for another try
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if pause >= left:
            message = f"the model cannot be had before the run's deadline, after {tries} tries: {error.reason}"
            raise Hopeless("model_unavailable", message) from None
        self._say(trying, pause, error.reason)
        await asyncio.sleep(pause)

    def _say(self, trying: _Trying, pause: float, reason: str) -> None:
        """The first failure, and once a minute that it goes on."""
        run_id, now = trying.request.context.run_id, self._steady()
        if trying.warned_at is None:
            trying.warned_at = now
            log.info("run %s: the model is tried again in %.1f s: %s", run_id, pause, reason)
        elif now - trying.warned_at >= WARN_AGAIN_S:
            trying.warned_at = now
            log.warning("run %s: the model has failed %d times, the last with: %s", run_id, trying.tries, reason)
        else:
            log.debug("run %s: the model is tried again in %.1f s: %s", run_id, pause, reason)

    # --- events ----------------------------------------------------------------------------------------------

    async def _replied(self, job: Job, request: Request, context: BatchContext, reply: Reply) -> m.Event:
        planned = plan(reply.calls, context)
        plan_json = dump(planned)
        body = await self._large.body_of(reply, job.tenant or None, request.deadline, context.sealer)
        if len(body) > REPLY_BYTES or len(plan_json) > HEADER_BYTES:
            size = len(reply.body) + len(plan_json)
            mend = "lower the agent's max_tokens, or give the workers a store (ANABRANCH_STORE)"
            raise Hopeless("internal", f"the reply of {size} bytes does not fit into the log: {mend}", reply.usage)
        return m.ModelReplied(
            context.run_id,
            request.life,
            context.turn,
            context.attempt,
            reply.outcome,
            planned,
            self._usage(context.agent.model, reply.usage, self._meters.tokens),
            body,
            {call.tool_use_id: call.input for call in reply.calls} if body is reply.body else None,
            plan_json,
            code=BUDGET if reply.stop_reason == "max_tokens" and _is_cut(request) else None,
        )

    def _failed(self, request: Request, code: str, message: str) -> m.Event:
        error, sealer = m.RunError(code, message[:4000]), request.context.sealer
        if sealer is not None:  # it may quote what was said
            error = m.RunError(code, m.SEALED, sealer.seal("error", dump(error.message)))
        return m.ModelFailed(
            request.context.run_id, request.life, request.context.turn, self._clockwork.new_id(), error
        )

    def _discarded(self, request: Request, context: BatchContext, raw: dict[str, Any], reason: str) -> m.Event:
        usage = self._usage(context.agent.model, raw, self._meters.discarded)
        if request.fitting is not None:
            request.fitting.spend(usage)
        reason = reason if context.sealer is None else m.SEALED
        return m.ModelDiscarded(context.run_id, request.life, context.turn, context.attempt, usage, reason[:1000])

    def _usage(self, model: str, raw: dict[str, Any], tokens: Counter) -> m.Usage:
        usage = usage_of(raw, self._price_of(model))
        counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens)
        for kind, number in zip(_KINDS, (*counts, usage.cache_creation_input_tokens), strict=True):
            if number:
                tokens.add(number, model, kind)
        if usage.cost_usd is not None:
            self._meters.cost.add(usage.cost_usd, model)
        return usage

    def _price_of(self, model: str) -> Price | None:
        """None is said once: a cost that nobody knows is not to be taken for none."""
        price = price_of(model, self._prices)
        if price is None and model not in self._unpriced:
            self._unpriced.add(model)
            log.warning("model %r has no price, so nobody knows what its runs cost: set one in [prices]", model)
        return price


def _is_cut(request: Request) -> bool:
    return request.fitting is not None and request.fitting.cut is not None


def _kind(error: Transient) -> str:
    return "refused" if error.slow_down else "broken" if error.broken else "error"


def _outcome(error: Transient | Hopeless) -> str:
    if isinstance(error, Hopeless):
        return "rejected"
    return "refused" if error.slow_down else "error"


_KINDS: Final = ("input", "output", "cache_read", "cache_creation")
