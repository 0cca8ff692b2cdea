"""The shares of one tool worker: a pacer for each home that it owns of each budget.

The law: who owns a partition spends the parts of the budgets that have a home there, and nobody else does. Where the
former owner said in its commit when the next call is due, the new one goes on from there; where it said nothing (it was
killed) a gained share starts a period late, unless the queue is so new that nobody has ever owned it. Nothing starts
before a commit of our own has replaced what was said; what that said of the time to come, ours repeats until then.
Places that calls of former owners hold are theirs until their time is over, also where the home is another partition
since some were added. `serving.py` asks for pacers, `worker.py` says what is gained and given up.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from anabranch.homes import Share, budget_of, homes, share
from anabranch.limits import Held, Pacer, ShareLost
from anabranch.specs import LimitSpec
from anabranch.tools.marks import ShareMark
from anabranch.tools.meters import ToolMeters
from anabranch.weights import WEIGHT

UNNAMED: Final = "*"
NOT_AT_ALL: Final = -1.0
"""For so long the lines of a home go on that nobody was told of."""
PAUSE_MAX_S: Final = 86_400.0
"""The longest pause, whatever a tool asks for: each owner passes it on to the next, in a commit that names its end."""
EVER_S: Final = 366 * 86_400.0
"""For longer than any limit's period."""
ROOM: Final = 24
"""How many budgets a commit names."""
CROWD: Final = 256
"""From so many pacers on, those that are not in use are dropped; then at twice as many as were left."""


@dataclass(slots=True)
class _Home:
    """A partition that is ours. `since`, a time of the loop, budgets that `told` does not name were not used."""

    since: float
    told: dict[str, ShareMark]
    ours: bool = False
    """Whether a commit of ours has replaced what was told."""
    last: tuple[ShareMark, ...] | None = None
    """What is said of it while it is given up: by this it is decided which calls may go on."""


