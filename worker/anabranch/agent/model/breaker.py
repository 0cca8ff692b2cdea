"""Whether a model is asked at all: a circuit breaker for each, from what its latest calls came to.

PURE: the time is given, in seconds of one clock; `lanes.py` asks, `thinking.py` tells how calls ended. It knows no run
and never fails one: while it is open calls wait, or another model is asked.

    closed ----- of at least `calls` in the last minute so many failed as `ratio` says, and the first of these
                 `lasting_s` ago: what passes by itself in seconds is left to the retries -------> open
    open ------- `open_s` later, and twice as long after each probe that failed ------------> half open
    half open -- its one probe was answered -> closed;  it failed -> open;  nobody knows -> another probe

What speaks against a model is that it is overloaded, fails inside, breaks off, or cannot be reached. A refusal because
of a limit, and a request that is wrong by itself, say only that somebody is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from anabranch.values import frozen

State = Literal["closed", "half open", "open"]
Verdict = Literal["well", "ill", "there", "unknown"]
"""What an attempt says of its model: it replied, it failed, it answered something else, or nobody waited for it."""

WINDOW_S: Final = 60.0
_SLOTS: Final = 12
_TINY: Final = 1e-6
LONGEST: Final = 3
"""How many times `open_s` it stays open at most, however many probes have failed."""


@frozen()
class Rules:
    """When it opens, and for how many seconds: see the module."""

    calls: int
    ratio: float
    open_s: float
    lasting_s: float = 0.0


@frozen(eq=False)
class Pass:
    """What a call that goes out shows when it is back."""

    round: int
    is_probe: bool


@dataclass(slots=True)
class _Slot:
    number: int = -1
    calls: int = 0
    failed: int = 0
    failed_at: float = 0.0


class Breaker:
    """See the module."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._slots = [_Slot() for _ in range(_SLOTS)]
        self._until: float | None = None  # None: it is closed
        self._failures = 0  # probes that failed since it was closed
        self._round = 0
        self._probe: Pass | None = None

    @property
    def is_closed(self) -> bool:
        return self._until is None

    def state(self, now: float) -> State:
        if self.is_closed:
            return "closed"
        return "open" if self._is_early(now) else "half open"

    def opens_at(self, now: float) -> float:
        """When the next call may go out: `now` if it may, `inf` if that depends on the probe that is out."""
        if self._until is None:
            return now
        return math.inf if self._probe is not None else self._until if self._is_early(now) else now

    def sent(self, now: float) -> Pass:
        """A call goes out; `opens_at` has allowed it."""
        given = Pass(self._round, is_probe=self._until is not None)
        if given.is_probe:
            self._probe = given
        return given

    def ended(self, given: Pass, verdict: Verdict, now: float) -> bool:
        """What came of it. True if the breaker has opened by it."""
        if given is self._probe:
            return self._probed(verdict, now)
        if given.round != self._round or verdict in ("there", "unknown"):
            return False  # it was sent before the breaker opened, or says nothing
        slot = self._slot(now)
        slot.calls += 1
        if verdict == "ill":
            slot.failed, slot.failed_at = slot.failed + 1, slot.failed_at if slot.failed else now
        return verdict == "ill" and self._is_too_much(now) and self._open(now)

    def _is_early(self, now: float) -> bool:
        """A timer may ring a little early."""
        return self._until is not None and now < self._until - _TINY

    def _probed(self, verdict: Verdict, now: float) -> bool:
        self._probe = None
        if verdict == "ill":
            self._failures += 1
            return self._open(now)
        if verdict != "unknown":
            self._until, self._failures = None, 0
            self._slots = [_Slot() for _ in range(_SLOTS)]
        return False

    def _open(self, now: float) -> bool:
        self._round += 1
        self._until = now + self._rules.open_s * min(LONGEST, 2.0 ** min(self._failures, 16))
        return True

    def _is_too_much(self, now: float) -> bool:
        oldest = int(now / WINDOW_S * _SLOTS) - _SLOTS + 1
        recent = [slot for slot in self._slots if slot.number >= oldest]
        calls, failed = sum(slot.calls for slot in recent), sum(slot.failed for slot in recent)
        since = min((slot.failed_at for slot in recent if slot.failed), default=now)
        lasts = now - since >= self._rules.lasting_s - _TINY
        return lasts and calls >= self._rules.calls and failed >= calls * self._rules.ratio

    def _slot(self, now: float) -> _Slot:
        number = int(now / WINDOW_S * _SLOTS)
        slot = self._slots[number % _SLOTS]
        if slot.number != number:
            slot.number, slot.calls, slot.failed = number, 0, 0
        return slot
