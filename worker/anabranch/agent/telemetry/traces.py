"""The spans of the agent role, by the conventions for GenAI and messaging: runs, model calls, calls, publications.

Responsible for: what a span is called, what it says, and its id, which follows from the run, so that whoever tells of
it tells of the same one. Must never: decide anything, or be asked where tracing is off (None). `telling.py` says when
a run's spans are over, `Thinker` when those of model calls are, `agent/publishing.py` when those of publications.

    invoke_agent A                 a run, from its request to its end; below the client's span, if it has one
      wait <ns>.agent.requests     until it was admitted
      chat M                       one attempt of a model call
      call T                       a tool call, from when it was due until its result was in the log
        send <ns>.tool.calls.Q     its publication; what the tool worker tells is below `call T` as well
      send <ns>.agent.responses    the answer's publication; what the client tells is below it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.answer import error_of
from anabranch.agent.effects import AnswerDue, CallDue
from anabranch.agent.model.seam import Hopeless, Transient
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.reply import Reply
from anabranch.agent.state import Call, Run
from anabranch.agent.telemetry.said import instructions_of, messages_of, words
from anabranch.fields import lane_of
from anabranch.kafka.sent import Acked
from anabranch.prices import count
from anabranch.spans import (
    Attributes,
    Parent,
    Span,
    Traces,
    Value,
    contained,
    messaging,
    parse,
    sampled,
    span_id,
    trace_id,
)
from anabranch.specs import AgentSpec
from anabranch.topics import Namespace

CHAT: Final = "chat"
_KIND: Final = re.compile(r"([A-Za-z0-9_]{1,64}):")
"""What a reason begins with: a status, the provider's kind of error, or an exception's name."""


def call_header(traces: AgentTraces | None, run: Run, call_id: str) -> str | None:
    """The `traceparent` of a call: what tool workers tell is below the call's own span. Without tracing the run's."""
    trace = sampled(run.trace) if traces is not None else None
    return run.trace if traces is None or trace is None else str(trace.named(traces.call_id(call_id)))


def answer_header(traces: AgentTraces | None, run: Run, address: int) -> str | None:
    """The same of an answer: what the client tells is below its publication."""
    trace = sampled(run.trace) if traces is not None else None
    return run.trace if traces is None or trace is None else str(trace.named(traces.answer_id(run, address)))


class Attempted(NamedTuple):
    """A model call that is made: the `tries`th of its turn, with `body`, at `began` (epoch seconds)."""

    context: BatchContext
    life: str
    tries: int
    began: float
    body: bytes
    waited_s: float | None


class AgentTraces:
    """See the module. `now` gives epoch seconds."""

    def __init__(self, traces: Traces, namespace: Namespace, now: Callable[[], float]) -> None:
        self._traces, self._namespace, self.now = traces, namespace, now

    def emit(self, span: Span) -> None:
        self._traces.emit(span)

    # --- a run --------------------------------------------------------------------------------------------------

    def admitted(self, given: str | None, agent: str, run_id: str, life: str, requested_at: float) -> str:
        """The `traceparent` that a run keeps. Of a trace that begins with the run it names the run's own span."""
        if (above := parse(given)) is not None:
            return str(above._replace(sampled=self._traces.samples(_named(agent), above.trace_id, above)))
        own = trace_id("run", self._namespace.name, run_id, life, requested_at)
        found = self._traces.samples(_named(agent), own, None)
        return str(Parent(own, self._run_id(run_id, life), found))

    def _run_id(self, run_id: str, life: str) -> str:
        return span_id("run", self._namespace.name, run_id, life)

    def _of_run(self, run: Run) -> Attributes:
        request = run.opening.request
        return {
            "gen_ai.agent.name": request.agent,
            "gen_ai.agent.version": run.opening.revision,
            "gen_ai.conversation.id": run.run_id,
            "anabranch.tenant": request.tenant,
        }

    @contained
    def waited(self, run: Run, trace: Parent) -> Span:
        """From the request to its admission."""
        topic, requested_at = self._namespace.requests_of(lane_of(run.life)), run.opening.requested_at
        return Span(
            f"wait {topic}",
            "consumer",
            trace.named(span_id("wait", self._namespace.name, run.run_id, run.life)),
            self._run_id(run.run_id, run.life),
            requested_at,
            run.opened_at,
            {**messaging(topic, "wait", "receive"), "gen_ai.conversation.id": run.run_id},
        )

    @contained
    def ended(self, run: Run, trace: Parent, partition: int) -> Span:
        """The whole run."""
        assert run.ending is not None, "only a run that has ended is told of"
        own, error, failed = self._run_id(run.run_id, run.life), error_of(run), run.ending.status != "completed"
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            **self._of_run(run),
            **_usage(run.usage),
            "anabranch.run.status": run.ending.status,
            "anabranch.run.turns": len(run.turns),
            "anabranch.run.life": run.life,
            "anabranch.run.cost_usd": (run.usage + run.discarded).cost_usd or None,
            "anabranch.partition": partition,
        }
        return Span(
            _named(run.opening.request.agent or ""),
            "internal",
            trace.named(own),
            trace.span_id if trace.span_id != own else None,
            run.opening.requested_at,
            run.ending.at,
            attributes,
            error.code if error is not None and failed else None,
            error.message if error is not None else None,
        )

    @contained
    def rejected(self, note: e.RequestNoted, trace: Parent, at: float) -> Span:
        """A request that opened no run."""
        own = self._run_id(note.run_id, note.life)
        error = note.error or m.RunError("invalid_request", "")
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": note.run_id}
        return Span(
            _named(""), "internal", trace.named(own), trace.span_id, at, at, attributes, error.code, error.message
        )

    # --- model calls ----------------------------------------------------------------------------------------------

    @contained
    def attempted(self, made: Attempted, reply: Reply | None, error: BaseException | None) -> None:
        """An attempt is over, by a reply or by an error."""
        context = made.context
        if (trace := sampled(context.trace)) is None:
            return
        attributes: dict[str, Value | None] = {
            **self._of_chat(context.run_id, context.turn, context.attempt, context.agent),
            "anabranch.model.try": made.tries,
            "anabranch.model.wait_s": made.waited_s,
        }
        if reply is not None:
            attributes |= _replied(reply.body, _counted(reply.usage))
        if self._traces.content:
            attributes["gen_ai.system_instructions"] = instructions_of(made.body)
            attributes["gen_ai.input.messages"] = messages_of(made.body)
            attributes["gen_ai.output.messages"] = words(reply.body) if reply is not None else None
        self.emit(
            Span(
                f"{CHAT} {context.agent.model}",
                "client",
                trace.named(self._chat_id(context.run_id, made.life, context.turn, context.attempt)),
                self._run_id(context.run_id, made.life),
                made.began,
                self.now(),
                attributes,
                _kind_of(error) if error is not None else None,
                str(getattr(error, "reason", None) or getattr(error, "message", None) or error),
            )
        )

    @contained
    def retold(self, run: Run, event: e.ModelReplied, trace: Parent, agent: AgentSpec | None) -> Span:
        """The reply that won, as the log has it: whoever made the call may have died before it told of it."""
        if agent is not None and event.model is not None:
            agent = replace(agent, model=event.model)
        model = agent.model if agent is not None else ""
        attributes = {
            **self._of_chat(run.run_id, event.turn, event.attempt, agent),
            **_replied(event.body, event.usage),
        }
        if self._traces.content:
            attributes["gen_ai.output.messages"] = words(event.body)
        replied_at = run.turns[-1].replied_at
        return Span(
            f"{CHAT} {model}".strip(),
            "client",
            trace.named(self._chat_id(run.run_id, run.life, event.turn, event.attempt)),
            self._run_id(run.run_id, run.life),
            min(run.owed_at, replied_at),
            replied_at,
            attributes,
        )

    def _of_chat(self, run_id: str, turn: int, attempt: str, agent: AgentSpec | None) -> dict[str, Value | None]:
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": CHAT,
            "gen_ai.conversation.id": run_id,
            "gen_ai.request.stream": True,
            "anabranch.turn": turn,
            "anabranch.attempt": attempt,
        }
        if agent is not None:
            attributes["gen_ai.provider.name"] = agent.provider
            attributes["gen_ai.request.model"] = agent.model
            attributes["gen_ai.request.max_tokens"] = agent.max_tokens
            attributes["gen_ai.agent.name"] = agent.name
        return attributes

    def _chat_id(self, run_id: str, life: str, turn: int, attempt: str) -> str:
        return span_id(CHAT, self._namespace.name, run_id, life, turn, attempt)

    # --- calls ------------------------------------------------------------------------------------------------------

    def call_id(self, call_id: str) -> str:
        """The span of a call."""
        return span_id("call", self._namespace.name, call_id)

    @contained
    def call(self, run: Run, call: Call, trace: Parent) -> Span:
        """A call that has its result, or gets none any more: its run has ended."""
        planned, result = call.planned, call.result
        end = result.at if result is not None else run.ending.at if run.ending is not None else call.due_at
        outcome = "rejected" if planned.rejected is not None else result.outcome if result is not None else "abandoned"
        attributes: Attributes = {
            "gen_ai.conversation.id": run.run_id,
            "gen_ai.tool.name": planned.tool,
            "gen_ai.tool.call.id": planned.tool_use_id,
            "anabranch.call.id": planned.call_id,
            "anabranch.call.outcome": outcome,
            "anabranch.call.dispatches": call.dispatch if call.due is not None else 0,
            "anabranch.queue": planned.queue,
        }
        return Span(
            f"call {planned.tool}",
            "internal",
            trace.named(self.call_id(planned.call_id)),
            self._run_id(run.run_id, run.life),
            call.due_at or end,
            end,
            attributes,
            outcome if outcome != "ok" else None,
            planned.rejected,
        )

    # --- publications -------------------------------------------------------------------------------------------------

    def answer_id(self, run: Run, address: int) -> str:
        """The span of an answer's publication."""
        return span_id("answer", self._namespace.name, run.run_id, run.life, address)

    @contained
    def published(self, run: Run, due: CallDue | AnswerDue, began: float, acked: Acked) -> None:
        """The broker has it."""
        if (trace := sampled(run.trace)) is None:
            return
        topic = self._namespace.responses
        if isinstance(due, CallDue):
            call = run.turns[-1].calls.get(due.call_id) if run.turns else None
            if call is None or call.planned.queue is None:
                return
            topic = self._namespace.calls(call.planned.queue)
            own, above = span_id("send", self._namespace.name, due.call_id, due.dispatch), self.call_id(due.call_id)
        else:
            own, above = self.answer_id(run, due.address), self._run_id(run.run_id, run.life)
        attributes = {
            **messaging(topic, "send", "send"),
            "messaging.kafka.offset": acked.offset,
            "gen_ai.conversation.id": run.run_id,
            "anabranch.call.id": due.call_id if isinstance(due, CallDue) else None,
        }
        self.emit(Span(f"send {topic}", "producer", trace.named(own), above, began, self.now(), attributes))