class Shares:
    """See the module. `now` is epoch seconds; `alive` says whether the session still holds; `interactive` is that
    lane's weight.
    """

    def __init__(
        self,
        limits: Iterable[LimitSpec],
        partitions: int,
        now: Callable[[], float],
        alive: Callable[[], bool],
        meters: ToolMeters | None = None,
        interactive: int = WEIGHT,
    ) -> None:
        self._interactive = interactive
        self._meters = meters or ToolMeters()
        self._limits = {limit.name: limit for limit in limits}
        self._partitions, self._now, self._alive = partitions, now, alive
        self._added, self._added_since = range(0), 0.0
        self._homes: dict[int, _Home] = {}
        self._pacers: dict[tuple[int, str], Pacer] = {}
        self._ending: list[tuple[int, str, Pacer]] = []  # what stayed of homes that were others' meanwhile
        self._said: dict[tuple[int, str], ShareMark] = {}
        self._places: dict[str, list[tuple[int, ShareMark]]] = {}  # by budget: where any were held when we began
        self._paused_until: dict[str, float] = {}  # by budget: of pacers that are made meanwhile
        self._crowd = CROWD
        self._closing = self._anew = False

    @property
    def in_use(self) -> bool:
        return bool(self._limits)

    # --- for calls -------------------------------------------------------------------------------------------------

    def homes(self, limit: str, tenant: str | None) -> tuple[int, ...]:
        """Where the calls of this budget belong."""
        return homes(self._limits[limit], tenant, self._partitions)

    def spread_over(self, partitions: int, stays_s: float) -> None:
        """So many there are, and nothing is ours just now. If some were added, homes are others, with other parts: all
        begin with what commits say of them. Calls that go on keep to what they were told, and new homes begin when what
        stayed in the lines of old ones is over, in `stays_s` at the latest.
        """
        if partitions != self._partitions:
            self._added, self._added_since = range(self._partitions, partitions), _loop_now() + stays_s
            self._partitions = partitions
            for key in list(self._pacers):
                self._let_end(key)
            self._pacers.clear()
            self._said.clear()

    def begin(self, told: Mapping[int, Iterable[ShareMark]]) -> None:
        """Homes will be gained. `told` is what the commits of all partitions say: if there are none, nobody has ever
        committed anything of this queue, and so started nothing.
        """
        self._anew = not told
        self._places = {}
        for partition, marks in told.items():
            for mark in marks:
                if mark.places:
                    self._places.setdefault(mark.budget, []).append((partition, mark))

    def pause(self, limit: str, tenant: str | None, seconds: float) -> None:
        """Let nothing of this budget through on this worker for so long."""
        budget, seconds = _hash(budget_of(self._limits[limit], tenant)), min(seconds, PAUSE_MAX_S)
        self._paused_until[budget] = max(self._paused_until.get(budget, 0.0), _loop_now() + seconds)
        for partition in self.homes(limit, tenant):
            if (pacer := self._pacers.get((partition, budget))) is not None:
                pacer.pause(seconds)
        for _, its, pacer in self._ending:
            if its == budget:
                pacer.pause(seconds)

    def pacer(self, limit: str, tenant: str | None, partition: int) -> Pacer:
        """Who paces the calls of this budget at a home. Raises `ShareLost` if it is not ours."""
        spec = self._limits[limit]
        key = (partition, _hash(budget_of(spec, tenant)))
        home, known = self._homes.get(partition), self._pacers.get(key)
        if known is not None:
            return known
        part = share(spec, tenant, partition, self._partitions)
        if home is None or part is None or self._closing:
            raise ShareLost
        if len(self._pacers) >= self._crowd:
            self._drop_spent()
        told = home.told.get(key[1])
        due, count = self._due(home, told, part), partial(self._meters.limit_started.count, limit)
        made = Pacer(part, due, partial(self._may_start, partition), count, limit, self._interactive)
        made.open(due, self._held(told) if told is not None else self._held_elsewhere(spec, tenant, key[1]))
        if (left := self._paused_until.get(key[1], 0.0) - _loop_now()) > 0:
            made.pause(left)
        self._pacers[key] = made
        return made

    def _may_start(self, partition: int) -> bool:
        home = self._homes.get(partition)
        closing = home is None  # what stays of a line was said in the commit
        return self._alive() if home is not None and home.ours else closing

    def _all(self) -> Iterator[tuple[int, Pacer]]:
        """Each with its partition: those of homes, and those in which only what stayed goes on."""
        yield from ((partition, pacer) for (partition, _), pacer in self._pacers.items())
        yield from ((partition, pacer) for partition, _, pacer in self._ending)

    def _let_end(self, key: tuple[int, str]) -> bool:
        """Whether somebody stayed there who has not started: then the home is to have another pacer."""
        if not (pacer := self._pacers[key]).is_ending:
            return False
        self._ending.append((*key, self._pacers.pop(key)))
        pacer.end_alone()
        return True

    def _drop_spent(self) -> None:
        for key in [key for key, pacer in self._pacers.items() if pacer.is_spent]:
            del self._pacers[key]
            self._said.pop(key, None)
        self._crowd, now = max(CROWD, 2 * len(self._pacers)), _loop_now()
        self._paused_until = {budget: until for budget, until in self._paused_until.items() if until > now}

    def sample(self) -> None:
        """Bring the gauges up to date: what of each limit is ours, and who waits for it."""
        rates, waiting, paused = (dict.fromkeys(self._limits, 0.0) for _ in range(3))
        for partition in self._homes:
            for limit in self._limits.values():
                if limit.per is None and (part := share(limit, None, partition, self._partitions)) is not None:
                    rates[limit.name] += part.per_second
        for (partition, _), pacer in self._pacers.items():
            if partition in self._homes and self._limits[pacer.limit].per is not None:
                rates[pacer.limit] += pacer.share.per_second
        for _, pacer in self._all():
            waiting[pacer.limit] += pacer.waiting
            paused[pacer.limit] = max(paused[pacer.limit], pacer.is_paused)
        for name in self._limits:
            self._meters.limit_rate.set(rates[name], name)
            self._meters.limit_waiting.set(waiting[name], name)
            self._meters.limit_paused.set(paused[name], name)

    # --- partitions come and go -------------------------------------------------------------------------------------

    def gain(self, partition: int, told: Iterable[ShareMark]) -> None:
        """The partition is ours; `told` is what its commit says."""
        if not self._limits:
            return
        found = {mark.budget: mark for mark in told}
        unnamed = found.pop(UNNAMED, None)
        if unnamed is None:  # it was no last commit: its owner may have started some since
            found = {budget: self._yet_to_come(mark) for budget, mark in found.items()}
        since = self._loop_time(unnamed.due_ms / 1000) if unnamed is not None else _loop_now()
        if partition in self._added:
            since = max(since, self._added_since)
        elif self._anew:
            since -= EVER_S
        home = self._homes[partition] = _Home(since, found)
        for key, pacer in list(self._pacers.items()):
            if key[0] == partition:
                mark = found.get(key[1])
                if mark is not None and mark == self._said.get(key):
                    pacer.open(0.0, None)
                elif not self._let_end(key):
                    pacer.open(self._due(home, mark, pacer.share), self._held(mark))

    def may_start(self, partition: int) -> None:
        """A commit of ours stands: whatever is told of the partition from here on, it is not by a former owner."""
        home = self._homes.get(partition)
        if home is not None and not home.ours:
            home.ours = True
            for (where, _), pacer in self._pacers.items():
                if where == partition:
                    pacer.go_on()

    def close(self, for_s: float, may_stay: Callable[[int, int, bool], bool]) -> list[tuple[int, int]]:
        """All partitions are given up. What is due within `for_s` still starts here, if `may_stay(partition, offset)`:
        returns the places of these calls. All others are sent away, with `ShareLost`.
        """
        self._closing = True
        stay: list[tuple[int, int]] = []
        for (partition, _), pacer in self._pacers.items():
            home = self._homes.get(partition)
            if home is None:  # given up before, and what was said then holds
                continue
            time_s = for_s if home.ours else NOT_AT_ALL
            stay += [(partition, offset) for offset in pacer.close(time_s, partial(may_stay, partition))]
        for partition, _, pacer in self._ending:
            if partition in self._homes:
                stay += [(partition, offset) for offset in pacer.staying(partial(may_stay, partition))]
        return stay

    def leave(self, told: Iterable[int]) -> None:
        """None of them is ours any more. Where our last commit is not known to stand, nothing more starts here."""
        lost = self._homes.keys() - set(told)
        for partition, pacer in self._all():
            if partition in lost:
                pacer.shut()
        self._ending = [ending for ending in self._ending if ending[2].is_ending]
        self._homes.clear()
        self._closing = False
        self._drop_spent()

    def told(self, partition: int) -> tuple[ShareMark, ...]:
        """What a commit has to say of the partition: much in the last one, little before."""
        home = self._homes.get(partition)
        if home is None:
            return ()
        now = self._now()
        marks = {b: m for b, m in home.told.items() if m.due_ms / 1000 > now or (m.places and m.until > now)}
        if not self._closing:
            return tuple(self._yet_to_come(mark) for mark in marks.values())
        if not home.ours:
            return (*home.told.values(), self._unnamed(home))
        if home.last is None:
            for (where, budget), pacer in self._pacers.items():
                if where == partition:
                    marks.pop(budget, None)
                    if not pacer.is_spent:
                        marks[budget] = self._said[where, budget] = self._mark(budget, pacer)
            home.last = self._that_fit(home, list(marks.values()))
        return home.last

    def _that_fit(self, home: _Home, marks: list[ShareMark]) -> tuple[ShareMark, ...]:
        """All that is to be said; if it is too much, what matters most, and nothing of those that are not named."""
        marks.sort(key=lambda mark: -mark.places)
        if len(marks) > ROOM:
            return tuple(marks[:ROOM])
        return (*marks, self._unnamed(home))

    def may_go_on(self, limit: str, tenant: str | None, partition: int) -> bool:
        """Whether our last commit says that calls of this budget hold places: else they have to end with it."""
        spec = self._limits[limit]
        budget = _hash(budget_of(spec, tenant))
        pacer = self._pacers.get((partition, budget))
        if spec.concurrency is None or pacer is None or partition not in self._homes:
            return True
        return any(mark.budget == budget for mark in self.told(partition))

    def _unnamed(self, home: _Home) -> ShareMark:
        return ShareMark(UNNAMED, self._epoch_ms(home.since))

    def _mark(self, budget: str, pacer: Pacer) -> ShareMark:
        left = pacer.left()
        until = math.ceil(self._epoch_ms(left.held.until) / 1000) if left.held.places else 0
        return ShareMark(budget, self._epoch_ms(left.due), left.held.places, until)

    # --- times ------------------------------------------------------------------------------------------------------

    def _due(self, home: _Home, told: ShareMark | None, part: Share) -> float:
        if told is not None and told.due_ms:
            return self._loop_time(told.due_ms / 1000)
        since = home.since if told is None else max(home.since, _loop_now())
        return since + 1 / part.per_second

    def _yet_to_come(self, mark: ShareMark) -> ShareMark:
        """What counts of a mark if the budget may have been used since its time: nobody did before that time."""
        return mark if mark.due_ms / 1000 > self._now() else replace(mark, due_ms=0)

    def _held(self, told: ShareMark | None) -> tuple[Held, ...]:
        return (Held(told.places, self._loop_time(told.until)),) if told is not None and told.places else ()

    def _held_elsewhere(self, spec: LimitSpec, tenant: str | None, budget: str) -> Iterator[Held]:
        """The places held at partitions that have fewer of them now, or none, since partitions were added."""
        for partition, mark in self._places.get(budget, ()):
            part = share(spec, tenant, partition, self._partitions)
            more = mark.places - (part.places or 0 if part is not None else 0)
            if more > 0:
                yield Held(more, self._loop_time(mark.until))

    def _loop_time(self, epoch: float) -> float:
        ahead = epoch - self._now()
        return _loop_now() + ahead  # read last: a process that stands still in between comes late, not early

    def _epoch_ms(self, loop_time: float) -> int:
        ahead = loop_time - _loop_now()
        return math.ceil((self._now() + ahead) * 1000)


def _loop_now() -> float:
    return asyncio.get_running_loop().time()


def _hash(budget: str) -> str:
    return hashlib.blake2b(budget.encode(), digest_size=5).hexdigest()
