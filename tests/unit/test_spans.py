"""Contexts of traces as they travel, ids that any process derives alike, and what is asked for but cannot be had.

Responsible for: `spans.py`, and the start of `tracing.py`. Must never: export. Called by: pytest.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.support.told import ABOVE, SAMPLED, TRACE, UNSAMPLED

from anabranch.config import TelemetrySettings
from anabranch.environment import load
from anabranch.errors import ConfigError
from anabranch.spans import Happening, Parent, Span, opened, parse, sampled, span_id, surrounding, trace_id, valid

ON = TelemetrySettings(traces=True)
WITH_CONTENT = TelemetrySettings(traces=True, capture_content=True)
SOON_S = 10.0


class Unanswered(SpanExporter):
    """Waits for its collector until it `may_end`."""

    def __init__(self) -> None:
        self.asked, self.may_end, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.is_over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.may_end.wait(SOON_S)
        self.is_over = True
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.closed.set()


def test_a_context_is_written_as_it_was_read() -> None:
    assert parse(SAMPLED) == Parent(TRACE, ABOVE, sampled=True)
    assert [str(parse(text)) for text in (SAMPLED, UNSAMPLED)] == [SAMPLED, UNSAMPLED]
    assert parse(f"00-{TRACE}-{ABOVE}-03") == Parent(TRACE, ABOVE, sampled=True), "other flags are not ours"


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parse(f"01-{TRACE}-{ABOVE}-01-more") == Parent(TRACE, ABOVE, sampled=True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "garbage",
        f"ff-{TRACE}-{ABOVE}-01",
        f"00-{'0' * 32}-{ABOVE}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{ABOVE}-01",
        f"00-{TRACE}-{ABOVE}-01-more",
        f"00-{TRACE}-{ABOVE}-01\n",
        f"01-{TRACE}-{ABOVE}-01-{'x' * 500}",
    ],
)
def test_what_is_no_context_is_no_trace(text: str | None) -> None:
    assert (parse(text), sampled(text), valid(text)) == (None, None, None)


def test_a_context_that_is_not_sampled_is_passed_on_and_not_told_of() -> None:
    assert sampled(UNSAMPLED) is None
    assert valid(UNSAMPLED) == UNSAMPLED


def test_ids_follow_from_what_they_are_of() -> None:
    assert span_id("call", "shop", "r/1.a/0") == span_id("call", "shop", "r/1.a/0") == "61c1e8836470d068"
    assert span_id("call", "shop", "r/1.a/0") != span_id("call", "shop", "r/1.a/1")
    assert span_id("ab", "c") != span_id("a", "bc")
    assert parse(f"00-{trace_id('run', 'shop', 'r', '0', 1.5)}-{span_id(1)}-01") is not None


def test_without_tracing_nothing_is_opened_or_imported() -> None:
    assert opened(TelemetrySettings(), "s", "i") is None


def test_tracing_without_the_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anabranch.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install 'anabranch\[otel\]'"):
        opened(ON, "s", "i")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin")],
)
def test_an_export_that_we_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=value):
        opened(ON, "s", "i")


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(
    "url",
    ["collector:4318", "http//c:4318", "http://", "grpc://c:4317", "http://c:port", "http://c:99999", "http://[::1"],
)
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigError, match=f"{variable}=.*http://collector:4318"):
        opened(ON, "s", "i")


def test_a_password_in_a_bad_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://me:secret@collector:4317")
    with pytest.raises(ConfigError, match="grpc://collector:4317") as refused:
        opened(ON, "s", "i")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_the_environment_may_switch_it_off(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert opened(ON, "s", "i") is None


def test_the_sampler_of_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    traces = opened(ON, "s", "i")
    assert traces is not None
    try:
        assert not traces.samples("run", TRACE, None)
        assert traces.samples("run", TRACE, parse(SAMPLED))
        assert not traces.samples("run", TRACE, parse(UNSAMPLED))
    finally:
        traces.close()


def test_a_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the thread that sends ends with this test: the SDK's own, which tries again for ten seconds, would draw from
    Python's `random` in the midst of others."""
    exporter = Unanswered()
    monkeypatch.setattr("anabranch.tracing.OTLPSpanExporter", lambda: exporter)
    monkeypatch.setattr("anabranch.tracing.CLOSE_S", 0.05)
    traces = opened(ON, "s", "i")
    assert traces is not None
    traces.emit(Span("s", "internal", Parent(TRACE, ABOVE, True), None, 1.0, 2.0, {}))
    traces.close()
    assert exporter.asked.wait(SOON_S)
    assert not exporter.is_over
    exporter.may_end.set()
    assert exporter.closed.wait(SOON_S)


def test_code_inside_of_a_span_is_in_its_trace() -> None:
    traces = opened(ON, "s", "i")
    assert traces is not None
    try:
        assert surrounding() is None
        with traces.inside(Parent(TRACE, ABOVE, True)):
            assert str(surrounding()) == SAMPLED
        assert surrounding() is None
    finally:
        traces.close()


@pytest.mark.parametrize(
    ("said", "meant"), [("true", True), ("SPAN_ONLY", True), ("span_and_event", True), ("NO_CONTENT", False)]
)
def test_content_is_captured_where_the_convention_says_so(said: str, meant: bool) -> None:
    variable = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    assert load(environment={variable: said}).telemetry.capture_content is meant


@pytest.mark.parametrize(
    "odd",
    [
        {"start": -0.001},
        {"start": -0.001, "end": -0.001},
        {"end": 1e19},
        {"name": "half \ud800"},
        {"error": "E", "why": "half \ud800"},
        {"attributes": {"half": "\ud800"}},
        {"events": (Happening("half \ud800", -0.001, {}),)},
    ],
    ids=repr,
)
def test_an_odd_span_costs_no_batch_of_others(monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]) -> None:
    kept = InMemorySpanExporter()
    monkeypatch.setattr("anabranch.tracing.OTLPSpanExporter", lambda: kept)
    traces = opened(WITH_CONTENT, "s", "i")
    assert traces is not None
    traces.emit(replace(Span("s", "internal", Parent(TRACE, ABOVE, True), None, 1.0, 2.0, {}), **odd))
    traces.close()
    [span] = kept.get_finished_spans()
    assert encode_spans([span]).SerializeToString()


def test_a_span_that_cannot_be_made_is_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("anabranch.tracing.OTLPSpanExporter", lambda: exporter)
    monkeypatch.setattr("anabranch.spans._failed", set())
    traces = opened(WITH_CONTENT, "s", "i")
    assert traces is not None
    good = Span("s", "internal", Parent(TRACE, ABOVE, True), None, 1.0, 2.0, {})
    for span in (replace(good, start=float("nan")), replace(good, start=float("nan")), good):
        traces.emit(span)
    traces.close()
    assert len(exporter.get_finished_spans()) == 1
    assert ["is left out" in record.getMessage() for record in caplog.records] == [True]


def test_a_sampler_that_fails_samples_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = opened(WITH_CONTENT, "s", "i")
    assert traces is not None
    try:
        assert not traces.samples("run", "no hex", None)
    finally:
        traces.close()
