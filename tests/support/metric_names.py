"""The metrics that workers expose: their names, kinds and labels, for the tests of what asks for them.

Responsible for: being the one place where the tests of alerts, dashboard and autoscaling look names up.
Must never: read them from what asks for them. Called by: tests/integration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TARGET_LABELS = frozenset(["instance", "job", "namespace", "pod", "container", "cluster"])
"""What Prometheus adds, by itself or by the operator's rules."""


@dataclass(frozen=True)
class Metric:
    """One metric; `labels` are its own."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: frozenset[str]


METRICS = {
    "anabranch_admission_held": Metric("gauge", frozenset(["reason"])),
    "anabranch_admission_lag_records": Metric("gauge", frozenset([])),
    "anabranch_build_info": Metric("gauge", frozenset(["version"])),
    "anabranch_call_turnaround_seconds": Metric("histogram", frozenset(["queue"])),
    "anabranch_calls_answered_total": Metric("counter", frozenset(["queue", "outcome"])),
    "anabranch_calls_published_total": Metric("counter", frozenset(["queue"])),
    "anabranch_committed_low_age_seconds": Metric("gauge", frozenset([])),
    "anabranch_consumer_lag_records": Metric("gauge", frozenset(["role", "queue", "topic"])),
    "anabranch_dead_letters_total": Metric("counter", frozenset(["role", "queue", "reason"])),
    "anabranch_event_loop_lag_seconds": Metric("histogram", frozenset(["role", "queue"])),
    "anabranch_handoffs_total": Metric("counter", frozenset(["kind", "side"])),
    "anabranch_limit_paused": Metric("gauge", frozenset(["limit"])),
    "anabranch_limit_share_rate": Metric("gauge", frozenset(["limit"])),
    "anabranch_limit_started_total": Metric("counter", frozenset(["limit"])),
    "anabranch_limit_waiting_calls": Metric("gauge", frozenset(["limit"])),
    "anabranch_model_call_duration_seconds": Metric("histogram", frozenset(["model"])),
    "anabranch_model_calls_in_flight": Metric("gauge", frozenset(["model"])),
    "anabranch_model_calls_total": Metric("counter", frozenset(["model", "outcome"])),
    "anabranch_model_calls_waiting": Metric("gauge", frozenset(["model"])),
    "anabranch_model_cost_usd_total": Metric("counter", frozenset(["model"])),
    "anabranch_model_discarded_tokens_total": Metric("counter", frozenset(["model", "kind"])),
    "anabranch_model_limit_ratio": Metric("gauge", frozenset(["model"])),
    "anabranch_model_retries_total": Metric("counter", frozenset(["model", "reason"])),
    "anabranch_model_tokens_total": Metric("counter", frozenset(["model", "kind"])),
    "anabranch_model_wait_seconds": Metric("histogram", frozenset(["model"])),
    "anabranch_oldest_request_age_seconds": Metric("gauge", frozenset([])),
    "anabranch_oldest_waiting_call_seconds": Metric("gauge", frozenset(["queue"])),
    "anabranch_open_bytes": Metric("gauge", frozenset([])),
    "anabranch_open_bytes_max": Metric("gauge", frozenset([])),
    "anabranch_partitions_owned": Metric("gauge", frozenset(["role", "queue", "topic"])),
    "anabranch_producer_replacements_total": Metric("counter", frozenset(["role", "queue"])),
    "anabranch_ready": Metric("gauge", frozenset(["role", "queue"])),
    "anabranch_rebalances_total": Metric("counter", frozenset(["role", "queue"])),
    "anabranch_requests_noted_total": Metric("counter", frozenset(["code"])),
    "anabranch_run_duration_seconds": Metric("histogram", frozenset(["agent", "status"])),
    "anabranch_run_queued_seconds": Metric("histogram", frozenset(["agent"])),
    "anabranch_runs_admitted_total": Metric("counter", frozenset(["agent"])),
    "anabranch_runs_ended_total": Metric("counter", frozenset(["agent", "status", "code"])),
    "anabranch_runs_open": Metric("gauge", frozenset([])),
    "anabranch_runs_parked": Metric("gauge", frozenset([])),
    "anabranch_send_failures_total": Metric("counter", frozenset(["role", "queue"])),
    "anabranch_sessions_lost_total": Metric("counter", frozenset(["role", "queue"])),
    "anabranch_taken_bytes": Metric("gauge", frozenset(["queue"])),
    "anabranch_taken_bytes_max": Metric("gauge", frozenset(["queue"])),
    "anabranch_takeover_duration_seconds": Metric("histogram", frozenset(["role", "queue"])),
    "anabranch_tool_call_duration_seconds": Metric("histogram", frozenset(["tool"])),
    "anabranch_tool_call_wait_seconds": Metric("histogram", frozenset(["queue"])),
    "anabranch_tool_calls_total": Metric("counter", frozenset(["tool", "outcome"])),
    "anabranch_tool_calls_waiting": Metric("gauge", frozenset(["queue"])),
    "anabranch_tool_retries_total": Metric("counter", frozenset(["tool"])),
    "anabranch_tool_slots": Metric("gauge", frozenset(["queue"])),
    "anabranch_tool_slots_used": Metric("gauge", frozenset(["queue"])),
    "anabranch_tool_threads": Metric("gauge", frozenset(["queue"])),
    "anabranch_tool_threads_busy": Metric("gauge", frozenset(["queue"])),
    "anabranch_unacknowledged_records": Metric("gauge", frozenset(["role", "queue"])),
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
