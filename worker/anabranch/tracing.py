"""Spans as OpenTelemetry exports them: the one place that knows `opentelemetry`.

Responsible for: turning our spans into the SDK's, and handing them to its batches, whose thread sends them by
OTLP over HTTP. What there is to set, the SDK reads itself: the standard `OTEL_*` variables (endpoint, headers, service
name, resource, sampler, batches, limits). Must never: hold up whoever tells of a span, or be imported unless tracing
is on. Called by: `spans.opened`.

The SDK's own tracers are not used: they make up ids and hold a span open in one process, and ours begin in one and end
in another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from anabranch.config import is_http, without_secrets
from anabranch.errors import ConfigError
from anabranch.spans import Attributes, Kind, Parent, Span, Traces, contained
from anabranch.wording import writable

_KINDS: Final[dict[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_PROTOCOL: Final = "http/protobuf"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LATEST: Final = 2**63 - 1
CLOSE_S: Final = 3.0
SCHEMA: Final = "https://opentelemetry.io/schemas/1.37.0"


def exporting(service: str, instance: str, content: bool) -> Traces | None:
    """An exporter as the environment says; None if that disables the SDK. Raises `ConfigError`."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if (exporters := os.environ.get("OTEL_TRACES_EXPORTER", "otlp")) == "none":
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL)
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    if exporters != "otlp" or protocol != _PROTOCOL:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER={exporters} with the protocol {protocol!r} cannot be had: traces go by otlp and "
            f"{_PROTOCOL} (OTEL_EXPORTER_OTLP_PROTOCOL), at port 4318 of a collector"
        )
    _check_endpoint()
    return OtlpTraces(service, instance, content)


def _check_endpoint() -> None:
    """The SDK takes any text, and each export would fail, long after the start."""
    for variable in _ENDPOINTS:
        if (url := os.environ.get(variable, "")) and not is_http(url):
            raise ConfigError(
                f"{variable}={without_secrets(url)} is no address of a collector: it must be http:// or https:// and a "
                "host, for example http://collector:4318"
            )


class OtlpTraces:
    """See the module; `Traces` for the roles."""

    def __init__(self, service: str, instance: str, content: bool) -> None:
        own = {"service.name": service, "service.version": version("anabranch"), "service.instance.id": instance}
        given = Resource.create()  # with OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        named = str(given.attributes.get("service.name", "")).startswith("unknown_service")
        own = {key: value for key, value in own.items() if key not in given.attributes or named}
        self._provider = TracerProvider(resource=given.merge(Resource(own)), shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._provider.add_span_processor(self._processor)
        self._limits = SpanLimits()
        self._scope = InstrumentationScope("anabranch", version("anabranch"), SCHEMA)
        self.content = content

    @contained
    def emit(self, span: Span) -> None:
        """The queue is the SDK's: when it is full, the span is dropped."""
        self._processor.on_end(self._readable(span))

    def _readable(self, span: Span) -> ReadableSpan:
        """Half of a character in a text, or a time that does not fit, would cost all of its batch."""
        attributes = {**span.attributes, "error.type": span.error}
        failed = Status(StatusCode.ERROR, writable(span.why) if self.content and span.why is not None else None)
        parent = _context(span.context.named(span.parent_id)) if span.parent_id is not None else None
        return ReadableSpan(
            name=writable(span.name),
            context=_context(span.context, is_remote=False),
            parent=parent,
            resource=self._provider.resource,
            attributes=self._bounded(attributes),
            events=[Event(writable(name), self._bounded(given), _nanoseconds(at)) for name, at, given in span.events],
            links=[Link(_context(other)) for other in span.links],
            kind=_KINDS[span.kind],
            status=failed if span.error is not None else Status(),
            start_time=_nanoseconds(span.start),
            end_time=_nanoseconds(max(span.start, span.end)),
            instrumentation_scope=self._scope,
        )

    def _bounded(self, attributes: Attributes) -> BoundedAttributes:
        limits = self._limits
        given = {
            name: writable(value) if isinstance(value, str) else value
            for name, value in attributes.items()
            if value is not None
        }
        return BoundedAttributes(limits.max_span_attributes, given, max_value_len=limits.max_span_attribute_length)

    def samples(self, name: str, trace_id: str, parent: Parent | None) -> bool:
        return self._samples(name, trace_id, parent) or False

    @contained
    def _samples(self, name: str, trace_id: str, parent: Parent | None) -> bool:
        above = trace.set_span_in_context(NonRecordingSpan(_context(parent))) if parent is not None else otel.Context()
        found = self._provider.sampler.should_sample(above, int(trace_id, 16), name, SpanKind.INTERNAL, {}, ())
        return found.decision is Decision.RECORD_AND_SAMPLE

    @contextmanager
    def inside(self, span: Parent) -> Iterator[None]:
        token = otel.attach(trace.set_span_in_context(NonRecordingSpan(_context(span))))
        try:
            yield
        finally:
            otel.detach(token)

    def close(self) -> None:
        """A collector that is away is waited for no longer than `CLOSE_S`; what it does not get is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _context(span: Parent, is_remote: bool = True) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if span.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), is_remote, flags)


def _nanoseconds(at: float) -> int:
    """A record may have no time (-1 ms), or any."""
    return min(max(0, int(at * 1e9)), _LATEST)
