"""What Prometheus reads: names by its conventions, numbers as they were counted, and docs/metrics.md in step.

Responsible for: `metrics.py`, the names in `kafka/meters.py`, `agent/telemetry/meters.py` and `tools/meters.py`, and
the page.
Must never: open a port (tests/integration/test_probes). Called by: pytest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.kafka.meters import RoleMeters
from anabranch.meters import Counter, Gauge, Histogram, Meters
from anabranch.metrics import MetersCollector, application
from anabranch.tools.meters import ToolMeters
from anabranch.watch import Build

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
UNITS = ("_total", "_seconds", "_bytes", "_bytes_max", "_ratio", "_info", "_records")
BOUNDED = {"version", "python", "role", "queue", "topic", "reason", "agent", "status", "code"} | {
    "kind", "side", "model", "to", "outcome", "tool", "limit",
}  # fmt: skip
"""Declared names, and words of ours: no run, call, tenant or worker is among them."""


def exposed(*meters: Meters) -> str:
    registry = CollectorRegistry()
    registry.register(MetersCollector(lambda: meters))
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def own(meters: Sequence[Meters]) -> dict[str, Counter | Gauge | Histogram]:
    return {meter.name: meter for each in meters for meter in each.all()}


EVERYTHING = own([Build(), AgentMeters(), ToolMeters("q")])


# --- the exposition -----------------------------------------------------------------------------------------------


def test_what_was_counted_is_what_is_read() -> None:
    agent = AgentMeters()
    agent.runs_ended.count("a", "failed", "max_turns")
    agent.runs_open.set(3)
    for seconds in (0.2, 0.3, 7.0):
        agent.run_duration.observe(seconds, "a", "failed")
    text = exposed(agent)
    assert value(text, "anabranch_runs_ended_total", agent="a", status="failed", code="max_turns") == 1
    assert value(text, "anabranch_runs_open") == 3
    buckets = {"agent": "a", "status": "failed"}
    assert value(text, "anabranch_run_duration_seconds_bucket", le="0.25", **buckets) == 1
    assert value(text, "anabranch_run_duration_seconds_bucket", le="0.5", **buckets) == 2
    assert value(text, "anabranch_run_duration_seconds_bucket", le="+Inf", **buckets) == 3
    assert value(text, "anabranch_run_duration_seconds_count", **buckets) == 3
    assert value(text, "anabranch_run_duration_seconds_sum", **buckets) == pytest.approx(7.5)


def test_roles_in_one_process_are_told_apart_or_added_up() -> None:
    agent, io, cpu = AgentMeters(), ToolMeters("io", ["t"]), ToolMeters("cpu")
    for meters, times in ((agent, 1), (io, 2), (cpu, 4)):
        meters.rebalances.add(times)
    io.hand_offs.add(2, "call", "given")
    cpu.hand_offs.add(3, "call", "given")
    text = exposed(agent, io, cpu)
    assert value(text, "anabranch_rebalances_total", role="agent", queue="") == 1
    assert value(text, "anabranch_rebalances_total", role="tool", queue="cpu") == 4
    assert value(text, "anabranch_handoffs_total", kind="call", side="given") == 5
    assert len(re.findall(r"^# TYPE anabranch_rebalances_total ", text, re.MULTILINE)) == 1


def test_histograms_of_two_roles_without_a_label_between_them_are_added_up() -> None:
    class Some(Meters):
        def __init__(self, seconds: float) -> None:
            self.waits = Histogram("waits_seconds", "h", (1.0,))
            self.waits.observe(seconds)

    text = exposed(Some(0.5), Some(3.0))
    assert value(text, "waits_seconds_bucket", le="1.0") == 1
    assert (value(text, "waits_seconds_count"), value(text, "waits_seconds_sum")) == (2, 3.5)


def test_a_label_that_holds_anything_is_escaped() -> None:
    agent = AgentMeters()
    agent.runs_admitted.count('a"b\\c\nd')
    assert value(exposed(agent), "anabranch_runs_admitted_total", agent='a"b\\c\nd') == 1


def test_the_process_itself_is_told_of_too() -> None:
    told: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        told.update(status=status, headers=dict(headers))

    body = b"".join(application(lambda: [Build()])({"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET"}, start_response))
    assert told["status"] == "200 OK"
    assert told["headers"]["Content-Type"].startswith("text/plain; version=")
    assert b"process_resident_memory_bytes " in body
    assert b"anabranch_build_info{" in body


# --- the names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meter", EVERYTHING.values(), ids=list(EVERYTHING))
def test_a_name_follows_the_conventions(meter: Counter | Gauge | Histogram) -> None:
    assert re.fullmatch(r"anabranch_[a-z]+(_[a-z]+)*", meter.name)
    assert (meter.kind == "counter") == meter.name.endswith("_total")
    assert meter.kind != "histogram" or meter.name.endswith("_seconds")
    assert not meter.name.endswith(("_count", "_sum", "_bucket", "_milliseconds", "_ms"))
    assert set(meter.labels) <= BOUNDED
    assert meter.help
    assert meter.help[0].isupper() or meter.help[0].isdigit()
    assert not meter.help.endswith(".")


def test_buckets_ascend() -> None:
    for meter in EVERYTHING.values():
        if isinstance(meter, Histogram):
            assert list(meter.bounds) == sorted(set(meter.bounds)), meter.name


def test_what_both_roles_have_is_labelled_with_the_role() -> None:
    assert all(meter.labels[:2] == ("role", "queue") for meter in RoleMeters().all())


# --- the page -----------------------------------------------------------------------------------------------------


def _row(meter: Counter | Gauge | Histogram) -> str:
    labels = ", ".join(f"`{label}`" for label in meter.labels)
    return f"| `{meter.name}` | {meter.kind} | {labels} | {meter.help} |"


def test_the_page_lists_every_metric_and_no_other() -> None:
    listed = {line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `anabranch_")}
    assert listed == {_row(meter) for meter in EVERYTHING.values()}
