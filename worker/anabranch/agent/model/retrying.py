"""What is tried again, when, and how often in all: by class of error, with a budget for each model.

PURE: time and chance are given, in seconds of one clock; `thinking.py` asks, and waits. It never ends a run: what may
not be tried again yet waits, and only the run's own deadline bounds that.

- **Full jitter.** A pause is drawn between nothing and a bound that doubles with each try; `retry-after` is the least,
  as far as the model itself is paused for it.
- **A budget** (`RetryBudget`): retries are a part of the first tries, and a small rate besides. So a provider that
  fails all is asked a fifth more than it would be, and not many times as often. Each reply allows for `REPLY` more:
  when it works again, those who wait come back twice as fast with each round trip. Refusals because of a limit are not
  counted: the model's pace (`budget.py`) holds those already, and whoever was refused was not served.
- **Named** (`Tries`): each attempt that comes to nothing is told to the log, by its call's next event, or by one of
  their own: the first soon, for somebody may be watching, and then once a minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Final, Literal

from anabranch import log_events as e
from anabranch.agent.model.breaker import Verdict
from anabranch.agent.model.budget import PAUSE_MAX_S
from anabranch.agent.model.seam import Failure, Transient
from anabranch.config import AgentSettings
from anabranch.values import frozen

RECENT_S: Final = 60.0
REPLY: Final = 2.0
BURST: Final = 64.0
"""Retries that are kept for when they are needed, beside the part of the last minute's first tries: what fails here and
there, or for seconds, is tried again at once.
"""


TELL_FIRST_S: Final = 3.0
TELL_S: Final = 60.0
"""How long attempts that cost nothing wait for an event that names them, once the first of their call were told."""
NAMED: Final = 16
"""How many attempts one event names one by one; those in the middle are counted together."""
_REASON: Final = 200

Nothing = Failure | Literal["rejected", "ended", "unusable"]
"""Why an attempt came to nothing: beside the failures, nothing cures it, nobody wanted it, it does not fit the log."""


@frozen()
class Rule:
    """What follows from a class of error. The first pause is so many times `model_backoff_s`; `charged`: trying again
    takes from the budget.
    """

    patience: float
    charged: bool
    verdict: Verdict


RULES: Final[Mapping[Failure, Rule]] = {
    "rate_limit": Rule(1.0, charged=False, verdict="there"),
    "overload": Rule(2.0, charged=True, verdict="ill"),
    "server": Rule(1.0, charged=True, verdict="ill"),
    "transport": Rule(1.0, charged=True, verdict="ill"),
    "broken": Rule(1.0, charged=True, verdict="ill"),
    "silence": Rule(1.0, charged=True, verdict="ill"),
    "conflict": Rule(1.0, charged=True, verdict="there"),
}


def pause_s(error: Transient, tries: int, left_s: float, settings: AgentSettings, chance: Random) -> float | None:
    """How long to wait after so many tries; None if that is longer than the `left_s` until the run's deadline."""
    first = settings.model_backoff_s * RULES[error.failure].patience
    pause = chance.uniform(0, min(settings.model_backoff_max_s, first * 2 ** min(tries - 1, 16)))
    if pause >= left_s > settings.model_backoff_s:
        pause = left_s / 2  # there is time for another try
    if error.retry_after is not None:
        pause = max(pause, min(error.retry_after, PAUSE_MAX_S))
    return pause if pause < left_s else None


class RetryBudget:
    """Retries of a model on this worker: each first try allows for `ratio` of one, each reply for `REPLY`, and `floor`
    a second come besides.
    """

    def __init__(self, ratio: float, floor: float) -> None:
        self._ratio, self._floor = ratio, floor
        self._level, self._recent, self._at = BURST, 0.0, 0.0

    def called(self, now: float) -> None:
        """A first try goes out."""
        self._fill(now, self._ratio, first_tries=1)

    def replied(self, now: float) -> None:
        """An attempt was answered: the model works."""
        self._fill(now, REPLY)

    def spend(self, now: float) -> None:
        """A retry goes out; `opens_at` has allowed it."""
        self._fill(now)
        self._level -= 1

    def opens_at(self, now: float, behind: int = 0) -> float:
        """When the next retry may go out, behind so many others, if there are no first tries until then."""
        self._fill(now)
        missing = 1 + behind - self._level
        if missing <= _TINY:
            return now
        return now + missing / self._floor if self._floor else math.inf

    def left(self, now: float) -> float:
        """The part of it that is there, from 1 down."""
        self._fill(now)
        return max(0.0, min(1.0, self._level / self._most))

    @property
    def _most(self) -> float:
        return BURST + self._ratio * self._recent

    def _fill(self, now: float, more: float = 0.0, first_tries: int = 0) -> None:
        """What has come until now, and so much more."""
        if (passed := now - self._at) > 0:
            self._at = now
            self._recent *= math.exp(-passed / RECENT_S)
            self._level += self._floor * passed
        self._recent += first_tries
        self._level = min(self._most, self._level + more)


_TINY: Final = 1e-6
"""A timer may ring a little early."""


class Tries:
    """The attempts of one call that no event has named yet. `began` is when the call did."""

    def __init__(self, began: float) -> None:
        self._tried: list[e.Tried] = []
        self._due = began + TELL_FIRST_S

    def add(self, tried: e.Tried) -> None:
        if tried.reason is not None and len(tried.reason) > _REASON:
            tried = replace(tried, reason=f"{tried.reason[: _REASON - 1]}…")
        self._tried.append(tried)
        if len(self._tried) > NAMED:
            one, other = self._tried[NAMED // 2 - 1 : NAMED // 2 + 1]
            took_s = round(one.took_s + other.took_s, 3)
            self._tried[NAMED // 2 - 1 : NAMED // 2 + 1] = [replace(one, times=one.times + other.times, took_s=took_s)]

    @property
    def all(self) -> tuple[e.Tried, ...]:
        return tuple(self._tried)

    def are_due(self, now: float) -> bool:
        """Whether they have waited long enough to be told by themselves."""
        return bool(self._tried) and now >= self._due

    def take(self, now: float) -> tuple[e.Tried, ...]:
        """All of them, for an event."""
        taken, self._tried, self._due = self.all, [], now + TELL_S
        return taken
