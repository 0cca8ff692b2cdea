"""The line of one home of a limit: the calls that wait there, and whose turn is next.

Lanes have turns by weight, and the calls of one lane theirs in their order. Whoever has been sent back again and again
lets others go first, however early its order is. It asks no clock and holds no budget: `limits.py` does, and says when
the next one may start.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
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
        self._turns = 0  # that there were
        self._behind: list[tuple[int, Turn]] = []  # who joins its lane when there were so many, or nobody else waits

    def __len__(self) -> int:
        """How many there are, those included who have gone and are not missed yet."""
        return sum(map(len, self._lanes.values())) + len(self._behind)

    def __iter__(self) -> Iterator[Turn]:
        """All of them, in no order."""
        for waiting in self._lanes.values():
            yield from waiting
        yield from (turn for _, turn in self._behind)

    def add(self, turn: Turn, behind: int = 0) -> None:
        """`behind` is how many of those that wait, or come meanwhile, go first."""
        if behind:
            heappush(self._behind, (self._turns + behind, turn))
        else:
            heappush(self._lanes[turn.lane], turn)

    def first(self) -> Turn | None:
        """Whose turn is next; those who have gone or come too late are taken out."""
        while self._behind and self._behind[0][0] <= self._turns:
            self.add(heappop(self._behind)[1])
        interactive, bulk = (self._first_of(self._lanes[lane]) for lane in LANES)
        lane = self._weights.next(interactive is not None, bulk is not None)
        return self._first_behind() if lane is None else interactive if lane == "interactive" else bulk

    def left_s(self) -> float:
        """For how long all those are still wanted who are first in their lanes."""
        first = [waiting[0] for waiting in self._lanes.values() if waiting] + [turn for _, turn in self._behind[:1]]
        return min((turn.left_s() for turn in first), default=math.inf)

    def pop(self, turn: Turn) -> None:
        """The turn of whoever is `first` has come."""
        self._turns += 1
        if waiting := self._lanes[turn.lane]:
            heappop(waiting)
        else:
            heappop(self._behind)
        self._weights.took(turn.lane, self._first_of(self._lanes[_OTHER[turn.lane]]) is not None)

    def in_turn(self) -> Iterator[Turn]:
        """Those who wait, as their turns will come if nobody joins or goes."""
        line = self._copy()
        while (turn := line.first()) is not None:
            line.pop(turn)
            yield turn

    def _copy(self) -> Line:
        made = Line(0)
        made._weights, made._turns, made._behind = self._weights.copy(), self._turns, self._behind.copy()
        made._lanes = {lane: waiting.copy() for lane, waiting in self._lanes.items()}
        return made

    def keep(self, turns: Iterable[Turn]) -> None:
        """Let nobody else be in the line. The first of `in_turn` keep their order so; nearly, if some stand behind."""
        kept = set(turns)
        for lane, waiting in self._lanes.items():
            self._lanes[lane] = sorted(turn for turn in waiting if turn in kept)
        self._behind = sorted(entry for entry in self._behind if entry[1] in kept)

    def _first_behind(self) -> Turn | None:
        while self._behind and self._first_of([self._behind[0][1]]) is None:
            heappop(self._behind)
        return self._behind[0][1] if self._behind else None

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
