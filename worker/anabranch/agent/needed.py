"""The runs of one fold that are open or not answered yet, as each commit asks for them. PURE.

There may be ten thousand that wait for a tool, and a commit every second in each partition. So which of them is the
oldest is looked for only when the last one is needed no more, and a run all of whose publications are settled is looked
at again only once it was folded on. `owner.py` says what was folded, `reach.py` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from anabranch.agent import effects
from anabranch.agent.effects import CallDue, Publication
from anabranch.agent.state import Life, Run

Settled = Callable[[Publication], bool]


def causes(wanted: Iterable[Publication], is_settled: Settled) -> Iterator[int]:
    """Of the publications that are not settled; at-most-once calls follow their dispatch alone."""
    for due in wanted:
        if not (isinstance(due, CallDue) and due.at_most_once) and not is_settled(due):
            yield due.cause


class Needed:
    """See the module."""

    def __init__(self) -> None:
        self._runs: dict[Life, Run] = {}
        self._settled: set[Life] = set()
        self._oldest: tuple[int, Run] | None = None

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def folded(self, run: Run) -> None:
        """It is needed, or is again, and may want something else than before."""
        life = (run.run_id, run.life)
        self._runs[life] = run
        self._settled.discard(life)
        if self._oldest is not None and run.first < self._oldest[0]:
            self._oldest = None

    def drop(self, life: Life) -> None:
        self._runs.pop(life, None)
        self._settled.discard(life)

    def oldest(self, is_needed: Callable[[Run], bool]) -> Run | None:
        """The one whose first event is the oldest."""
        if self._oldest is not None:
            first, run = self._oldest
            if run.first == first and self._runs.get((run.run_id, run.life)) is run and is_needed(run):
                return run
        found = min((run for run in self if is_needed(run)), key=lambda run: run.first, default=None)
        self._oldest = (found.first, found) if found is not None else None
        return found

    def first_unsettled(self, is_settled: Settled) -> int | None:
        """The oldest cause of a publication that is not settled."""
        first: int | None = None
        for life in [life for life in self._runs if life not in self._settled]:
            cause = min(causes(effects.wanted(self._runs[life]), is_settled), default=None)
            if cause is None:
                self._settled.add(life)
            elif first is None or cause < first:
                first = cause
        return first
