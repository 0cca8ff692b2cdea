"""Pacing: when the calls of one home of a limit may start, and how many run at once. The only import of `aiolimiter`.

The law: starts follow a schedule of due times, one a period, in the order of the line (`limit_line.py`); who is late
starts at once, so that no wake-up of the loop is lost. What was late for more than `LATE_S` is owed, and repaid by a
schedule that is faster by a hundredth at most, as long as somebody waits. Two bounds lie above it: a bucket of so many
starts as may come at once, and no second has more than 102 % of the rate and one.
Whoever waits holds nothing: a cancelled or expired call costs no budget and stops nobody. `tools/shares.py` says which
homes there are, and what a gained one begins with.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from aiolimiter import AsyncLimiter

from anabranch.fields import Lane
from anabranch.homes import Share
from anabranch.limit_line import Line, Turn
from anabranch.weights import WEIGHT

SLACK: Final = 0.02
"""By how much of the rate a second may be over, beside one call: so what was late is caught up with."""
LATE_S: Final = 0.06
"""How late the schedule may be and catch up at once. More of it would show in ten seconds."""
OWED_S: Final = 1.0
"""How much of what was lost beyond that is repaid; more is forgiven."""
REPAID: Final = 0.01
WINDOW_S: Final = 10.0
"""Within which the rate is kept, or within 100 calls, if that is longer: what is caught up with, what is repaid and two
calls may be `SLACK` of it together."""
SECOND_S: Final = 1.01
"""What counts as a second: between the count of a start and the tool itself a busy loop may lose some time."""
LOOK_S: Final = 0.1
"""How soon a worker that may have lost its session looks again."""


class ShareLost(Exception):
    """The home is another's by now: the call cannot start here any more."""


