"""The spans of the tool role, by the conventions for messaging and GenAI: how long a call waited, and what it did.

Both are below the span that the call's record names, and the result's record names `execute_tool`. A call that is
executed twice has two of them: that is what happened. Must never: decide anything, or be asked where tracing is off
(None). Called by: `serving.py`.

    wait <ns>.tool.calls.Q    from the call's publication to the start of its function
    execute_tool T            the function, all tries and the pauses between them, of which its events tell
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from anabranch.spans import Happening, Parent, Span, Traces, Value, contained, messaging, new_span_id, sampled
from anabranch.tools.executor import Execution

if TYPE_CHECKING:
    from anabranch.tools.serving import Job

_NOWHERE: Final = nullcontext()


class ToolTraces:
    """See the module."""

    def __init__(self, traces: Traces, queue: str) -> None:
        self._traces, self._queue = traces, queue

    def begins(self, job: Job) -> Parent | None:
        """The span that the call is below, if it is told of; its result is below one of ours then."""
        above = sampled(job.trace)
        if above is not None:
            job.trace = str(above.named(new_span_id()))
        return above

    def inside(self, job: Job) -> AbstractContextManager[None]:
        """What the tool itself tells is below `execute_tool`."""
        own = sampled(job.trace)
        return self._traces.inside(own) if own is not None else _NOWHERE

    @contained
    def skipped(self, job: Job, now: float) -> None:
        """It came too late, or was answered before: it is not executed."""
        if (above := sampled(job.trace)) is not None:
            self._traces.emit(replace(self._waited(job, above, now), error="skipped"))

    @contained
    def executed(self, job: Job, above: Parent, execution: Execution) -> None:
        """The call has a result."""
        began = execution.began_at if execution.began_at is not None else execution.finished_at
        self._traces.emit(self._waited(job, above, began))
        own = sampled(job.trace)
        if own is None or execution.began_at is None:
            return
        self._traces.emit(
            Span(
                f"execute_tool {job.call.tool}",
                "internal",
                own,
                above.span_id,
                began,
                execution.finished_at,
                self._of(job, execution),
                execution.error if execution.outcome != "ok" else None,
                str(execution.content),
                tuple(Happening(name, at, {"error.type": error}) for name, at, error in execution.retried),
            )
        )

    def _waited(self, job: Job, above: Parent, until: float) -> Span:
        attributes: dict[str, Value | None] = {
            **messaging(job.record.topic, "wait", "receive"),
            "messaging.destination.partition.id": str(job.record.partition),
            "messaging.kafka.offset": job.record.offset,
            "gen_ai.conversation.id": job.call.run_id,
            "anabranch.call.id": job.call.call_id,
        }
        topic = job.record.topic
        return Span(
            f"wait {topic}", "consumer", above.named(new_span_id()), above.span_id, job.since, until, attributes
        )

    def _of(self, job: Job, execution: Execution) -> dict[str, Value | None]:
        call = job.call
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.tool,
            "gen_ai.tool.type": "function",
            "gen_ai.conversation.id": call.run_id,
            "gen_ai.agent.name": call.agent,
            "anabranch.call.id": call.call_id,
            "anabranch.call.outcome": execution.outcome,
            "anabranch.call.tries": execution.tries,
            "anabranch.call.dispatch": call.dispatch,
            "anabranch.queue": self._queue,
        }
        if self._traces.content:
            given = call.input if call.input is not None else {"input_ref": call.input_ref or call.input_sealed}
            attributes["gen_ai.tool.call.arguments"] = _json(given)
            attributes["gen_ai.tool.call.result"] = _json(execution.content)
        return attributes


def _json(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
