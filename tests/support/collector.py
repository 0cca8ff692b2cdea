"""A real OpenTelemetry Collector, to which workers export by OTLP, and the trees of the spans that came through it.

Responsible for: building it once (`tests/tools/collector`, into `build/tools`), running it, and reading what it passes
on. Must never: repair what arrived. Called by: the tests of traces.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.go_program import TOOLS, built
from tests.support.process import Command, GuardedProcess, free_ports, is_listening, tail

_SOURCE = TOOLS / "collector"
START_S = 30.0
_CONFIG = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters:
  otlphttp:
    endpoint: "http://127.0.0.1:{sink}"
    encoding: json
    compression: none
    sending_queue: {{enabled: false}}
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [otlphttp]}}}}
"""


@dataclass(frozen=True)
class Seen:
    """One span as it arrived. Times are epoch seconds; `resource` says who told of it."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    message: str
    resource: dict[str, Any]
    links: list[str] = field(default_factory=list)

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


class Collector:
    """One that runs. `endpoint` is for `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._seen: list[Seen] = []
        self._lock = threading.Lock()

    @property
    def spans(self) -> list[Seen]:
        """What has arrived so far, in any order; a span that was told twice is here twice."""
        with self._lock:
            return list(self._seen)

    @property
    def raw(self) -> str:
        """All of it, to be searched for what must not be there."""
        return "\n".join(map(repr, self.spans))

    def take(self, body: bytes) -> None:
        found = list(_spans(json.loads(body)))
        with self._lock:
            self._seen.extend(found)

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    """One that runs while inside; its configuration and log are in `folder`."""
    port, sink = free_ports(2)
    running = Collector(port)
    config, log = folder / "collector.yaml", folder / "collector.log"
    config.write_text(_CONFIG.format(port=port, sink=sink))
    with _listening(sink, running.take):
        process = GuardedProcess(Command([str(built("collector", _SOURCE)), "--config", str(config)]), log)
        try:
            _wait(port, process, log)
            yield running
        finally:
            process.kill()


def _wait(port: int, process: GuardedProcess, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not is_listening(port):
        assert process.is_running(), f"the collector has ended:\n{tail(log)}"
        assert time.monotonic() < deadline, f"the collector does not listen:\n{tail(log)}"
        time.sleep(0.05)


@contextmanager
def _listening(port: int, take: Callable[[bytes], None]) -> Iterator[None]:
    """Where the collector sends to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """A test's output is no place for it."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="sink", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(body: dict[str, Any]) -> Iterator[Seen]:
    for of_resource in body.get("resourceSpans", []):
        resource = _attributes(of_resource["resource"])
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                yield _seen(span, resource)


def _seen(span: dict[str, Any], resource: dict[str, Any]) -> Seen:
    status = span.get("status", {})
    return Seen(
        name=span["name"],
        kind=span["kind"],
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        start=int(span["startTimeUnixNano"]) / 1e9,
        end=int(span["endTimeUnixNano"]) / 1e9,
        attributes=_attributes(span),
        events=[(event["name"], _attributes(event)) for event in span.get("events", [])],
        failed=status.get("code") == 2,
        message=status.get("message", ""),
        resource=resource,
        links=[link["traceId"] for link in span.get("links", [])],
    )


def _attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: _value(item["value"]) for item in of.get("attributes", [])}


def _value(value: dict[str, Any]) -> Any:
    [(kind, found)] = value.items()
    if kind == "arrayValue":
        return [_value(item) for item in found.get("values", [])]
    return int(found) if kind == "intValue" else found


def tree(spans: list[Seen]) -> list[str]:
    """The spans as an outline, siblings by name; each once, however often it was told. A span whose parent is
    missing is marked with `?`.
    """
    known = {span.span_id: span for span in spans}
    below: dict[str, list[Seen]] = {}
    for span in known.values():
        below.setdefault(span.parent_id, []).append(span)

    def lines(parent: str, depth: int) -> Iterator[str]:
        for span in sorted(below.get(parent, []), key=lambda span: (span.name, span.failed)):
            yield f"{'  ' * depth}{span.name}{' !' if span.failed else ''}"
            yield from lines(span.span_id, depth + 1)

    roots = list(lines("", 0))
    lost = [f"? {line}" for parent in below if parent and parent not in known for line in lines(parent, 0)]
    return roots + lost
