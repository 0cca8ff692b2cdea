"""Tells of a partition's runs, and of their calls, as the fold sees them end: each once, by whoever owns it then.

Responsible for: what of a predecessor's is told again. One that died may not have sent what it told of, so its
successor repeats what ended in the last `AGAIN_S` seconds, under the same ids; of a predecessor that released the
partition nothing is repeated, for it lives to send it. Must never: change the fold, or hold back more than `HELD`
spans. Called by: `audience.py`, for each event, where tracing is on.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from anabranch import log_events as e
from anabranch.agent.state import Run, Turn
from anabranch.agent.telemetry.traces import AgentTraces
from anabranch.registry import Registry
from anabranch.spans import Span, sampled

AGAIN_S: Final = 60.0
"""A session's time, a takeover, and what an exporter holds back."""
HELD: Final = 5000


class Telling:
    """See the module."""

    def __init__(self, partition: int, traces: AgentTraces, registry: Registry) -> None:
        self._partition, self._traces, self._registry = partition, traces, registry
        self._held: deque[Span] = deque(maxlen=HELD)

    def live(self) -> None:
        """The predecessor's log has been read."""
        since = self._traces.now() - AGAIN_S
        for span in self._held:
            if span.end >= since:
                self._traces.emit(span)
        self._held.clear()

    def folded(self, run: Run | None, event: e.Event, offset: int, at: float, silent: bool) -> None:
        """After the fold of the event at `offset`, with the broker's time `at`; `silent`: it was a predecessor's."""
        match event:
            case e.PartitionReleased():
                self._held.clear()
            case e.RequestNoted() if event.code == "rejected" and (trace := sampled(event.trace)) is not None:
                self._tell(self._traces.rejected(event, trace, at), silent)
            case e.ModelReplied() if silent and run is not None:
                self._retell(run, event)
        if run is not None and run.trace is not None and run.stirred == offset:
            self._stirred(run, event, offset, silent)

    def _stirred(self, run: Run, event: e.Event, offset: int, silent: bool) -> None:
        """Something of the run has begun or ended here."""
        if (trace := sampled(run.trace)) is None:
            return
        if type(event) is e.RunRequested:
            self._tell(self._traces.waited(run, trace), silent)
        over = run.ending is not None and run.ending.offset == offset
        if (turn := _ended_here(run, offset, over)) is not None:
            for call in turn.calls.values():
                self._tell(self._traces.call(run, call, trace), silent)
        if over:
            self._tell(self._traces.ended(run, trace, self._partition), silent)

    def _retell(self, run: Run, event: e.ModelReplied) -> None:
        trace = sampled(run.trace)
        if trace is not None and run.turns and run.turns[-1].attempt == event.attempt:
            agent = self._registry.agent(run.opening.request.agent or "", run.opening.revision)
            self._tell(self._traces.retold(run, event, trace, agent), silent=True)

    def _tell(self, span: Span | None, silent: bool) -> None:
        if span is None:
            return
        if silent:
            self._held.append(span)
        else:
            self._traces.emit(span)


def _ended_here(run: Run, offset: int, over: bool) -> Turn | None:
    """The turn whose calls have all got their results here, or get none any more."""
    if not run.turns:
        return None
    turn = run.turns[-1]
    if over:
        return turn if turn.finished_at is None else None
    return turn if run.owed and run.owed_offset == offset else None
