"""The calls that wait for their model, in a lane for each, and this worker's share of all limits.

`Lanes` says which call is next and when to ask again: a timer wakes whoever asks, nothing polls. What a limit is
stands in `budget.py`, which lanes of the same limit share; whether a model is asked at all in `breaker.py`, how many
retries there may be in `retrying.py`, whose turn it is in `line.py`, also between the lanes that runs come by. It never
makes a call: `Thinker` does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from anabranch.agent.model.breaker import Breaker, Rules
from anabranch.agent.model.budget import MINUTE_S, Attempt, Budget, limits_of, share_of
from anabranch.agent.model.line import Line
from anabranch.agent.model.retrying import RetryBudget
from anabranch.config import AgentSettings, ModelLimits
from anabranch.fields import Lane
from anabranch.wording import counted

log = logging.getLogger(__name__)

GAINED_LATE_S: Final = 1.0
"""How much later a gained share counts. A share is spent evenly, so a longer wait would only be lost."""
SAID_AFTER_S: Final = 5.0
SAID_AGAIN_S: Final = 60.0
"""When the log says that calls wait, and how often."""

Call = TypeVar("Call")


@dataclass(slots=True, eq=False)
class ModelLane(Generic[Call]):
    """The calls of one model, under the limit `name`. `begun` run, or wait to be tried again; `kept` are those of them
    that wait for the retry budget, each with its tenant and the lane that its run came by. `late` have begun too, and
    wait for what they are made of, in nobody's way; what lacks something as well is set `aside` if these are too many.
    """

    model: str
    name: str
    budget: Budget
    line: Line[Call]
    breaker: Breaker
    retries: RetryBudget
    begun: int = 0
    late: int = 0
    kept: deque[tuple[str, Call, Lane]] = field(default_factory=deque)
    aside: deque[tuple[str, Call, Lane]] = field(default_factory=deque)
    held_since: float | None = None
    disbelieved: bool = False
    said_at: float = -math.inf

    def settle(self, attempt: Attempt, usage: Mapping[str, Any] | None, now: float) -> None:
        """An attempt is over: what it has used counts. Nonsense is said once, and does not."""
        nonsense = self.budget.ended(attempt, usage, now)
        if nonsense is not None and not self.disbelieved:
            self.disbelieved = True
            log.warning(
                "the server of model %r says that a call has used %s, which none can: its estimate counts against the "
                "limits instead. It is not said again",
                self.model,
                nonsense,
            )

    @property
    def waiting(self) -> int:
        return len(self.line) + len(self.kept) + len(self.aside)

    def opens_at(self, now: float, again: bool = False) -> float:
        """When the next call may start; see `Budget.opens_at`."""
        opens, closed_until = self.budget.opens_at(now, again), self.breaker.opens_at(now)
        return opens if opens >= closed_until else closed_until

    def away_for(self, now: float) -> float:
        """How long nobody may ask the model, whoever it is: its breaker is open, or the provider wants a pause."""
        return max(self.breaker.opens_at(now), self.budget.paused_until) - now

    def all_waiting(self) -> list[tuple[str, Call, Lane]]:
        """Those that wait for the model, each with its tenant and the lane that its run came by."""
        return [*self.line.all(), *self.kept]

    def remove(self, tenant: str, call: Call, by: Lane) -> None:
        """It does not wait here any more, if it did."""
        self.line.remove(tenant, call, by)
        for others in (self.kept, self.aside):
            if (entry := (tenant, call, by)) in others:
                others.remove(entry)

    def let_retries_go(self, now: float) -> None:
        """Those that the retry budget allows for wait for their turn from now on."""
        while self.kept and self.retries.opens_at(now) <= now:
            self.retries.spend(now)
            self.line.add_begun(*self.kept.popleft())


class Lanes(Generic[Call]):
    """See the module. `wake` is called when `next` may find more."""

    def __init__(
        self,
        limits: Mapping[str, ModelLimits],
        settings: AgentSettings,
        wake: Callable[[], None],
        steady: Callable[[], float],
    ) -> None:
        self._limits, self._settings, self._wake, self._steady = limits, settings, wake, steady
        self._ceiling = settings.model_concurrency
        self._lanes: dict[str, ModelLane[Call]] = {}
        self._budgets: dict[str, Budget] = {}
        self._owned: frozenset[int] = frozenset()
        self._share = 0.0
        self._gaining: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> dict[str, int]:
        """How many calls wait, by the limit's name."""
        counted: Counter[str] = Counter()
        for lane in self._lanes.values():
            counted[lane.name] += lane.waiting
        return {name: number for name, number in counted.items() if number}

    @property
    def all(self) -> Collection[ModelLane[Call]]:
        return self._lanes.values()

    def of(self, model: str) -> ModelLane[Call]:
        """Calls go there that ask `model`. Models that share a limit share its budget, and nothing else."""
        if (known := self._lanes.get(model)) is not None:
            return known
        name, limits = limits_of(model, self._limits)
        if (budget := self._budgets.get(name)) is None:
            budget = self._budgets[name] = Budget(limits, self._ceiling)
            budget.set_share(self._share, self._steady())
        settings = self._settings
        rules = Rules(
            settings.model_breaker_calls,
            settings.model_breaker_ratio,
            settings.model_breaker_open_s,
            settings.model_breaker_lasting_s,
        )
        retries = RetryBudget(settings.model_retry_ratio, settings.model_retries_per_minute / MINUTE_S)
        line = Line[Call](settings.interactive_weight)
        lane = self._lanes[model] = ModelLane(model, name, budget, line, Breaker(rules), retries)
        return lane

    def drop_fresh(self) -> None:
        """What has not begun shall not begin."""
        for lane in self._lanes.values():
            lane.line.drop_fresh()
            lane.aside.clear()

    # --- what waits for what it is made of -------------------------------------------------------------------------

    @property
    def has_many_late(self) -> bool:
        """Whether as many calls wait for what they are made of as may be made at once: each has a task, and asks."""
        return sum(lane.late for lane in self._lanes.values()) >= self._ceiling

    def take_back(self) -> None:
        """Of what was set aside, let so many wait for their turn as may lack something."""
        room = self._ceiling - sum(lane.late for lane in self._lanes.values())
        for lane in self._lanes.values():
            for _ in range(min(room, len(lane.aside))):
                lane.line.add(*lane.aside.popleft())

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
        for budget in self._budgets.values():
            budget.set_share(share, self._steady())
        self._wake()

    # --- who is next ------------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[ModelLane[Call], Call] | None:
        """A call that may start now, and is to. The lanes take turns, and in each its tenants."""
        for model, lane in self._lanes.items():
            if lane.kept:
                lane.let_retries_go(now)
            if (call := self._next_of(lane, now)) is not None:
                del self._lanes[model]
                self._lanes[model] = lane
                return lane, call
        return None

    def _next_of(self, lane: ModelLane[Call], now: float) -> Call | None:
        if not len(line := lane.line):
            return None
        if lane.begun < self._ceiling and lane.opens_at(now) <= now:
            return line.take() if lane.breaker.is_closed else line.take_probe()
        if line.begun and lane.opens_at(now, again=True) <= now:
            return line.take(only_begun=True)
        return None

    def watch(self, now: float) -> None:
        """Nobody is next: wake up when a limit lets a call through. Whatever else lets one through wakes us itself.

        `now` is what `next` was asked with last: what a limit lets through from then on is seen by the timer alone.
        """
        soon = math.inf
        for lane in self._lanes.values():
            lane.let_retries_go(now)
            opens = lane.opens_at(now, again=lane.line.begun > 0) if len(lane.line) else now
            if opens <= now:
                lane.held_since = None
            else:
                soon = min(soon, opens)
                _say_who_waits(lane, opens, now)
            if lane.kept:
                soon = min(soon, lane.retries.opens_at(now))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(soon, self._wake) if soon < math.inf else None


def _say_who_waits(lane: ModelLane[Call], opens: float, now: float) -> None:
    """Once it has lasted, or will."""
    lane.held_since = now if lane.held_since is None else lane.held_since
    lasts = max(now - lane.held_since, opens - now if opens < math.inf else 0.0)
    if lasts >= SAID_AFTER_S and now - lane.said_at >= SAID_AGAIN_S:
        lane.said_at = now
        waiting = counted(lane.waiting, "call waits", "calls wait")
        log.info("model %s: %s: %s", lane.model, waiting, _held_by(lane, now))


def _held_by(lane: ModelLane[Call], now: float) -> str:
    opens = lane.breaker.opens_at(now)
    if opens <= now:
        return lane.budget.held_by(now)
    when = "one call is finding out" if opens == math.inf else f"one call finds out in {opens - now:.0f} s"
    return f"it fails too often to be asked; {when}"
