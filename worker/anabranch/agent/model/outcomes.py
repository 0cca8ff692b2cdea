"""What a model call comes to: the events that tell the log of it, with what was used and what that cost.

Responsible for: that all that was paid for stands in one event, and that each attempt is named in one. Must never:
decide what is tried again, or write to the log. Called by: `Thinker`.

An attempt that cost something and came to nothing is told at once, by `model.discarded`. One that cost nothing (a
refusal, say) is named by the next event of the call, whatever that is, or by an event of its own, after some seconds
and then once a minute: so an outage of the provider fills no log, and whoever looks at a run that waits sees why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.large import HEADER_BYTES, REPLY_BYTES, Large
from anabranch.agent.model.jobs import Request, Trying
from anabranch.agent.model.retrying import RULES, Nothing
from anabranch.agent.model.seam import Hopeless
from anabranch.agent.prompt.fitting import BUDGET
from anabranch.agent.reply.plan import BatchContext, plan
from anabranch.agent.reply.reply import Reply
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.bodies import dump
from anabranch.clockwork import Clockwork
from anabranch.fields import SEALED
from anabranch.meters import Counter
from anabranch.prices import Price, odd_in, price_of, usage_of
from anabranch.specs import AgentSpec
from anabranch.wording import counted

log = logging.getLogger(__name__)

WARN_AGAIN_S: Final = 60.0
"""How often the log warns of a run whose model keeps failing, and of a model that rejects requests."""


def usage_in(event: Mapping[str, Any]) -> dict[str, Any]:
    """What an event of the provider's stream says of the usage so far."""
    said = event.get("message") if event.get("type") == "message_start" else event
    usage = said.get("usage") if isinstance(said, Mapping) else None
    return {name: value for name, value in usage.items() if value is not None} if isinstance(usage, Mapping) else {}


