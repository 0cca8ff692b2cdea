"""What both roles measure alike: their group, their log, what they send, and how they are.

Each series names the role and the queue, since a process of `anabranch dev` has several. Changed by `appender.py`,
`membership.py`, `watch.py` and the roles; `agent/telemetry/meters.py` and `tools/meters.py` add their own.
"""

from __future__ import annotations

from typing import Final

from anabranch.meters import QUICK_S, Counter, Gauge, Histogram, Meters

TAKEOVER_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
DEAD_LETTERS: Final = ("bad_request", "unreadable", "undeliverable")


class RoleMeters(Meters):
    """`queue` is empty for agents."""

    def __init__(self, role: str = "", queue: str = "") -> None:
        self.role, self.queue = role, queue
        of = {"role": role, "queue": queue}
        self.ready = Gauge(
            "anabranch_ready", "1 while the worker has its partitions and works on them, else 0", fixed=of
        )
        self.draining = Gauge(
            "anabranch_draining", "1 while the worker ends: it takes nothing more, and finishes its calls", fixed=of
        )
        self.loop_lag = Histogram(
            "anabranch_event_loop_lag_seconds",
            "How late the event loop is when it wakes up, looked at four times a second",
            QUICK_S,
            fixed=of,
        )
        self.rebalances = Counter(
            "anabranch_rebalances_total", "Assignments of partitions by the consumer group", fixed=of
        )
        self.sessions_lost = Counter(
            "anabranch_sessions_lost_total", "Times that the group had given this worker up", fixed=of
        )
        self.takeovers = Histogram(
            "anabranch_takeover_duration_seconds",
            "From an assignment until work goes on, in agent workers for each partition",
            TAKEOVER_S,
            fixed=of,
        )
        self.partitions = Gauge("anabranch_partitions_owned", "Partitions assigned to this worker", ("topic",), of)
        self.lag = Gauge(
            "anabranch_consumer_lag_records",
            "Records of the worker's partitions that it has not taken up, seen every few seconds",
            ("topic",),
            of,
        )
        self.dead_letters = Counter(
            "anabranch_dead_letters_total",
            "Records that were put into dead.letters",
            ("reason",),
            of,
            [(reason,) for reason in DEAD_LETTERS],
        )
        self.send_failures = Counter(
            "anabranch_send_failures_total", "Batches that Kafka did not take, or did not acknowledge", fixed=of
        )
        self.producer_replacements = Counter(
            "anabranch_producer_replacements_total", "Producers that were replaced after a failure", fixed=of
        )
        self.unacknowledged = Gauge(
            "anabranch_unacknowledged_records", "Records that wait to be sent, or for Kafka's word", fixed=of
        )
