"""What the tool role counts and measures: the calls of one queue, its places and its limits.

`serving.py` and `shares.py` count; `sampling.py` fills the gauges.
"""

from __future__ import annotations

from collections.abc import Iterable

from anabranch.kafka.meters import RoleMeters
from anabranch.meters import CALL_S, WAIT_S, Counter, Fixed, Gauge, Histogram


class ToolMeters(RoleMeters):
    """See the module."""

    def __init__(self, queue: str = "", tools: Iterable[str] = (), limits: Iterable[str] = ()) -> None:
        super().__init__("tool", queue)
        of = {"queue": queue}
        self._calls(of, list(tools))
        self._places(of)
        self._limits(list(limits))

    def _calls(self, of: Fixed, tools: list[str]) -> None:
        self.calls = Counter(
            "anabranch_tool_calls_total",
            "Calls that are over, by outcome: ok, error, timeout, unknown, or skipped (too late, or a copy)",
            ("tool", "outcome"),
            known=[(tool, outcome) for tool in tools for outcome in ("ok", "error", "timeout", "skipped")],
        )
        self.wait = Histogram(
            "anabranch_tool_call_wait_seconds",
            "From a call's publication to the start of its function: places, threads and limits included",
            WAIT_S,
            fixed=of,
        )
        self.duration = Histogram(
            "anabranch_tool_call_duration_seconds",
            "What a call's function took, all tries added up, without any waiting",
            CALL_S,
            ("tool",),
        )
        self.retries = Counter(
            "anabranch_tool_retries_total",
            "Tries after the first",
            ("tool",),
            known=[(tool,) for tool in tools],
        )
        self.hand_offs = Counter(
            "anabranch_handoffs_total",
            "Calls in flight at a rebalance: given to the next owner, waited for here, or lost, as their time was up",
            ("kind", "side"),
            known=[("call", "given")],
        )

    def _places(self, of: Fixed) -> None:
        self.slots = Gauge("anabranch_tool_slots", "Calls that may run at once", fixed=of)
        self.slots_used = Gauge("anabranch_tool_slots_used", "Calls that have a place", fixed=of)
        self.threads = Gauge("anabranch_tool_threads", "Threads for plain functions", fixed=of)
        self.threads_busy = Gauge(
            "anabranch_tool_threads_busy", "Threads that run a function, its timeout over or not", fixed=of
        )
        self.waiting = Gauge("anabranch_tool_calls_waiting", "Calls that were taken in and do not run yet", fixed=of)
        self.oldest_waiting = Gauge(
            "anabranch_oldest_waiting_call_seconds",
            "How long the oldest of them has waited since it was published, but for those behind their own serial key",
            fixed=of,
        )
        self.taken_bytes = Gauge(
            "anabranch_taken_bytes", "Memory of calls that run or wait, as intake counts it", fixed=of
        )
        self.taken_bytes_max = Gauge(
            "anabranch_taken_bytes_max", "How much of it there may be (MAX_TAKEN_BYTES)", fixed=of
        )

    def _limits(self, limits: list[str]) -> None:
        self.limit_rate = Gauge(
            "anabranch_limit_share_rate",
            "Calls a second that this worker may start; of a limit per tenant, for the tenants that use it now",
            ("limit",),
        )
        self.limit_waiting = Gauge("anabranch_limit_waiting_calls", "Calls in the lines of the limit", ("limit",))
        self.limit_paused = Gauge(
            "anabranch_limit_paused", "1 while a tool's RateLimited holds the limit up here", ("limit",)
        )
        self.limit_started = Counter(
            "anabranch_limit_started_total",
            "Starts that were counted against the limit, retries too",
            ("limit",),
            known=[(limit,) for limit in limits],
        )
