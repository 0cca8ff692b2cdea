"""Calls with a serial key: which executions of a key overlap, and which began out of order. Pure functions.

Responsible for: how long an execution lasted, as far as the outside world can tell, and the one excuse for an overlap:
a worker that lost its session without knowing may still be at what its successor starts (DESIGN, "not promised").
Must never: excuse anything in a worker that was merely rolled, scaled or killed; a dead process executes nothing.
Called by: `checker.py`, `report.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.chaos.explain import FOREVER, awoken, hit
from tests.chaos.ledger import Execution, FaultKind, Ledger, Published

SILENCING: Final[frozenset[FaultKind]] = frozenset({"freeze", "half_open"})
"""From which a worker comes back, and may have lost its session meanwhile."""
DEADLY: Final[frozenset[FaultKind]] = frozenset({"kill", "mute"})


@dataclass(frozen=True, slots=True)
class Overlap:
    """`later` began when `earlier`, of the same key, was not over. `cause` is the fault that excuses it, or None."""

    key: str
    earlier: Execution
    later: Execution
    cause: str | None


def by_key(ledger: Ledger) -> dict[str, list[Execution]]:
    """The executions of each serial key, in the order of time."""
    found: dict[str, list[Execution]] = defaultdict(list)
    for execution in sorted(ledger.executions, key=lambda execution: execution.begun):
        if execution.serial is not None:
            found[execution.serial].append(execution)
    return found


def overlaps(ledger: Ledger) -> list[Overlap]:
    """Every pair of executions of one key that were under way at the same time."""
    died = {fault.worker: fault.ended for fault in ledger.faults if fault.kind in DEADLY}
    silenced = [fault for fault in ledger.faults if fault.kind in SILENCING]
    found = []
    for key, done in by_key(ledger).items():
        under_way: list[Execution] = []
        for later in done:
            under_way = [earlier for earlier in under_way if _over(earlier, died) > later.begun]
            for earlier in under_way:
                cause = hit(silenced, [earlier.worker], earlier.begun, later.begun)
                found.append(Overlap(key, earlier, later, cause or awoken(silenced, later.worker, later.begun)))
            under_way.append(later)
    return found


def _over(execution: Execution, died: dict[str | None, float]) -> float:
    """When it was over at the latest; never, if nobody saw its end."""
    return execution.ended or execution.stopped or died.get(execution.worker, FOREVER)


def disorders(ledger: Ledger) -> Iterable[tuple[str, Execution, Execution]]:
    """Two calls of a key of which the first one published began last. A call begins once: a repeat of it comes when it
    must, and what was published again for a loss is not a new call."""
    places = _places(ledger.published)
    for key, done in by_key(ledger).items():
        begun: dict[str, Execution] = {}
        for execution in done:
            begun.setdefault(execution.call_id, execution)
        last: Execution | None = None
        for execution in (each for each in begun.values() if each.call_id in places):
            if last is not None and places[execution.call_id] < places[last.call_id]:
                yield key, execution, last
            else:
                last = execution


def scattered(ledger: Ledger) -> dict[str, set[int]]:
    """The keys whose calls lie in several partitions of the queue: nothing could keep those in order."""
    places = _places(ledger.published)
    found = {
        key: {places[each.call_id][0] for each in done if each.call_id in places}
        for key, done in by_key(ledger).items()
    }
    return {key: partitions for key, partitions in found.items() if len(partitions) > 1}


def _places(published: Iterable[Published]) -> dict[str, tuple[int, int]]:
    """Where each call was published first: partition and offset."""
    found: dict[str, tuple[int, int]] = {}
    for each in sorted(published, key=lambda each: (each.partition, each.offset)):
        found.setdefault(each.call_id, (each.partition, each.offset))
    return found
