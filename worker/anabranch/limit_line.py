"""The line of one home of a limit: the calls that wait there, and whose turn is next.

Lanes have turns by weight, and the calls of one lane theirs in their order. It asks no clock and holds no budget:
`limits.py` does, and says when the next one may start.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Literal

from anabranch.fields import LANES, Lane
from anabranch.weights import Weights

if TYPE_CHECKING:
    from anabranch.limits import Pacer

_OTHER: Final[Mapping[Lane, Lane]] = {"interactive": "bulk", "bulk": "interactive"}


@dataclass(slots=True, eq=False)
class Turn:
    """A call in the line of a pacer. In its lane `order` decides who is first; `lasts_s` is how long it has its place
    at most.

    `left_s` is for how many seconds it is still wanted. `state` is `late` once nobody wants it any more, and `lost` if
    the home is another's.
    Whoever waits `comes` for it, or has given `then`, which is called once it has come.
    """

    order: int
    lasts_s: float
    left_s: Callable[[], float]
    pacer: Pacer
    then: Callable[[], None] | None = None
    lane: Lane = "interactive"
    state: Literal["waiting", "in", "late", "lost", "gone"] = "waiting"
    started: bool = False
    _comes: asyncio.Future[None] | None = None

    @property
    def granted(self) -> bool:
        return self.state == "in"

    @property
    def unheard(self) -> bool:
        """Whether nobody waits for it in a task."""
        return self._comes is None

    @property
    def comes(self) -> asyncio.Future[None]:
        """Is done when the turn has come, or never will."""
        if self._comes is None:
            self._comes = asyncio.get_running_loop().create_future()
            if self.state != "waiting":
                self._comes.set_result(None)
        return self._comes

    def settle(self, state: Literal["in", "late", "lost", "gone"], quietly: bool = False) -> None:
        self.state = state
        if self._comes is not None and not self._comes.done():
            self._comes.set_result(None)
        if self.then is not None and not quietly:
            asyncio.get_running_loop().call_soon(self.then)

    async def start(self) -> None:
        """Await this last of all, right before the call starts: here it is counted."""
        if self.granted:
            await self.pacer.count(self)

    def __lt__(self, other: Turn) -> bool:
        return self.order < other.order


class Line:
    """Those who wait. `interactive` is how many turns that lane has for each of the bulk lane, while both wait."""

    def __init__(self, interactive: int) -> None:
        self._weights = Weights(interactive)
        self._lanes: dict[Lane, list[Turn]] = {lane: [] for lane in LANES}

    def __len__(self) -> int:
        """How many there are, those included who have gone and are not missed yet."""
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Turn]:
        """All of them, in no order."""
        for waiting in self._lanes.values():
            yield from waiting

    def add(self, turn: Turn) -> None:
        heappush(self._lanes[turn.lane], turn)

    def first(self) -> Turn | None:
        """Whose turn is next; those who have gone or come too late are taken out."""
        interactive, bulk = (self._first_of(self._lanes[lane]) for lane in LANES)
        lane = self._weights.next(interactive is not None, bulk is not None)
        return None if lane is None else interactive if lane == "interactive" else bulk

    def left_s(self) -> float:
        """For how long all those are still wanted who are first in their lanes."""
        return min((waiting[0].left_s() for waiting in self._lanes.values() if waiting), default=math.inf)

    def pop(self, turn: Turn) -> None:
        """The turn of whoever is `first` has come."""
        heappop(self._lanes[turn.lane])
        self._weights.took(turn.lane, self._first_of(self._lanes[_OTHER[turn.lane]]) is not None)

    def in_turn(self) -> Iterator[Turn]:
        """Those who wait, as their turns will come if nobody joins or goes."""
        weights = self._weights.copy()
        lanes = {lane: self._waiting(waiting) for lane, waiting in self._lanes.items()}
        while (lane := weights.next(bool(lanes["interactive"]), bool(lanes["bulk"]))) is not None:
            weights.took(lane, bool(lanes[_OTHER[lane]]))
            yield heappop(lanes[lane])

    def keep(self, turns: Iterable[Turn]) -> None:
        """Let nobody else be in the line. The first of `in_turn` keep their order so."""
        kept = list(turns)
        for lane in LANES:
            self._lanes[lane] = sorted(turn for turn in kept if turn.lane == lane)

    @staticmethod
    def _waiting(turns: list[Turn]) -> list[Turn]:
        waiting = [turn for turn in turns if turn.state == "waiting"]
        heapify(waiting)
        return waiting

    @staticmethod
    def _first_of(turns: list[Turn]) -> Turn | None:
        while turns:
            turn = turns[0]
            if turn.state == "waiting":
                if turn.left_s() > 0:
                    return turn
                turn.settle("late")
            heappop(turns)
        return None
