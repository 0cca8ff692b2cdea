"""A run as somebody sees it who only reads the log: clients that watch, and the commands.

It folds as an owner does, with the same fold, so what is shown is what is. It never appends.
"""

from __future__ import annotations

from collections.abc import Sequence

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.state import Partition
from anabranch.codec import Record, decode, header
from anabranch.errors import WireError
from anabranch.events import RunEvent
from anabranch.security.signing import NO_SIGNER, Signer

_LINKS = ("run.requested", "request.noted")


class LogView:
    """Folds one partition of the log, all of its runs or only one. What `signer` refuses counts as unreadable."""

    def __init__(self, only: str | None = None, signer: Signer = NO_SIGNER) -> None:
        self._only, self._signer = only, signer
        self.state = Partition()

    def take(self, records: Sequence[Record]) -> list[RunEvent]:
        """Fold records; returns the events that spoke of a run (of the one, if only one is looked at)."""
        seen = [self._take(record) for record in records]
        return [event for event in seen if event is not None]

    def _take(self, record: Record) -> RunEvent | None:
        kind = header(record.headers, "ce_type") or ""
        run_id = header(record.headers, "ce_runid")
        if self._only is not None and run_id not in (None, self._only) and kind not in _LINKS:
            return None
        try:
            self._signer.check(record)
            event: e.Event | None = decode(record)
        except WireError:
            event = None
        at = record.timestamp / 1000
        run = fold.apply(self.state, event, record.offset, at)
        if self._only is not None and run_id is not None and run_id != self._only:
            self.state.runs.pop(run_id, None)
            return None
        if event is None or (run_id is None and kind != "calls.handed_off"):
            return None
        return RunEvent(kind, at, record.offset, event, run)