def _named(agent: str) -> str:
    return f"invoke_agent {agent}".strip()


def _usage(usage: m.Usage) -> Attributes:
    """By the conventions the input counts what came from the cache, too."""
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens + read + written,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": read or None,
        "gen_ai.usage.cache_creation.input_tokens": written or None,
    }


def _counted(counts: Mapping[str, Any]) -> m.Usage:
    """The provider's own fields."""
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return m.Usage(*(count(counts.get(name)) for name in names))


def _replied(body: bytes, usage: m.Usage) -> dict[str, Value | None]:
    message = _read(body)
    stop = _text(message.get("stop_reason"))
    return {
        **_usage(usage),
        "gen_ai.response.finish_reasons": (stop,) if stop is not None else None,
        "gen_ai.response.id": _text(message.get("id")),
        "gen_ai.response.model": _text(message.get("model")),
    }


def _read(body: bytes) -> Mapping[str, Any]:
    found = orjson.loads(body)
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _kind_of(error: BaseException) -> str:
    """A word that says what it was, and nothing of what was said."""
    if isinstance(error, Transient | Hopeless):
        reason = error.reason if isinstance(error, Transient) else error.message
        found = _KIND.match(reason)
        return found[1] if found is not None else error.code if isinstance(error, Hopeless) else "broken"
    return type(error).__name__
