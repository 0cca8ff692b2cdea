"""The spans of a client, by the conventions for messaging: its request's publication, and its answer's arrival.

The request goes into the trace that the client's code is in, if it is in one, be it told of by us or not. Called by:
`client.py`.

    send <ns>.agent.requests        below what the client's code does; the run is below it
    receive <ns>.agent.responses    from the answer's publication until it was read; below that publication
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from anabranch.codec import header
from anabranch.messages import RunRequest
from anabranch.spans import HEADER, Parent, Span, Traces, contained, messaging, new_span_id, sampled, surrounding


class Asked(NamedTuple):
    """A request on its way, at `began` (epoch seconds): its own span, and what that is below."""

    own: Parent | None
    above: Parent | None
    began: float

    @property
    def header(self) -> str | None:
        """The `traceparent` of the request."""
        named = self.own or self.above
        return str(named) if named is not None else None


class ClientTraces:
    """See the module. Without `traces` nothing is told, and the trace around the client's code is passed on."""

    def __init__(self, traces: Traces | None) -> None:
        self._traces = traces
        self._asked: dict[str, Parent] = {}

    def asks(self, topic: str) -> Asked:
        """A request is about to be sent."""
        above, traces = surrounding(), self._traces
        if traces is None:
            return Asked(None, above, 0.0)
        trace_id = above.trace_id if above is not None else new_span_id() + new_span_id()
        told = traces.samples(f"send {topic}", trace_id, above)
        return Asked(Parent(trace_id, new_span_id(), told), above, time.time())

    @contained
    def asked(self, asked: Asked, topic: str, request: RunRequest) -> None:
        """Kafka has it."""
        own, above = asked.own, asked.above
        if self._traces is None or own is None or not own.sampled:
            return
        if request.cancel is None and request.run_id is not None:
            self._asked[request.run_id] = own
        attributes = {
            **messaging(topic, "send", "send"),
            "gen_ai.conversation.id": request.run_id,
            "gen_ai.agent.name": request.agent,
        }
        above_id = above.span_id if above is not None else None
        self._traces.emit(Span(f"send {topic}", "producer", own, above_id, asked.began, time.time(), attributes))

    @contained
    def answered(self, record: Any, run_id: str) -> None:
        """The answer has been read."""
        asked = self._asked.pop(run_id, None)
        if self._traces is None or (above := sampled(header(record.headers, HEADER))) is None:
            return
        own, now = above.named(new_span_id()), time.time()
        attributes = {
            **messaging(record.topic, "receive", "receive"),
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "gen_ai.conversation.id": run_id,
        }
        links = (asked,) if asked is not None and asked.trace_id != above.trace_id else ()
        began = min(now, record.timestamp / 1000)
        self._traces.emit(
            Span(f"receive {record.topic}", "consumer", own, above.span_id, began, now, attributes, links=links)
        )

    def forget(self, run_id: str) -> None:
        """Nobody waits for it any more."""
        self._asked.pop(run_id, None)

    def close(self) -> None:
        """Send what is left; blocks."""
        if self._traces is not None:
            self._traces.close()
