"""What a partition's owner is rung for: deadlines, by the clock of the wall, and spans of time, which no setting of it
draws out or cuts short.

Responsible for: which of the two clocks a moment is waited for by. Must never: say what one stands for; `deadlines.py`
does. Called by: `owner.py`, of which each has one, `handed_off.py` and `answered.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from anabranch.agent.deadlines import Moment
from anabranch.clockwork import Clockwork
from anabranch.timers import Timers


class Alarms:
    """Calls `ring` with each moment once its time has come. One that is waited for keeps its time."""

    def __init__(self, clockwork: Clockwork, ring: Callable[[Moment], None]) -> None:
        self._steady = clockwork.steady
        self._deadlines: Timers[Moment] = Timers(clockwork.now, ring)
        self._spans: Timers[Moment] = Timers(clockwork.steady, ring)

    def at(self, moment: Moment, when: float) -> None:
        """Ring at `when`, in epoch seconds; not before a span that is waited for because of it is over."""
        if moment not in self._spans:
            self._deadlines.arm(moment, when)

    def after(self, moment: Moment, seconds: float) -> bool:
        """Ring in so many seconds; False if that is waited for already."""
        return self._spans.arm(moment, self._steady() + seconds)

    def forget(self, moment: Moment) -> None:
        self._deadlines.disarm(moment)
        self._spans.disarm(moment)

    def clear(self) -> None:
        self._deadlines.clear()
        self._spans.clear()