class Paused(Exception):
    """Nothing may start just now: the call leaves, and waits in the line again, where it holds nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """Places that calls of a former owner still have, until a time of the loop."""

    places: int
    until: float


@dataclass(frozen=True, slots=True)
class Left:
    """What an owner leaves to the next one, in times of the loop: when the next call is due, and places still held."""

    due: float
    held: Held


class Pacer:
    """One home of a limit. `due` is when its first call may start; `may_start` is asked before each, and `on_start`
    told of it.
    """

    def __init__(
        self,
        share: Share,
        due: float,
        may_start: Callable[[], bool] = lambda: True,
        on_start: Callable[[], None] = lambda: None,
        limit: str = "",
        interactive: int = WEIGHT,
    ) -> None:
        self.share, self.limit, self._may_start, self._on_start = share, limit, may_start, on_start
        self._period = 1 / share.per_second
        self._repaid = self._period * min(REPAID, max(0.0, SLACK - (LATE_S + 2 * self._period) / WINDOW_S))
        self._owed = 0.0
        fastest = share.per_second * (1 + SLACK)
        at_once = 1 + LATE_S * fastest
        self._bucket = AsyncLimiter(at_once, at_once / (fastest - at_once / max(WINDOW_S, 100 * self._period)))
        self._most = int(fastest) + 1
        self._last_second: deque[float] = deque()
        self._entering = 0  # those let in that have not started: more of them would start in a burst, or too late
        self._crowd = 1 + LATE_S * share.per_second
        self._counting = asyncio.Lock()
        self._due, self._places = due, share.places
        self._line = Line(interactive)
        self._inside: dict[Turn, float] = {}  # with a place, until when at the latest
        self._held: tuple[Held, ...] = ()
        self._paused_until = 0.0
        self._closed_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # --- for a call ------------------------------------------------------------------------------------------------

    def join(
        self,
        order: int,
        lasts_s: float,
        left_s: Callable[[], float],
        then: Callable[[], None] | None = None,
        lane: Lane = "interactive",
        behind: int = 0,
    ) -> Turn:
        """Stand in the line, `behind` so many others. Raises `ShareLost`."""
        if self._closed_at is not None:
            raise ShareLost
        if not self._line and self._due < (now := self._loop.time()):  # only while somebody waits can it be late
            self._due, self._owed = now, 0.0
        turn = Turn(order, lasts_s, left_s, self, then, lane)
        self._line.add(turn, behind)
        if self._line.first() is turn:  # else whoever is first knows already when it may start
            self.go_on()
        return turn

    @asynccontextmanager
    async def inside(self, turn: Turn) -> AsyncIterator[Turn]:
        """Wait for the turn; inside, the call has its place. Raises `ShareLost`."""
        try:
            await turn.comes
            if turn.state == "lost":
                raise ShareLost
            yield turn
        finally:
            self.leave(turn)

    async def count(self, turn: Turn) -> None:
        """Returns when it may start within the bounds: it does so now. Raises `Paused` or `ShareLost` if it may not."""
        async with self._counting:
            while (left := self._bound() - self._loop.time()) > 0:  # noqa: ASYNC110 - it is time that is waited for
                await asyncio.sleep(left)
            await self._bucket.acquire()
            now = self._loop.time()
            if self._paused_until > now:
                raise Paused
            if self._closed_at is not None and not self._leaves_room(now, self._closed_at + LATE_S):
                raise ShareLost
            turn.started = True
            self._on_start()
            self._inside[turn] = now + turn.lasts_s
            self._last_second.append(now)
            self._entering -= 1
        self.go_on()

    def _bound(self) -> float:
        """When the next start is within what a second may have."""
        seen, now = self._last_second, self._loop.time()
        while seen and seen[0] <= now - SECOND_S:
            seen.popleft()
        return seen[0] + SECOND_S if len(seen) >= self._most else now

    def _leaves_room(self, now: float, end: float) -> bool:
        """Whether a start now leaves the next owner room for its own, which come one a period (and may be owed some)
        from `end` on: of the seconds that begin with a start of ours and reach beyond `end`, none may have more than
        `_most`.
        """
        if now > end:
            return False
        ours = [at for at in self._last_second if at > end - SECOND_S]
        ours.append(now)
        return all(
            len(ours) - n + int((at + SECOND_S - end) / (self._period - self._repaid)) + 1 <= self._most
            for n, at in enumerate(ours)
            if at + SECOND_S > end
        )

    @property
    def waiting(self) -> int:
        """How many are in the line."""
        return len(self._line)

    @property
    def is_paused(self) -> bool:
        return self._paused_until > self._loop.time()

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long: the API behind the limit has asked for it."""
        self._paused_until = max(self._paused_until, self._loop.time() + seconds)
        self._due = max(self._due, self._paused_until)

    def leave(self, turn: Turn) -> None:
        """It has ended, or is not wanted any more: then what it has not used is the next one's."""
        if turn.state == "waiting":
            turn.state = "gone"
        if self._inside.pop(turn, None) is None:
            return  # nobody waits for it
        if not turn.started:
            self._due = max(self._due - self._period, self._paused_until)
            self._entering -= 1
        self.go_on()

    # --- the line --------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Let in whoever may start, and come back when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (turn := self._line.first()) is not None:
            now = self._loop.time()
            at = max(self._due, self._paused_until, self._place_free_at(now))
            if self._closed_at is not None:
                end = self._closed_at + LATE_S
                if now > end or end < at < math.inf:
                    return self._send_away()
                at = min(at, end + LOOK_S)
            if at <= now and not self._may_start():
                at = now + LOOK_S
            if at > now:
                if at > now + LOOK_S:  # whoever is no longer wanted by then leaves the line in time
                    at = min(at, now + max(LOOK_S, self._line.left_s()))
                self._timer = self._loop.call_at(at, self.go_on) if at < math.inf else None
                return None
            if self._entering >= self._crowd:
                return None  # the next of them to start, or to leave, goes on
            self._entering += 1
            if self._closed_at is None:  # what stays of a line catches up with all, for it has to end in time
                self._lose(now)
                self._repay()
            self._due += self._period
            self._inside[turn] = now + turn.lasts_s
            self._line.pop(turn)
            turn.settle("in")
        return None

    def _lose(self, now: float) -> None:
        """What cannot be caught up with at once is owed."""
        if (lost := now - LATE_S - self._due) > 0:
            self._due += lost
            self._owe(lost)

    def _owe(self, lost_s: float) -> None:
        self._owed = min(OWED_S, self._owed + lost_s)

    def _repay(self) -> None:
        repaid = min(self._owed, self._repaid)
        self._owed -= repaid
        self._due -= repaid

    def _place_free_at(self, now: float) -> float:
        if self._places is None:
            return now
        self._held = tuple(held for held in self._held if held.until > now)
        if self._places > len(self._inside) + sum(held.places for held in self._held):
            return now
        return min((held.until for held in self._held), default=math.inf)

    def _send_away(self, but: Sequence[Turn] = (), quietly: bool = False) -> None:
        kept = set(but)
        away = [turn for turn in self._line if turn.state == "waiting" and turn not in kept]
        self._line.keep(but)
        for turn in away:
            if quietly and turn.unheard:  # there may be thousands
                turn.state = "lost"
            else:
                turn.settle("lost", quietly)

    # --- giving the home up, and getting it back --------------------------------------------------------------------

    @property
    def is_spent(self) -> bool:
        """Whether a new one would do as well."""
        now = self._loop.time()
        quiet = now > max(self._due, self._paused_until) + 1 and all(held.until <= now for held in self._held)
        return quiet and not self._line and not self._inside

    def close(self, for_s: float, may_stay: Callable[[int, bool], bool]) -> list[int]:
        """Let in nobody else, but those of the line that are due within `for_s`; returns the orders of these, and of
        those that are in and have not started. `may_stay(order, is_in)` is asked of each; who may not ends the line.
        """
        now = self._loop.time()
        self._due = max(self._due, self._paused_until, now)
        paused = self._paused_until > now
        entering = [t for t in self._inside if not (t.started or paused) and may_stay(t.order, True)]
        stay, many = list[Turn](), self._due_within(for_s)
        for turn in islice(self._line.in_turn(), many):
            if not may_stay(turn.order, False):
                break
            stay.append(turn)
        self._send_away(stay, quietly=True)  # whoever closes knows of them
        if self._places is not None:  # the next owner needs some too: those who stay share the places of those inside
            self._places = max(1, len(self._inside))
        self._closed_at = self._due + len(stay) * self._period
        self.go_on()
        return [turn.order for turn in [*sorted(entering), *stay]]

    @property
    def is_ending(self) -> bool:
        """Whether somebody who stayed has not started yet."""
        return self._closed_at is not None and (self._entering > 0 or self._line.first() is not None)

    def staying(self, may_stay: Callable[[int, bool], bool]) -> list[int]:
        """The orders of those who have stayed and not started: they start as they would have. It is asked as before."""
        entering = (turn for turn in self._inside if not turn.started)
        here = [(turn, True) for turn in sorted(entering)] + [(turn, False) for turn in self._line.in_turn()]
        return [turn.order for turn, is_in in here if may_stay(turn.order, is_in)]

    def end_alone(self) -> None:
        """The home has another pacer from now on: what stayed starts by what was said of it, whosever the home is."""
        self._may_start = lambda: True
        self.go_on()

    def shut(self) -> None:
        """Nothing more starts here, not even what had stayed."""
        self._closed_at = self._loop.time() - 2 * LATE_S
        self._send_away()

    def _due_within(self, for_s: float) -> int:
        """How many of the line start within that time; none, if they would need all the places there are."""
        if self.share.places is not None and self.share.places <= max(1, len(self._inside)):
            return 0
        left = self._loop.time() + for_s - self._due
        return int(left / self._period) + 1 if left >= 0 else 0

    def left(self) -> Left:
        """What the next owner has to know. Places are held until the last of those inside, or in line, must be out:
        who is in and has not started yet may do so as late as those in line.
        """
        now = self._loop.time()
        due = max(self._due, self._paused_until, now) if self._closed_at is None else self._closed_at + LATE_S
        waiting = [due + turn.lasts_s for turn in (*self._line, *self._inside) if not turn.started]
        until = max((*self._inside.values(), *waiting, *(held.until for held in self._held)), default=now)
        places = 0
        if self._places is not None:
            here = min(len(self._inside) + len(self._line), self._places)
            places = here + sum(held.places for held in self._held if held.until > now)
        return Left(due, Held(places, until))

    def open(self, due: float, held: Iterable[Held] | None) -> None:
        """It is ours again: nothing new before `due`, what was left for it to be late being owed; `held` are others'
        places, None if they are as they were.
        """
        self._closed_at, self._places = None, self.share.places
        if due:
            self._due = max(self._due, due)
            self._owe(LATE_S)
        self._lose(self._loop.time())
        if held is not None:
            self._held = tuple(held)
        self.go_on()
