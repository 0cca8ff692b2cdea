"""The right to one attempt of a model call: given, settled once the attempt is over, or withdrawn before it is made.

Responsible for: how many attempts are out, and what the limits, the retry budget and the breaker of their models hear
of them; whether a call that waits for what it is made of counts among those that its model is kept busy with. Must
never: decide who is next. Called by: `thinking.py`, which has one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from anabranch.agent.model.breaker import Verdict
from anabranch.agent.model.jobs import Grant, Trying
from anabranch.agent.model.switching import Switching
from anabranch.agent.telemetry.meters import AgentMeters

log = logging.getLogger(__name__)


class Grants:
    """See the module. `wake` is called when others may be given one."""

    def __init__(
        self, switching: Switching, meters: AgentMeters, steady: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._switching, self._meters, self._steady, self._wake = switching, meters, steady, wake
        self.out = 0

    def give(self, trying: Trying, now: float) -> None:
        """Its next attempt may be made, of the model whose lane it is in."""
        lane, request = trying.lane, trying.request
        self.out += 1
        size = len(request.body)
        if request.incomplete is not None:
            size += request.incomplete.size
        started = lane.budget.start(size, request.context.agent.max_tokens, now)
        trying.grant = Grant(started, lane.breaker.sent(now))
        if lane.model not in trying.asked:
            trying.asked.add(lane.model)
            lane.retries.called(now)

    def settle(self, trying: Trying, grant: Grant, usage: dict[str, Any] | None, verdict: Verdict) -> None:
        """An attempt is over. Without `usage` nobody knows what it has used."""
        lane, now = trying.lane, self._steady()
        self.out -= 1
        trying.grant = None
        lane.settle(grant.attempt, usage, now)
        if verdict == "well":
            lane.retries.replied(now)
        closed = lane.breaker.state(now) == "closed"
        if lane.breaker.ended(grant.passed, verdict, now):
            self._meters.model_breaker_opened.count(lane.model)
            again_s = lane.breaker.opens_at(now) - now
            log.warning("model %s fails too often to be asked: one call finds out in %.0f s", lane.model, again_s)
            self._switching.turn_who_waits(lane)
        elif not closed and lane.breaker.state(now) == "closed":
            log.info("model %s is asked again", lane.model)
        self._wake()

    def withdraw(self, trying: Trying) -> None:
        """The attempt that it may make is not made, or not yet."""
        if (grant := trying.grant) is not None:
            trying.lane.budget.withdrawn(grant.attempt, self._steady())
            self.settle(trying, grant, {}, "unknown")

    # --- a call that waits for what it is made of -------------------------------------------------------------------

    def leave(self, trying: Trying) -> None:
        """It is late. Until it comes back it keeps neither a place nor its model from others."""
        self.withdraw(trying)
        lane, trying.is_late = trying.lane, True
        lane.begun, lane.late = lane.begun - 1, lane.late + 1
        self._wake()

    def come_back(self, trying: Trying) -> None:
        """If it was late, it no longer is."""
        if trying.is_late:
            lane, trying.is_late = trying.lane, False
            lane.begun, lane.late = lane.begun + 1, lane.late - 1
            self._wake()
