"""Which of its two models a call asks: its agent's own, unless that is not to be had and the other one is.

`Thinker` asks, before a call waits in a line and after each failure, and tells when a model is away, so that those who
wait for it turn to the other one. It never makes a call, and never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from anabranch.agent.model.jobs import Call, Job, Trying
from anabranch.agent.model.lanes import Lanes, ModelLane
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.config import AgentSettings

Why = Literal["breaker", "tries", "wait"]
"""Why the other model is asked: this one's breaker is open, it failed so many times, or it cannot be had soon."""


class Switching:
    """See the module."""

    def __init__(
        self, lanes: Lanes[Call], settings: AgentSettings, meters: AgentMeters, steady: Callable[[], float]
    ) -> None:
        self._lanes, self._settings, self._meters, self._steady = lanes, settings, meters, steady

    def first(self, job: Job) -> ModelLane[Call]:
        """Where a new call waits."""
        lane = self._lanes.of(job.model)
        if job.fallback is None:
            return lane
        if (away := self.away(lane)) is not None and (other := self._other(job, lane)) is not None:
            self._meters.model_fallbacks.count(lane.model, other.model, away)
            return other
        return lane

    def away(self, lane: ModelLane[Call]) -> Why | None:
        """Why nobody should wait for this model, if so."""
        now = self._steady()
        if lane.breaker.opens_at(now) > now:
            return "breaker"
        return "wait" if lane.away_for(now) > self._settings.model_fallback_wait_s else None

    def _other(self, job: Job, lane: ModelLane[Call]) -> ModelLane[Call] | None:
        """The lane of the other model that the job may ask, if that one can be had."""
        if (model := job.other_than(lane.model)) is None:
            return None
        other = self._lanes.of(model)
        return other if self.away(other) is None else None

    def turn(self, trying: Trying, why: Why | None) -> bool:
        """Ask the other model from now on, if there is a reason to and one that can be had."""
        old = trying.lane
        if why is None or (other := self._other(trying.job, old)) is None:
            return False
        self._meters.model_fallbacks.count(old.model, other.model, why)
        old.begun, other.begun = old.begun - 1, other.begun + 1
        trying.lane, trying.in_a_row = other, 0
        return True

    def turn_who_waits(self, lane: ModelLane[Call]) -> None:
        """The model is away for a while: who may ask another one does."""
        if (why := self.away(lane)) is None:
            return
        for tenant, call, by in lane.all_waiting():
            if isinstance(call, Job):
                if (other := self._other(call, lane)) is not None:
                    lane.remove(tenant, call, by)
                    self._meters.model_fallbacks.count(lane.model, other.model, why)
                    other.line.add(tenant, call, by)
            elif self.turn(call, why):
                lane.remove(tenant, call, by)
                call.lane.line.add_begun(tenant, call, by)

    def why(self, trying: Trying, pause: float | None, charged: bool) -> Why | None:
        """Why not to try this model once more but the other one, if so."""
        lane, now, settings = trying.lane, self._steady(), self._settings
        if (away := self.away(lane)) is not None:
            return away
        if trying.in_a_row >= settings.model_fallback_tries:
            return "tries"
        wait = lane.retries.opens_at(now, len(lane.kept)) - now if charged else 0.0
        return "wait" if pause is None or max(pause, wait) > settings.model_fallback_wait_s else None
