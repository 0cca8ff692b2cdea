"""When the log of a partition is to be cleaned, and with which snapshots. PURE.

The next owner folds from *low*, so what lies between there and the log's end should be about what open runs
are made of. When dead bytes outweigh live ones, open runs are said again at the end, and *low* moves past
their older events once that has been folded. So are cancels that still wait for their request. Each cleaning
writes at most the open bytes, and the next one comes only after as many have been appended: so bytes stay
linear. Retention would eat what is older still.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from anabranch import log_events as e
from anabranch.agent import snapshot
from anabranch.agent.state import Partition, Run
from anabranch.config import AgentSettings

FINE: Final = 64
"""A log is measured to within this part of what is not worth a cleaning."""


class LogSize:
    """How many bytes lie between an offset and the end, to within `step`."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._offsets: list[int] = []
        self._before: list[int] = []  # the bytes before each of them
        self.total = 0

    def add(self, offset: int, size: int) -> None:
        if not self._offsets or self.total - self._before[-1] >= self._step:
            self._offsets.append(offset)
            self._before.append(self.total)
        self.total += size

    def since(self, offset: int) -> int:
        place = bisect_right(self._offsets, offset) - 1
        return self.total - self._before[place] if place >= 0 else self.total

    def forget_before(self, offset: int) -> None:
        place = bisect_right(self._offsets, offset) - 1
        if place > 0:
            del self._offsets[:place], self._before[:place]


def is_due(since_low: int, open_bytes: int, since_cleaning: int, small: int) -> bool:
    """Whether dead bytes outweigh live ones, and enough was appended since the last time.

    `small` are the bytes of log that are not worth a cleaning.
    """
    return since_low > max(small, 2 * open_bytes) and since_cleaning > max(small // 2, open_bytes)


def aged(runs: Iterable[Run], now: float, age_s: float) -> list[Run]:
    """The open runs whose oldest event is older than that: retention must not reach it."""
    return [run for run in runs if run.open and not run.parked and now - run.first_at > age_s]


def oldest(runs: Iterable[Run], room: int) -> list[Run]:
    """The open runs to be said again first: those that hold low back. `room` bounds their bytes."""
    chosen: list[Run] = []
    for run in sorted((run for run in runs if run.open and not run.parked), key=lambda run: run.first):
        if chosen and room < run.size:
            break
        chosen.append(run)
        room -= run.size
    return chosen


def snapshots(
    state: Partition, runs: Iterable[Run], author: str, part_bytes: int = snapshot.PART
) -> Iterator[e.RunSnapshot]:
    """The events that say these runs again, as they are now."""
    as_of, next_request, next_bulk = state.position, state.next_request or 0, state.next_bulk
    for run in runs:
        bodies = snapshot.write(run, part_bytes)
        for part, body in enumerate(bodies, 1):
            yield e.RunSnapshot(
                run.run_id, run.life, as_of, next_request, part, len(bodies), author, body, next_bulk=next_bulk
            )


def cancels(state: Partition, since: float) -> Iterator[e.RunCancelled]:
    """The events that say again which cancels, of before `since` in epoch seconds, still wait for their request."""
    for run_id, cancel in state.waiting_cancels():
        if cancel.at < since:
            yield e.RunCancelled(run_id, None, cancel.reason, *cancel.before)


class Cleaner:
    """Chooses the runs of one partition to be said again; `size` is that of its log, as it is read."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self.size = LogSize(max(1, settings.clean_bytes // FINE))
        self._cleaned = 0  # the log's size at the last cleaning

    def choose(
        self, runs: Iterable[Run], low: int, open_bytes: int, now: float, age_s: float
    ) -> tuple[list[Run], bool]:
        """The runs to be said again now, if the log from `low` on is mostly dead (which is told as well), or about to
        be eaten by retention.
        """
        runs, settings = list(runs), self._settings
        since_low, since_cleaning = self.size.since(low), self.size.total - self._cleaned
        if is_due(since_low, open_bytes, since_cleaning, settings.clean_bytes):
            self._cleaned = self.size.total
            return oldest(runs, settings.clean_at_once_bytes), True
        return aged(runs, now, age_s), False
