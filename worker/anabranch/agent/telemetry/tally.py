"""Counts what a partition's log says of runs and calls: each event once, by whoever is its live owner then.

It reads the fold and changes nothing but the meters. Called by: `audience.py`, for each event that is ours to tell.
"""

from __future__ import annotations

from typing import Final

from anabranch import log_events as e
from anabranch.agent.answer import error_of
from anabranch.agent.state import Call, Run
from anabranch.agent.telemetry.meters import CODES, AgentMeters
from anabranch.meters import OTHER
from anabranch.registry import Registry

_RESULTS: Final = frozenset({e.ToolReturned, e.CallExpired, e.CallLost})


def waiting_call(run: Run, event: e.Event) -> Call | None:
    """Before the fold: the call of `run` that this event may give its result."""
    if type(event) not in _RESULTS:
        return None
    call = run.call(event.call_id)  # type: ignore[union-attr]  # mypy does not see what `_RESULTS` are
    return call if call is not None and call.result is None else None


class Tally:
    """See the module."""

    def __init__(self, meters: AgentMeters, registry: Registry) -> None:
        self._meters, self._registry = meters, registry

    def folded(self, run: Run | None, event: e.Event, waiting: Call | None, offset: int, at: float) -> None:
        """After the fold of the event at `offset`, with the broker's time `at`."""
        if waiting is not None:
            self._call(waiting, event, at)
        elif type(event) is e.ModelReplied:
            self._rejected(run, event)
        elif type(event) is e.RequestNoted:
            self._meters.requests_noted.count(event.code)
        if run is None or run.stirred != offset:
            return  # nothing began or ended by it
        if type(event) is e.RunRequested:
            self._opened(run)
        if run.ending is not None and run.ending.offset == offset:
            self._ended(run, run.ending.at)

    def _rejected(self, run: Run | None, event: e.ModelReplied) -> None:
        """What the model asked for and nobody publishes, if it is this reply that counts."""
        rejected = [planned for planned in event.plan if planned.rejected is not None]
        if rejected and run is not None and run.turns and run.turns[-1].attempt == event.attempt:
            self._meters.calls_answered.add(len(rejected), "", "rejected")

    def _opened(self, run: Run) -> None:
        agent = self._agent(run)
        self._meters.runs_admitted.count(agent)
        self._meters.run_queued.observe(run.opened_at - run.opening.requested_at, agent)

    def _ended(self, run: Run, at: float) -> None:
        assert run.ending is not None
        agent, status, error = self._agent(run), run.ending.status, error_of(run)
        code = "" if error is None else error.code if error.code in CODES else OTHER
        self._meters.runs_ended.count(agent, status, code)
        self._meters.run_duration.observe(at - run.opened_at, agent, status)

    def _call(self, call: Call, event: e.Event, at: float) -> None:
        if type(event) is e.CallLost:
            self._meters.hand_offs.count("call", "lost")
        if call.result is None:
            return
        queue, outcome = call.planned.queue or OTHER, call.result.outcome
        late = outcome == "timeout" and type(event) is e.CallExpired
        self._meters.calls_answered.count(queue, "expired" if late else outcome)
        self._meters.call_turnaround.observe(at - call.due_at, queue)

    def _agent(self, run: Run) -> str:
        name = run.opening.request.agent or ""
        return name if name in self._registry.agents else OTHER
