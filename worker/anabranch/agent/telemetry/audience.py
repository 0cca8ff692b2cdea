"""Whoever is told of what an owner has folded: the meters, the traces, and the saturation of queues.

Responsible for: that each event is told once, by whoever owns its partition then. Must never: change the fold, or
decide anything. Called by: `agent/owner.py`, for each event.
"""

from __future__ import annotations

from anabranch import log_events as e
from anabranch.agent.state import Call, Run
from anabranch.agent.station import Station
from anabranch.agent.telemetry.tally import Tally
from anabranch.agent.telemetry.telling import Telling


class Audience:
    """See the module."""

    def __init__(self, partition: int, station: Station) -> None:
        self._registry, self._saturation = station.registry, station.saturation
        self._begins = 0  # what lies below was told by somebody else, if at all
        self._tally = Tally(station.meters, station.registry)
        self._telling = None if station.traces is None else Telling(partition, station.traces, station.registry)

    def begin(self, offset: int) -> None:
        """From here on it is ours to tell."""
        self._begins = offset

    def live(self) -> None:
        """The predecessor's log has been read."""
        if self._telling is not None:
            self._telling.live()

    def folded(self, event: e.Event, run: Run | None, waiting: Call | None, offset: int, at: float, live: bool) -> None:
        """What the event at `offset` has brought; `waiting` is the call that it may have given its result."""
        is_ours = offset >= self._begins
        if is_ours:
            self._tally.folded(run, event, waiting, offset, at)
        if live:
            if waiting is not None and waiting.result is not None and waiting.planned.queue is not None:
                self._saturation.returned(waiting.planned.queue)
            if run is not None and run.ending is not None and run.ending.offset == offset:
                self._ended(run)
        if self._telling is not None:
            self._telling.folded(run, event, offset, at, silent=not is_ours)

    def _ended(self, run: Run) -> None:
        """It puts no more into any queue."""
        if (agent := self._registry.agent(run.opening.request.agent or "")) is not None:
            self._saturation.ended(agent)
