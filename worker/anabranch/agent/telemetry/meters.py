"""What the agent role counts and measures. Its events count where they are folded, by the partition's live owner.

What was folded before that owner was live is not counted: somebody else has, or nobody ever will. So the numbers of a
fleet are right but for a few events at each change of owners, and are no ledger. `sampling.py` fills the gauges.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from anabranch.kafka.meters import RoleMeters
from anabranch.meters import CALL_S, RUN_S, WAIT_S, Counter, Gauge, Histogram
from anabranch.specs import AgentSpec

HELD: Final = ("bytes", "queue")
CODES: Final = frozenset(
    {"max_tokens", "context_exceeded", "model_refused", "unknown_stop", "max_turns", "budget_exceeded"}
    | {"model_unavailable", "model_rejected", "tool_aborted", "invalid_request", "unknown_agent"}
    | {"deadline", "cancelled", "internal"}
)
"""What a run may end with; see docs/wire.md."""
_TOKENS: Final = "Tokens by kind: input, output, cache_read, cache_creation"


class AgentMeters(RoleMeters):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("agent")
        self._runs()
        self._admission()
        self._hand_overs()
        self._model()
        self._calls()

    def know(self, agents: Iterable[AgentSpec]) -> None:
        """These show as 0 before anything was counted, so that the first of each is seen as a change."""
        for agent in agents:
            self.runs_admitted.add(0, agent.name)
            for status in ("completed", "cancelled"):
                self.runs_ended.add(0, agent.name, status, "" if status == "completed" else status)
            for model in agent.models:
                self.model_breaker_opened.add(0, model)
                for outcome in ("ok", "refused", "error", "rejected"):
                    self.model_calls.add(0, model, outcome)

    def _runs(self) -> None:
        self.runs_admitted = Counter("anabranch_runs_admitted_total", "Runs that were opened", ("agent",))
        self.runs_ended = Counter(
            "anabranch_runs_ended_total",
            "Runs that ended, by status and error code (empty if completed)",
            ("agent", "status", "code"),
        )
        self.run_duration = Histogram(
            "anabranch_run_duration_seconds", "From a run's admission to its end", RUN_S, ("agent", "status")
        )
        self.run_queued = Histogram(
            "anabranch_run_queued_seconds", "From a request to its admission", WAIT_S, ("agent",)
        )
        self.requests_noted = Counter(
            "anabranch_requests_noted_total",
            "Requests that opened no run: rejected, duplicate, moved or cancelled",
            ("code",),
            known=[("rejected",), ("duplicate",), ("moved",), ("cancelled",)],
        )
        self.runs_open = Gauge("anabranch_runs_open", "Open runs of this worker's partitions")
        self.runs_parked = Gauge(
            "anabranch_runs_parked", "Open runs that stand still, for this version cannot read an event of theirs"
        )

    def _admission(self) -> None:
        self.open_bytes = Gauge("anabranch_open_bytes", "Memory of open runs, as admission counts it")
        self.open_bytes_max = Gauge("anabranch_open_bytes_max", "How much of it there may be (MAX_OPEN_BYTES)")
        self.admission_held = Gauge(
            "anabranch_admission_held",
            "1 while a request waits for room (bytes) or for a queue that is behind (queue)",
            ("reason",),
        )
        self.admission_lag = Gauge(
            "anabranch_admission_lag_records", "Requests of this worker's partitions that are not taken up"
        )
        self.oldest_request = Gauge(
            "anabranch_oldest_request_age_seconds", "How long the oldest request here has waited; 0 if none waits"
        )
        self.low_age = Gauge(
            "anabranch_committed_low_age_seconds",
            "Age of the oldest event that a commit still needs, the largest over the partitions; 0 if none is open",
        )

    def _hand_overs(self) -> None:
        self.hand_offs = Counter(
            "anabranch_handoffs_total",
            "Calls in flight at a rebalance: given to the next owner, waited for here, or lost, as their time was up",
            ("kind", "side"),
            known=[("model", "given"), *((kind, side) for kind in ("model", "call") for side in ("waited", "lost"))],
        )

    def _model(self) -> None:
        self.model_calls = Counter(
            "anabranch_model_calls_total",
            "Attempts by outcome: ok, refused (429, 529), error (worth another try), rejected (not), ended (by us)",
            ("model", "outcome"),
        )
        self.model_duration = Histogram(
            "anabranch_model_call_duration_seconds",
            "From an attempt's start to its whole reply, or to its failure",
            CALL_S,
            ("model",),
        )
        self.model_wait = Histogram(
            "anabranch_model_wait_seconds",
            "How long a call waited for its model's place or limit, before each attempt",
            WAIT_S,
            ("model",),
        )
        self.model_in_flight = Gauge(
            "anabranch_model_calls_in_flight", "Model calls that have begun and not ended", ("model",)
        )
        self.model_waiting = Gauge(
            "anabranch_model_calls_waiting", "Model calls that wait for a place or their model's limit", ("model",)
        )
        self.tokens = Counter("anabranch_model_tokens_total", f"{_TOKENS}; of replies that count", ("model", "kind"))
        self.discarded = Counter(
            "anabranch_model_discarded_tokens_total",
            f"{_TOKENS}; of replies that were paid for and not used",
            ("model", "kind"),
        )
        self.cost = Counter(
            "anabranch_model_cost_usd_total",
            "Dollars by the configured prices, discarded replies too; only of models that have a price",
            ("model",),
        )
        self.agent_cost = Counter(
            "anabranch_agent_cost_usd_total", "The same dollars, by whose runs they were spent for", ("agent",)
        )
        self.model_retries = Counter(
            "anabranch_model_retries_total",
            "Attempts that are made again, by what the last one failed of",
            ("model", "reason"),
        )
        self.model_retry_budget = Gauge(
            "anabranch_model_retry_budget_ratio",
            "Part of the retries that are allowed for at the moment which is left; at 0 those who failed wait",
            ("model",),
        )
        self.model_breaker = Gauge(
            "anabranch_model_breaker_state",
            "0: the model is asked (closed), 1: one call finds out whether it can be (half open), 2: it is not (open)",
            ("model",),
        )
        self.model_breaker_opened = Counter(
            "anabranch_model_breaker_opened_total", "Times that a model failed too often to be asked", ("model",)
        )
        self.model_fallbacks = Counter(
            "anabranch_model_fallbacks_total",
            "Calls that turned to the agent's other model: as the breaker is open, after tries, or not to wait",
            ("model", "to", "reason"),
        )
        self.stream_dropped = Counter(
            "anabranch_stream_dropped_total",
            "Times that some of what a model said was not told to those who watch, as Kafka did not take it in time",
        )
        self.model_limit_ratio = Gauge(
            "anabranch_model_limit_ratio",
            "Part of the requests at once that the provider's refusals leave; 1: it refuses none",
            ("model",),
        )

    def _calls(self) -> None:
        self.calls_published = Counter(
            "anabranch_calls_published_total",
            "Tool calls that were made and given to Kafka, again after a loss too",
            ("queue",),
        )
        self.calls_early = Counter(
            "anabranch_calls_early_total",
            "Calls that began while the model spoke: started, and used once the reply that has them counted",
            ("queue", "outcome"),
        )
        self.calls_answered = Counter(
            "anabranch_calls_answered_total",
            "Results that count: ok, error, timeout, unknown, expired (past the deadline), rejected (never published)",
            ("queue", "outcome"),
        )
        self.call_turnaround = Histogram(
            "anabranch_call_turnaround_seconds",
            "From the moment that a call was due to its result in the log, by the broker's clock",
            WAIT_S,
            ("queue",),
        )
