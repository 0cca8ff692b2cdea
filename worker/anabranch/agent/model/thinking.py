"""Model calls: who may make one now, how often it is tried, and what event it ends in.

`Thinker` runs as many calls at once as the settings allow, over all models, and of each model as many as its limits let
start (`lanes.py`). A call that waits, for its model or to be tried again, takes no other model's place. Each is tried
until the run's deadline, as often as `retrying.py` allows, and of its agent's other model where the first cannot be
had; what was paid for and came to nothing is told to the log as `model.discarded` (`outcomes.py`). It knows no
partitions but which are ours: the owner gives it a `Job` and is called back with the event to append.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from anabranch import log_events as e
from anabranch.about import TOPIC
from anabranch.agent.large import Incomplete, Large
from anabranch.agent.model.breaker import Verdict
from anabranch.agent.model.granting import Grants
from anabranch.agent.model.jobs import Call, Job, Trying
from anabranch.agent.model.lanes import Lanes, ModelLane
from anabranch.agent.model.outcomes import Outcomes, too_late, usage_in
from anabranch.agent.model.retrying import RULES, Tries, pause_s
from anabranch.agent.model.seam import Hopeless, Model, Transient
from anabranch.agent.model.switching import Switching
from anabranch.agent.reply.plan import BatchContext, used_again
from anabranch.agent.reply.reply import Reply
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.agent.telemetry.traces import AgentTraces, Attempted
from anabranch.clockwork import Clockwork
from anabranch.config import AgentSettings, ModelLimits
from anabranch.prices import Price
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.store import NO_STORE, Store
from anabranch.wording import counted

log = logging.getLogger(__name__)

SOON_S: Final = 0.5
"""How long a call that may be made keeps its place while it gets what it is made of."""
_WAITED: Final = "it waited for what it is made of, and then for its turn"


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
        self._model, self._settings, self._clockwork = model, settings, clockwork
        self._large = Large(store, clockwork.now, sealing)
        self._outcomes = Outcomes(prices, self._meters, self._large, clockwork)
        self._steady = clockwork.steady
        self._lanes: Lanes[Call] = Lanes(limits, settings, self._wake_up, self._steady)
        self._switching = Switching(self._lanes, settings, self._meters, self._steady)
        self._grants = Grants(self._switching, self._meters, self._steady, self._wake_up)
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._begun: dict[Job, Trying] = {}
        self._wake = asyncio.Event()
        self._stopped = False
        self.own, self.disown = self._lanes.own, self._lanes.disown

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    @property
    def lanes(self) -> Collection[ModelLane[Call]]:
        """What waits and runs, by the limit's name."""
        return self._lanes.all

    @property
    def waiting(self) -> dict[str, int]:
        """How many calls wait for a place or for their model's limit, by its name."""
        return self._lanes.waiting

    def submit(self, job: Job) -> None:
        if self._stopped:
            return
        self._switching.first(job).line.add(job.tenant, job, job.lane)
        self._wake_up()

    def cancel(self, job: Job, why: str = "its reply is no longer wanted") -> None:
        """Make it no more. What it has used already is told."""
        if (task := self._running.get(job)) is not None:
            task.cancel(why)
        else:
            models = [job.model] if job.fallback is None else [job.model, job.fallback]
            for model in models:  # the first is "" if nobody knows the run's agent
                self._lanes.of(model).remove(job.tenant, job, job.lane)

    def has_begun(self, job: Job) -> bool:
        """Whether it is being made, and no longer waits in a line."""
        return job in self._running

    def spent(self, job: Job) -> e.ModelDiscarded | None:
        """What its attempt would be told to have used if it ended now, if anything."""
        trying = self._begun.get(job)
        return self._outcomes.so_far(trying) if trying is not None and trying.used else None

    def cancel_all(self, why: str) -> None:
        """The same of all that have begun."""
        for task in self._running.values():
            task.cancel(why)

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
        now = self._steady()
        self._lanes.take_back()
        while self._grants.out < self._settings.model_concurrency and (found := self._lanes.next(now)) is not None:
            lane, call = found
            if isinstance(call, Job):
                self._begin(lane, call, tasks)
            elif call.granted is not None and not call.granted.done():
                self._grants.give(call, now)
                call.granted.set_result(None)
            now = self._steady()
        self._lanes.watch(now)

    def _begin(self, lane: ModelLane[Call], job: Job, tasks: asyncio.TaskGroup) -> None:
        request = job.prepare()
        if request is None:
            return
        if request.incomplete is not None and self._lanes.has_many_late:
            lane.aside.append((job.tenant, job, job.lane))
            return
        now = self._steady()
        trying = Trying(job, lane, request, Tries(now), request.context, body_for=job.model)
        self._grants.give(trying, now)
        self._meters.model_wait.observe(now - job.due_at, lane.model)
        lane.begun += 1
        self._begun[job] = trying
        task = self._running[job] = tasks.create_task(self._think(trying), name="model call")
        task.add_done_callback(partial(self._ended, trying))

    def _ended(self, trying: Trying, _: asyncio.Task[None]) -> None:
        self._grants.withdraw(trying)  # what was cancelled before it asked
        del self._running[trying.job], self._begun[trying.job]
        trying.lane.begun -= 1
        self._wake_up()

    # --- one call ------------------------------------------------------------------------------------------

    async def _think(self, trying: Trying) -> None:
        context = trying.request.context
        TOPIC.set(context)
        try:
            event = await self._until_answered(trying)
        except Hopeless as error:
            event = self._outcomes.failed(trying, error.code, error.message)
        except Exception as error:
            log.exception("a model call of run %s failed inside", context.run_id)
            event = self._outcomes.failed(trying, "internal", f"{type(error).__name__}: {error}")
        trying.job.append(event)

    async def _until_answered(self, trying: Trying) -> e.Event:
        incomplete, patience_s = trying.request.incomplete, SOON_S
        while True:
            try:
                if incomplete is None:
                    return await self._attempt(trying)
                if (event := await self._completed(trying, incomplete, patience_s)) is not None:
                    return event
            except Transient as error:
                error.__traceback__ = error.__cause__ = error.__context__ = None  # they hold what was fetched
                await self._again(trying, error)
            else:
                patience_s *= 2
                await self._granted(trying, False, _WAITED)

    async def _completed(self, trying: Trying, incomplete: Incomplete, patience_s: float) -> e.Event | None:
        """One attempt, with what it lacks; None if it cannot be made yet. Who waits for the store, or for memory, must
        not keep the model from others: what is not had soon costs the place. And who waits for a model must not keep
        memory from others: nothing of it is there between two attempts, nor for long before one.
        """
        late = asyncio.get_running_loop().call_later(patience_s, self._grants.leave, trying)
        try:
            async with self._large.completed(incomplete, trying.request.deadline) as (found, sealer):
                late.cancel()
                self._grants.come_back(trying)
                if trying.grant is None and not await self._granted_within(trying, patience_s):
                    return None
                request = trying.request
                trying.found, trying.body_for = found, ""
                trying.request = replace(request, context=replace(request.context, sealer=sealer))
                return await self._attempt(trying)
        finally:
            late.cancel()
            self._grants.come_back(trying)
            trying.found, trying.request = {}, replace(trying.request, body=b"", incomplete=incomplete)

    async def _attempt(self, trying: Trying) -> e.Event:
        context = self._ready(trying)
        try:
            reply = await self._ask(trying, context)
        except Transient as error:
            trying.tries, trying.in_a_row = trying.tries + 1, trying.in_a_row + 1
            trying.broken += error.broken
            self._outcomes.came_to_nothing(trying, context, error.usage, error.reason, error.failure)
            if trying.broken >= self._settings.model_broken_max:
                broken = counted(trying.broken, "reply", "replies")
                raise Hopeless("model_unavailable", f"{broken} could not be used; the last: {error.reason}") from None
            raise
        except Hopeless as error:
            self._outcomes.came_to_nothing(trying, context, error.usage, error.message, "rejected")
            raise
        except asyncio.CancelledError as error:
            if trying.used:
                why = str(error.args[0]) if error.args else "its worker stopped"
                self._outcomes.came_to_nothing(trying, context, trying.used, why, "ended")
            raise
        return await self._outcomes.replied(trying, context, reply)

    def _ready(self, trying: Trying) -> BatchContext:
        """The next attempt, for the model whose lane it is in."""
        model, request = trying.lane.model, trying.request
        if trying.body_for != model and request.build is not None:
            trying.request = request = replace(request, body=request.build(trying.found, model), incomplete=None)
        trying.body_for, trying.used = model, {}
        trying.began = (self._clockwork.now(), self._steady())
        agent = request.context.agent
        agent = agent if agent.model == model else replace(agent, model=model)
        trying.context = request.context.of_attempt(self._clockwork.new_id(), agent)
        return trying.context

    async def _traced(self, traces: AgentTraces, trying: Trying, context: BatchContext) -> Reply:
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

    async def _asked(self, trying: Trying, context: BatchContext) -> Reply:
        """One attempt, and what it tells of the model and its limits; of one that may not be made, nothing."""
        body, lane, grant, job = trying.request.body, trying.lane, trying.grant, trying.job
        if (fitting := trying.request.fitting) is not None:  # what the money and the context that are left allow
            body = fitting.fitted(body, context.agent.model, self._clockwork.now())
        assert grant is not None, "an attempt is granted before it is made"
        budget, attempt = lane.budget, grant.attempt
        usage: dict[str, Any] | None = None
        verdict: Verdict = "unknown"
        outcome = "ended"

        def on_event(event: dict[str, Any]) -> None:
            budget.accepted(attempt)
            trying.used.update(usage_in(event))
            if job.on_event is not None:
                job.on_event(context, event)

        try:
            reply = await self._model.reply(body, on_event, lambda left: budget.told(attempt, left, self._steady()))
            budget.accepted(attempt)
            if (again := used_again(reply.calls, context)) is not None:
                raise Transient(f"the reply uses the id {again!r} of an earlier call", broken=True, usage=reply.usage)
            usage, outcome, verdict = reply.usage, "ok", "well"
            return reply
        except Transient as error:
            usage, verdict = error.usage or {}, RULES[error.failure].verdict
            outcome = "refused" if error.slow_down else "error"
            if error.slow_down:
                budget.refused(attempt, error.retry_after, self._steady(), RULES[error.failure].charged)
                self._switching.turn_who_waits(lane)
            raise
        except Hopeless as error:
            usage, outcome, verdict = error.usage or {}, "rejected", "there"
            self._outcomes.rejected(trying, error)
            raise
        finally:
            self._meters.model_calls.count(lane.model, outcome)
            self._meters.model_duration.observe(self._steady() - trying.began[1], lane.model)
            self._grants.settle(trying, grant, usage, verdict)
            if job.on_end is not None:
                job.on_end(context, outcome == "ok")

    # --- between two attempts ------------------------------------------------------------------------------------

    async def _again(self, trying: Trying, error: Transient) -> None:
        """Wait until the next attempt may be made, of this model or of the other one."""
        left = trying.request.deadline - self._clockwork.now()
        charged, chance = RULES[error.failure].charged, self._clockwork.chance
        pause = pause_s(error, trying.tries, left, self._settings, chance)
        if self._switching.turn(trying, self._switching.why(trying, pause, charged)):
            error.retry_after = None  # it was said of the other model
            is_new = trying.lane.model not in trying.asked
            pause = 0.0 if is_new else pause_s(error, trying.tries, left, self._settings, chance)
        if pause is None:
            raise too_late(trying, error.reason)
        self._outcomes.waits(trying, pause, error.reason)
        await asyncio.sleep(pause)
        self._meters.model_retries.count(trying.lane.model, error.failure)
        self._switching.turn(trying, self._switching.away(trying.lane))
        await self._granted(trying, charged, error.reason)

    async def _granted_within(self, trying: Trying, patience_s: float) -> bool:
        """Whether the turn of the next attempt came that soon, of the model that can be had."""
        self._switching.turn(trying, self._switching.away(trying.lane))
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._granted(trying, False, _WAITED)
        return trying.grant is not None

    async def _granted(self, trying: Trying, charged: bool, why: str) -> None:
        """Wait for the turn of the next attempt, which waits because of `why`. Raises `Hopeless` at the deadline."""
        job, lane, since = trying.job, trying.lane, self._steady()
        granted = trying.granted = asyncio.get_running_loop().create_future()
        if charged and lane.model in trying.asked:
            lane.kept.append((job.tenant, trying, job.lane))
        else:
            lane.line.add_begun(job.tenant, trying, job.lane)
        self._wake_up()
        try:
            async with asyncio.timeout(trying.request.deadline - self._clockwork.now()):
                await granted
            self._meters.model_wait.observe(self._steady() - since, trying.lane.model)
        except TimeoutError:
            raise too_late(trying, why) from None
        finally:
            trying.lane.remove(job.tenant, trying, job.lane)
