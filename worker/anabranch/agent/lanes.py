"""The calls that wait for their model, in a lane for each limit, and this worker's share of all limits.

`Lanes` says which call is next and when to ask again: a timer wakes whoever asks, nothing polls. What a limit is
stands in `budget.py`, whose turn it is in `line.py`, also between the lanes that runs come by. It never makes a call:
`Thinker` does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from anabranch.agent.budget import Budget, limits_of, share_of
from anabranch.agent.line import WEIGHT, Line
from anabranch.config import ModelLimits

log = logging.getLogger(__name__)

GAINED_LATE_S: Final = 1.0
"""How much later a gained share counts. A share is spent evenly, so a longer wait would only be lost."""
SAID_AFTER_S: Final = 5.0
SAID_AGAIN_S: Final = 60.0
"""When the log says that calls wait, and how often."""

Call = TypeVar("Call")


@dataclass(slots=True, eq=False)
class Lane(Generic[Call]):
    """The calls of one model, or of those that share its limits. `begun` run, or wait to be tried again."""

    name: str
    budget: Budget
    line: Line[Call]
    begun: int = 0
    held_since: float | None = None
    said_at: float = -math.inf


class Lanes(Generic[Call]):
    """See the module. At most `ceiling` calls of a lane are begun; `wake` is called when `next` may find more."""

    def __init__(
        self,
        limits: Mapping[str, ModelLimits],
        ceiling: int,
        wake: Callable[[], None],
        steady: Callable[[], float],
        weight: int = WEIGHT,
    ) -> None:
        self._limits, self._ceiling, self._wake, self._steady = limits, ceiling, wake, steady
        self._weight = weight
        self._lanes: dict[str, Lane[Call]] = {}
        self._owned: frozenset[int] = frozenset()
        self._share = 0.0
        self._gaining: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> dict[str, int]:
        """How many calls wait, by the limit's name."""
        return {lane.name: len(lane.line) for lane in self._lanes.values() if len(lane.line)}

    @property
    def all(self) -> Collection[Lane[Call]]:
        return self._lanes.values()

    def of(self, model: str) -> Lane[Call]:
        name, limits = limits_of(model, self._limits)
        if name not in self._lanes:
            self._lanes[name] = Lane(name, Budget(limits, self._ceiling), Line(self._weight))
            self._lanes[name].budget.set_share(self._share, self._steady())
        return self._lanes[name]

    def drop_fresh(self) -> None:
        """What has not begun shall not begin."""
        for lane in self._lanes.values():
            lane.line.drop_fresh()

    # --- our share --------------------------------------------------------------------------------------------------

    def own(self, partitions: frozenset[int], of: int) -> None:
        """These `of` so many are ours: a share that was ours before counts at once, a gained one late."""
        self._set_share(share_of(len(partitions & self._owned), of))
        if partitions - self._owned:
            late = partial(self._set_share, share_of(len(partitions), of))
            self._gaining = asyncio.get_running_loop().call_later(GAINED_LATE_S, late)
        self._owned = partitions

    def disown(self, lost: bool) -> None:
        """None is ours until `own`. If they were `lost`, others may have had them meanwhile."""
        self._set_share(0.0)
        if lost:
            self._owned = frozenset()

    def _set_share(self, share: float) -> None:
        if self._gaining is not None:
            self._gaining.cancel()
            self._gaining = None
        self._share = share
        for lane in self._lanes.values():
            lane.budget.set_share(share, self._steady())
        self._wake()

    # --- who is next ------------------------------------------------------------------------------------------------

    def next(self) -> tuple[Lane[Call], Call] | None:
        """A call that may start now, and is to. The lanes take turns, and in each its tenants."""
        now = self._steady()
        for name, lane in self._lanes.items():
            if (call := self._next_of(lane, now)) is not None:
                del self._lanes[name]
                self._lanes[name] = lane
                return lane, call
        return None

    def _next_of(self, lane: Lane[Call], now: float) -> Call | None:
        if lane.begun < self._ceiling and len(lane.line) and lane.budget.opens_at(now) <= now:
            return lane.line.take()
        if lane.line.begun and lane.budget.opens_at(now, again=True) <= now:
            return lane.line.take(only_begun=True)
        return None

    def watch(self) -> None:
        """Nobody is next: wake up when a limit lets a call through. Whatever else lets one through wakes us itself."""
        now, soon = self._steady(), math.inf
        for lane in self._lanes.values():
            opens = lane.budget.opens_at(now, again=lane.line.begun > 0) if len(lane.line) else now
            if opens <= now:
                lane.held_since = None
            else:
                soon = min(soon, opens)
                _say_who_waits(lane, opens, now)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(soon, self._wake) if soon < math.inf else None


def _say_who_waits(lane: Lane[Call], opens: float, now: float) -> None:
    """Once it has lasted, or will."""
    lane.held_since = now if lane.held_since is None else lane.held_since
    lasts = max(now - lane.held_since, opens - now if opens < math.inf else 0.0)
    if lasts >= SAID_AFTER_S and now - lane.said_at >= SAID_AGAIN_S:
        lane.said_at = now
        log.info("model %s: %d calls wait: %s", lane.name, len(lane.line), lane.budget.held_by(now))


def steady_time() -> float:
    """The running loop's: it is never set back."""
    return asyncio.get_running_loop().time()