class Outcomes:
    """See the module."""

    def __init__(self, prices: Mapping[str, Price], meters: AgentMeters, large: Large, clockwork: Clockwork) -> None:
        self._prices, self._meters, self._large, self._clockwork = prices, meters, large, clockwork
        self._known: dict[str, Price | None] = {}  # by model, as far as one was asked for
        self._odd = set[str]()  # the models of which an odd usage was told
        self._rejected: dict[str, float] = {}  # when it was told last of a model that it rejects requests

    async def replied(self, trying: Trying, context: BatchContext, reply: Reply) -> e.ModelReplied:
        """The reply with its plan. What was read is paid for, whatever becomes of it; raises `Hopeless` if the log does
        not take it.
        """
        others = trying.untold.all
        try:
            body = await self._large.body_of(reply, context.tenant or None, trying.request.deadline, context.sealer)
            return self._replied(trying, context, reply, body, (*others, self._tried(trying)) if others else ())
        except BaseException as error:
            why = error.message if isinstance(error, Hopeless) else str(error) or type(error).__name__
            self.came_to_nothing(trying, context, reply.usage, why, "unusable")
            raise

    def _replied(
        self, trying: Trying, context: BatchContext, reply: Reply, body: bytes, tried: tuple[e.Tried, ...]
    ) -> e.ModelReplied:
        request = trying.request
        planned = plan(reply.calls, context)
        plan_json = dump(planned)
        if len(plan_json) > HEADER_BYTES:  # which lies in no store
            size = f"its {counted(len(planned), 'call')} take {len(plan_json)} bytes, of {HEADER_BYTES} at most"
            mend = "have the model make fewer in a turn, or lower the agent's max_tokens"
            raise Hopeless("internal", f"the reply does not fit into the log: {size}: {mend}")
        if len(body) > REPLY_BYTES:
            size = f"{len(reply.body)} bytes, of {REPLY_BYTES} at most"
            mend = "lower the agent's max_tokens, or give the workers a store (ANABRANCH_STORE)"
            raise Hopeless("internal", f"the reply does not fit into the log: {size}: {mend}")
        return e.ModelReplied(
            context.run_id,
            request.life,
            context.turn,
            context.attempt,
            reply.outcome,
            planned,
            self._usage(context.agent, reply.usage, self._meters.tokens),
            body,
            {call.tool_use_id: call.input for call in reply.calls} if body is reply.body else None,
            plan_json,
            code=BUDGET if reply.stop_reason == "max_tokens" and _is_cut(request) else None,
            model=trying.foreign,
            tried=tried,
        )

    def failed(self, trying: Trying, code: str, message: str) -> e.ModelFailed:
        context, error = trying.request.context, m.RunError(code, message[:4000])
        if context.sealer is not None:  # it may quote what was said
            error = m.RunError(code, SEALED, context.sealer.seal("error", dump(error.message)))
        tried = trying.untold.take(self._clockwork.steady())
        return e.ModelFailed(
            context.run_id, trying.request.life, context.turn, self._clockwork.new_id(), error, tried
        )  # fmt: skip

    def came_to_nothing(
        self, trying: Trying, context: BatchContext, raw: dict[str, Any] | None, reason: str, failure: Nothing
    ) -> None:
        """Tell the log of an attempt, at once if it cost something: with what it used as far as the provider said."""
        now, trying.used = self._clockwork.steady(), {}
        trying.untold.add(self._tried(trying, failure, reason))
        if not raw and (failure not in RULES or not trying.untold.are_due(now)):
            return  # what is not tried again is named by what ends the call
        usage = self._usage(context.agent, raw, self._meters.discarded) if raw else m.Usage()
        if trying.request.fitting is not None:
            trying.request.fitting.spend(usage)
        reason = reason[:1000] if context.sealer is None else SEALED
        event = e.ModelDiscarded(
            context.run_id, trying.request.life, context.turn, context.attempt, usage, reason, trying.foreign,
            trying.untold.take(now),
        )  # fmt: skip
        trying.job.append(event)

    def waits(self, trying: Trying, pause_s: float, reason: str) -> None:
        """Tell the worker's log of the first failure, and once a minute that it goes on."""
        run_id, now = trying.request.context.run_id, self._clockwork.steady()
        if trying.warned_at is None:
            trying.warned_at = now
            log.info("run %s: the model is tried again in %.1f s: %s", run_id, pause_s, reason)
        elif now - trying.warned_at >= WARN_AGAIN_S:
            trying.warned_at = now
            times = counted(trying.tries, "time")
            log.warning("run %s: the model has failed %s, the last with: %s", run_id, times, reason)
        else:
            log.debug("run %s: the model is tried again in %.1f s: %s", run_id, pause_s, reason)

    def rejected(self, trying: Trying, error: Hopeless) -> None:
        """Tell the worker's log, once a minute for each model: with a wrong key it rejects all that it is asked."""
        model, context, now = trying.lane.model, trying.request.context, self._clockwork.steady()
        if now - self._rejected.get(model, -WARN_AGAIN_S) >= WARN_AGAIN_S:
            self._rejected[model] = now
            kind, _, _ = error.message.partition(":")  # what follows may quote the request
            said = error.message if context.sealer is None else None
            log.warning(
                "run %s: the model %s rejects its request: %s", context.run_id, model, kind, extra={"content": said}
            )

    def so_far(self, trying: Trying) -> e.ModelDiscarded:
        """The attempt that is out as if it came to nothing now. It is not counted: that comes when it does."""
        context, why = trying.context, "the run's deadline has passed"
        usage = usage_of(trying.used, self._price_of(context.agent.model))
        tried = (*trying.untold.all, self._tried(trying, "ended", why))
        return e.ModelDiscarded(
            context.run_id, trying.request.life, context.turn, context.attempt, usage, why, trying.foreign, tried
        )

    def _tried(self, trying: Trying, failure: Nothing | None = None, reason: str | None = None) -> e.Tried:
        at, began = trying.began
        took_s = round(self._clockwork.steady() - began, 3)
        if failure in ("rejected", "unusable") or trying.request.context.sealer is not None:
            reason = None  # it may quote what somebody said; the event itself says it, or has it sealed
        return e.Tried(trying.lane.model, round(at, 3), took_s, failure, reason)

    def _usage(self, agent: AgentSpec, raw: dict[str, Any], tokens: Counter) -> m.Usage:
        model = agent.model
        usage = usage_of(raw, self._price_of(model))
        if (odd := odd_in(raw)) is not None and model not in self._odd:
            self._odd.add(model)
            log.warning("the server of model %r says %s: no whole number of tokens. It is not said again", model, odd)
        cached = ("cache_read", usage.cache_read_input_tokens), ("cache_creation", usage.cache_creation_input_tokens)
        for kind, number in (("input", usage.input_tokens), ("output", usage.output_tokens), *cached):
            if number:
                tokens.add(number, model, kind)
        if usage.cost_usd is not None:
            self._meters.cost.add(usage.cost_usd, model)
            self._meters.agent_cost.add(usage.cost_usd, agent.name)
        return usage

    def _price_of(self, model: str) -> Price | None:
        """None is said once: a cost that nobody knows is not to be taken for none."""
        if model not in self._known:
            price = self._known[model] = price_of(model, self._prices)
            if price is None:
                log.warning("model %r has no price, so nobody knows what its runs cost: set one in [prices]", model)
        return self._known[model]


def _is_cut(request: Request) -> bool:
    return request.fitting is not None and request.fitting.cut is not None


def too_late(trying: Trying, why: str) -> Hopeless:
    tries = counted(trying.tries, "try", "tries")
    return Hopeless("model_unavailable", f"the model cannot be had before the run's deadline, after {tries}: {why}")
