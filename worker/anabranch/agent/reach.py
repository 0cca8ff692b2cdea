"""How far down its log an owner's successor has to read, and what it need not do again: *low* and *done*.

Low is the oldest event that is still needed, and done the oldest cause of a publication that is not settled. What a
successor has to know holds low back before it is promised. Must never: commit, or change what was folded.
`commit.py` says how a commit stands in the group's offsets, `needed.py` knows the runs. Called by: `owner.py`, of which
each has one, and `agent/admission/admission.py` before it notes a duplicate.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from operator import itemgetter

from anabranch.agent import effects
from anabranch.agent.commit import Commit
from anabranch.agent.effects import NoteDue
from anabranch.agent.needed import Needed, Settled, causes
from anabranch.agent.state import Nexts, Partition, Run
from anabranch.fields import Lane


class Reach:
    """See the module. `at` is when the event at the low that is committed was written, in epoch seconds."""

    def __init__(
        self,
        state: Partition,
        needed: Needed,
        is_settled: Settled,
        keep_s: float,
        now: Callable[[], float],
        commit_soon: Callable[[], None],
    ) -> None:
        self._state, self._needed, self._is_settled = state, needed, is_settled
        self._keep_s, self._now, self._commit_soon = keep_s, now, commit_soon
        # The requests that are being noted as duplicates, and their runs
        self.asked: dict[tuple[Lane, int], str] = {}
        self._highest = 0  # the highest low that may stand committed
        self._committed = asyncio.Event()
        self._next_at = self.at = math.inf

    # --- a run that is asked for again ---------------------------------------------------------------------------

    async def keep(self, lane: Lane, request_offset: int, run_id: str) -> None:
        """Before a request is noted as a duplicate: a successor has to know the run, or nobody would answer it.

        So low does not pass the run's first event until the note is folded; if it has passed it already, a lower
        one is committed first. A run that retention may have reached cannot be brought back.
        """
        run = self._state.runs.get(run_id)
        if run is not None and self._now() - run.first_at > self._keep_s:
            return
        self.asked[lane, request_offset] = run_id
        while (run := self._state.runs.get(run_id)) is not None and run.first < self._highest:
            self._committed.clear()
            self._commit_soon()
            await self._committed.wait()

    def is_asked_for(self, run_id: str) -> bool:
        return run_id in self.asked.values()

    def let_go(self) -> None:
        """Nothing is held back any more for duplicates whose notes have been folded."""
        nexts = self._state.nexts
        self.asked = {asked: run_id for asked, run_id in self.asked.items() if asked[1] >= _of(nexts, asked[0])}

    # --- the commit -------------------------------------------------------------------------------------------------

    def commit(self, metadata_kept: bool) -> Commit:
        """What may be committed now."""
        state = self._state
        low, as_of, self._next_at = self.low()
        if not metadata_kept:
            link = state.link if state.link is not None else state.began
            low = min(low, link, state.bulk_link if state.bulk_link is not None else link)
        low, as_of = self._not_after_cancels(low, as_of)
        nexts, now = as_of.or_else(state.told), state.nexts
        self._highest = max(self._highest, low)
        return Commit(low, self.done(), _of(nexts, "interactive"), _of(nexts, "bulk"), _of(now, "bulk"))

    def low(self) -> tuple[int, Nexts, float]:
        """The oldest event that is still needed, the next requests as of there, and its time, if it is of a run."""
        state, oldest = self._state, self._needed.oldest(lambda run: run.open or self.is_unanswered(run))
        needed = [oldest] if oldest is not None else []
        needed += [state.runs[run_id] for run_id in self.asked.values() if run_id in state.runs]
        firsts = [(run.first, run.nexts_as_of_first, run.first_at) for run in needed]
        notes = [offset for offset in state.notes if not self._is_settled(NoteDue(offset))]
        firsts += [(offset, state.note_links[offset], math.inf) for offset in notes]
        firsts += [(cancel.offset, cancel.nexts, math.inf) for _, cancel in state.waiting_cancels()]
        return min(firsts, key=itemgetter(0), default=(state.position, state.nexts, math.inf))

    def _not_after_cancels(self, low: int, as_of: Nexts) -> tuple[int, Nexts]:
        """No cancel may lie below the low, and the opening of the run that it ended not."""
        for spent in sorted(self._state.spent, key=itemgetter(0), reverse=True):
            if spent.offset < low <= spent.opened:
                low, as_of = spent.offset, spent.nexts
        return low, as_of

    def is_unanswered(self, run: Run) -> bool:
        return not all(map(self._is_settled, effects.publications(run)))

    def done(self) -> int:
        """Below it every publication is settled."""
        first = self._needed.first_unsettled(self._is_settled)
        notes = causes(map(NoteDue, self._state.notes), self._is_settled)
        return min(notes if first is None else (first, *notes), default=self._state.position)

    def committed(self, low: int) -> None:
        """The next owner will begin at `low`."""
        self._highest, self.at = low, self._next_at
        self._committed.set()


def _of(nexts: Nexts, lane: Lane) -> int:
    return nexts.of(lane) or 0
