"""The metrics that workers expose: their names, kinds and labels, for the tests of what asks for them.

Responsible for: reading them from the code's own meters, so that alerts, dashboard and autoscaling keep step with it.
Must never: read them from what asks for them. Called by: tests/integration/test_queries.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.tools.meters import ToolMeters
from anabranch.watch import Build

TARGET_LABELS = frozenset(["instance", "job", "namespace", "pod", "container", "cluster"])
"""What Prometheus adds, by itself or by the operator's rules."""


@dataclass(frozen=True)
class Metric:
    """One metric; `labels` are its own."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: frozenset[str]


METRICS = {
    meter.name: Metric(meter.kind, frozenset(meter.labels))
    for meters in (Build(), AgentMeters(), ToolMeters(queue="io"))
    for meter in meters.all()
}


def series() -> dict[str, frozenset[str]]:
    """Every name that can be asked for, with the labels that its series have."""
    found: dict[str, frozenset[str]] = {}
    for name, metric in METRICS.items():
        if metric.kind == "histogram":
            found[f"{name}_bucket"] = metric.labels | {"le"} | TARGET_LABELS
            found[f"{name}_sum"] = found[f"{name}_count"] = metric.labels | TARGET_LABELS
        else:
            found[name] = metric.labels | TARGET_LABELS
    return found
