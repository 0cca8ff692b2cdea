"""How much is put into a queue from one word of its workers to the next. PURE.

The age of a queue's oldest call says only afterwards that too much was put into it: what came meanwhile has a deadline
that runs. So an agent worker puts into a queue what it trusts it with unseen, then twice as much as last time for as
long as its workers say that nobody waits, and less the longer somebody does. What comes back meanwhile is seen: as
long as no more than half of that trust is out, it goes on, so a queue that serves as fast as it is asked holds nothing
up. That does not count as what it had "last time", for it was not put in at once. A word counts when all of its
workers have spoken since the last one, or one of them twice: the others may have died. `saturation.py` hears the
workers, and asks; it must never know a clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

GROWTH: Final = 2.0
FADE: Final = 0.7
"""How much of a former interval counts when the next one had less: less was asked for, or it was held up."""


@dataclass(slots=True)
class Inflow:
    """One queue. All four count from the last word on: runs that were `opened` and have `ended`, calls that were
    `published` and have `returned`.
    """

    opened: int = 0
    ended: int = 0
    published: int = 0
    returned: int = 0
    _before: float = 0.0
    _granted: float = math.inf
    _age_s: float = 0.0
    _last: dict[str, float] = field(default_factory=dict)
    _spoken: Counter[str] = field(default_factory=Counter)

    def hear(self, seen_at: Mapping[str, float], oldest_s: float) -> bool:
        """What the living workers say, by id: when they spoke last, and of all the oldest call. Whether it counts."""
        self._last, before = dict(seen_at), self._last
        if not seen_at:
            self._before, self._spoken = 0.0, Counter()
            return bool(before)
        self._spoken.update(worker for worker, at in seen_at.items() if before.get(worker) != at)
        if not self._spoken.keys() >= seen_at.keys() and max(self._spoken.values(), default=0) < 2:
            return False
        if before:  # else nobody was there to serve what was published
            self._before = max(min(self.published, self._granted), self._before * FADE)
        self._spoken, self._age_s = Counter(), oldest_s
        self.opened = self.ended = self.published = self.returned = 0
        self._granted = math.inf
        return True

    def is_full(self, first: float, hold_after_s: float) -> bool:
        """Whether no more should be put into it: `first` calls it is trusted with, and none if the oldest has waited
        for `hold_after_s`. A run that was opened will ask for one call at least.
        """
        if not self._last:
            return False
        left = 1 - self._age_s / hold_after_s
        out = max(self.opened - self.ended, self.published - self.returned)
        self._granted = max(first, self._before * GROWTH) * left
        return out >= first * left / 2 and max(self.opened, self.published) >= self._granted
