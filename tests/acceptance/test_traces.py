"""One trace from the client to its answer, over processes and a takeover, as a real collector has it.

Responsible for: the tree, who told of what, and that nothing of it repeats what was said. Must never: look inside a
worker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.apps.traced import PRIVATE, Overloaded, app
from tests.support.collector import Collector, collector, tree
from tests.support.fleet import settings_for
from tests.support.process import Command, GuardedProcess, tail
from tests.support.wait import until

from anabranch.client import Client
from anabranch.config import Settings, TelemetrySettings
from anabranch.roles import broker_of, topic_specs
from anabranch.testing import ScriptedModel

pytestmark = pytest.mark.timeout(240)  # the first build of the collector may have to fetch and compile its modules

APP = Path(__file__).parents[1] / "support" / "apps" / "traced.py"
SECRET = "hunter2-of-the-crm"
UP_S, TAKEN_OVER_S = 60, 60
PRODUCER, CONSUMER, CLIENT = 4, 5, 3


@dataclass
class Workers:
    """Worker processes that tell the collector of their work."""

    environment: dict[str, str]
    folder: Path

    @asynccontextmanager
    async def started(self, name: str, *role: str) -> AsyncIterator[GuardedProcess]:
        """One of that name, until it is told to stop, or the test has killed it."""
        log = self.folder / f"{name}.log"
        argv = [sys.executable, "-m", "anabranch.cli", "worker", *role[:1], str(APP), *role[1:]]
        named = {"OTEL_RESOURCE_ATTRIBUTES": f"deployment.environment.name=test,host.name={name}"}
        process = GuardedProcess(Command(argv, {**self.environment, **named}), log)
        try:
            await until(lambda: "is up" in tail(log) or not process.is_running(), UP_S, f"{name} is up")
            assert process.is_running(), tail(log)
            yield process
        finally:
            await asyncio.to_thread(process.stop)


def traced(settings: Settings) -> Settings:
    return replace(settings, telemetry=TelemetrySettings(traces=True))


async def test_a_run_is_one_trace_through_all_processes_and_a_takeover(
    kafka: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = traced(settings_for(kafka, namespace))
    await broker_of(settings).apply(topic_specs(app, settings))
    with collector(tmp_path) as telling:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", telling.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=client")
        async with ScriptedModel(Overloaded()) as model:
            workers = Workers(_environment(kafka, namespace, model, telling), tmp_path)
            answer = await _run_with_a_takeover(workers, settings, tmp_path / "free", telling)
            assert answer == f"{PRIVATE} is done"
        namespaced = f"{namespace}."
        lines = [line.replace(namespaced, "") for line in tree(telling.spans)]
        assert [line for line in lines if line != COPY] == TREE
        assert lines.count(COPY) <= 1, "of the call that was out alone"
        _check_who_told(telling)
        _check_what_was_told(telling, namespace)
    _check_logs(tmp_path, {span.trace_id for span in telling.spans})


COPY = "      wait tool.calls.io !"
"""A successor publishes the call that is out again, unless its commit tells it that this was done: the copy is not
executed."""

TREE = [
    "send agent.requests",
    "  invoke_agent traced",
    "    call bad !",
    "      execute_tool bad !",
    "      send tool.calls.io",
    "      wait tool.calls.io",
    "    call flaky",
    "      execute_tool flaky",
    "      send tool.calls.io",
    "      wait tool.calls.io",
    "    call held",
    "      execute_tool held",
    "      send tool.calls.io",
    "      wait tool.calls.io",
    "    chat scripted",
    "    chat scripted",
    "    chat scripted !",
    "    send agent.responses",
    "      receive agent.responses",
    "    wait agent.requests",
]


def _environment(kafka: str, namespace: str, model: ScriptedModel, telling: Collector) -> dict[str, str]:
    return {
        "ANABRANCH_BOOTSTRAP": kafka,
        "ANABRANCH_NAMESPACE": namespace,
        "ANABRANCH_PARTITIONS": "4",
        "ANABRANCH_SESSION_TIMEOUT_S": "6",
        "ANABRANCH_COMMIT_S": "0.2",
        "ANABRANCH_TRACES": "true",
        "ANABRANCH_LOG_FORMAT": "json",
        "ANTHROPIC_API_KEY": "test",
        "CRM_TOKEN": SECRET,
        "ANTHROPIC_BASE_URL": model.base_url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": telling.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


async def _run_with_a_takeover(workers: Workers, settings: Settings, free: Path, telling: Collector) -> str | None:
    """The answer of a run whose first agent worker is killed while its calls are out."""
    async with workers.started("tools", "tool", "--queue", "io"), Client.for_app(app, settings=settings) as client:
        async with workers.started("first", "agent") as first:
            run = await client.submit("traced", f"{PRIVATE} {free}", run_id="order-1")
            what = "the calls are out, and two are answered"
            await until(lambda: len([s for s in telling.spans if s.name.startswith("execute_tool")]) == 2, 30, what)
            await until(lambda: len(telling.named(f"send {settings.worker.namespace}.tool.calls.io")) == 3, 10, what)
            await asyncio.to_thread(first.kill)
        async with workers.started("second", "agent"):
            free.touch()
            async with asyncio.timeout(TAKEN_OVER_S):
                return (await run).output


def _check_who_told(telling: Collector) -> None:
    """Each in its own process; the successor tells of what began in the one that was killed."""
    who = {(span.name.rpartition(".")[2], span.resource["host.name"]) for span in telling.spans}
    assert {"first", "second"} <= {host for name, host in who if name == "chat scripted"}
    assert ("invoke_agent traced", "second") in who
    assert ("call held", "second") in who
    assert ("execute_tool held", "tools") in who
    assert {("requests", "client"), ("responses", "client")} <= who
    services = {span.resource["host.name"]: span.service for span in telling.spans}
    assert services == {
        "client": "anabranch-client",
        "first": "anabranch-agent",
        "second": "anabranch-agent",
        "tools": "anabranch-tool",
    }


def _check_what_was_told(telling: Collector, namespace: str) -> None:
    spans = {span.span_id: span for span in telling.spans}.values()
    assert len({span.trace_id for span in spans}) == 1
    assert {span.attributes["gen_ai.conversation.id"] for span in spans} == {"order-1"}
    [run] = [span for span in spans if span.name == "invoke_agent traced"]
    assert run.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert run.attributes["anabranch.run.status"] == "completed"
    assert run.attributes["anabranch.run.turns"] == 2
    chats = [span for span in spans if span.name == "chat scripted" and not span.failed]
    told = [chat.attributes for chat in chats]
    assert run.attributes["gen_ai.usage.input_tokens"] == sum(each["gen_ai.usage.input_tokens"] for each in told)
    assert {tuple(each["gen_ai.response.finish_reasons"]) for each in told} == {("tool_use",), ("end_turn",)}
    [overloaded] = [span for span in spans if span.name == "chat scripted" and span.failed]
    assert overloaded.attributes["error.type"] == "529"
    [bad] = [span for span in spans if span.name == "execute_tool bad"]
    assert (bad.attributes["error.type"], bad.message) == ("ValueError", "")
    [flaky] = [span for span in spans if span.name == "execute_tool flaky"]
    assert flaky.events == [("retry", {"error.type": "Retryable"})]
    for span in spans:
        assert span.start <= span.end
        messaging = re.match(r"(send|wait|receive) ", span.name)
        assert (span.kind in (PRODUCER, CONSUMER)) == (messaging is not None)
        assert span.attributes.get("messaging.system") == ("kafka" if messaging else None)
    assert PRIVATE not in telling.raw
    assert namespace in telling.raw


def _check_logs(folder: Path, traces: set[str]) -> None:
    """Each line is an object, that says what it is about, and neither a secret nor what was said."""
    lines = [
        line for name in ("first", "second", "tools") for line in (folder / f"{name}.log").read_text().splitlines()
    ]
    records = [json.loads(line) for line in lines]
    assert not [line for line in lines if SECRET in line or PRIVATE in line]
    assert {record["worker"].partition("-")[0] for record in records if record["message"].endswith("is up")} == {
        "agent",
        "tool",
    }
    [asking, *_] = [record for record in records if record["message"] == "asking with ********"]
    [failed] = [record for record in records if record["message"] == "bad failed: ValueError"]
    for record in (asking, failed):
        assert record["run_id"] == "order-1"
        assert record["call_id"].startswith("order-1/1.")
        assert record["topic"].endswith(".tool.calls.io")
        assert record["partition"] >= 0
        assert record["trace_id"] in traces
    assert "traced.py" in failed["exception"], "where it happened"
    [again] = [record for record in records if "the model is tried again" in record["message"]]
    assert (again["run_id"], again["level"], again["trace_id"] in traces) == ("order-1", "info", True)
