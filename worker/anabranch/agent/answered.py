"""The runs that are answered, and remembered for a while, so that whoever asks again gets the same answer.

Responsible for: what is let go of when a run is answered, their order, and how many there may be. Must never: hold a
run or an answer itself; the fold and the publisher do. Called by: `owner.py`, of which each has a `Closing`, and by its
publisher.
"""

from __future__ import annotations

from typing import Final

from anabranch import messages as m
from anabranch.agent import deadlines
from anabranch.agent.alarms import Alarms
from anabranch.agent.needed import Needed
from anabranch.agent.publishing import Publisher
from anabranch.agent.reach import Reach
from anabranch.agent.state import Life, Partition, Run
from anabranch.bodies import dump

REMEMBERED: Final = 2000
"""How many answered runs an owner remembers."""
ANSWERED_BYTES: Final = 2_000
"""What one takes in memory beside its request and its answer, about."""
REMEMBERED_BYTES: Final = 8 * 1024 * 1024
"""How much memory they may take: their requests and answers may be large."""


class Closing:
    """The end of a run: once it is answered, no more of it is kept than its answer, and of those not too many."""

    def __init__(self, state: Partition, needed: Needed, reach: Reach, publisher: Publisher, alarms: Alarms) -> None:
        self._state, self._needed, self._reach = state, needed, reach
        self._publisher, self._alarms = publisher, alarms
        self._answered = Answered()

    def close(self, run: Run) -> None:
        """Let go of it, if it is answered; else this is called again when it is."""
        if run.ending is None or self._reach.is_unanswered(run):
            return
        life = (run.run_id, run.life)
        self._needed.drop(life)
        for moment in deadlines.closed(run):
            self._alarms.forget(moment)
        if self._publisher.has_answer(life):  # else it was answered before our time, and may be asked for again
            run.turns.clear()
        self._publisher.keep_answers_only(run)
        self._answered.add(life, run.opening.request, self._publisher.answer_bytes(life))
        while (oldest := self._answered.surplus) is not None:
            self._forget(oldest)

    def _forget(self, life: Life) -> None:
        self._answered.forget(life)
        run = self._state.runs.get(life[0])
        if run is not None and run.life == life[1]:
            if self._reach.is_unanswered(run) or self._reach.is_asked_for(run.run_id):
                return  # somebody has asked for it again: it comes back when that is answered
            del self._state.runs[life[0]]
        self._publisher.forget(life)


class Answered:
    """The order of the answered runs, and what they take."""

    def __init__(self) -> None:
        self._weights: dict[Life, int] = {}  # the oldest first
        self._bytes = 0

    def add(self, life: Life, request: m.RunRequest, answer_bytes: int) -> None:
        """It is the youngest now, also if it was known."""
        self.forget(life)
        self._weights[life] = weight = ANSWERED_BYTES + _weight(request) + answer_bytes
        self._bytes += weight

    def forget(self, life: Life) -> None:
        self._bytes -= self._weights.pop(life, 0)

    @property
    def surplus(self) -> Life | None:
        """One that is to be forgotten, if there are too many; a single one may be as large as it is."""
        most = REMEMBERED if self._bytes <= REMEMBERED_BYTES else 1
        return next(iter(self._weights)) if len(self._weights) > most else None


def _weight(request: m.RunRequest) -> int:
    """How many bytes a request has, about."""
    if isinstance(request.input, str) and request.metadata is None:
        return len(request.input)
    return len(dump(request))
