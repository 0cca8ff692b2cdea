"""The commits of a queue's partitions: how far each is done, and which at-most-once calls may have begun.

One committer: what it has confirmed in this assignment stands, all else counts as not written. It executes
nothing and takes nothing over. `ToolWorker` has one, and runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from anabranch.errors import AnabranchError, ConfigError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Committed, Place
from anabranch.tasks import happens
from anabranch.tools import marks
from anabranch.tools.lane import Lane
from anabranch.tools.marks import Marks
from anabranch.tools.serving import Bench, Job

_PROBE: Final = marks.write(0, Marks(held=(("probe", 0),)))


class Commits:
    """See the module. `lanes` are the worker's own; `on_commit` hears of each commit, confirmed or not."""

    def __init__(
        self,
        bench: Bench,
        membership: Membership,
        lanes: dict[Place, Lane],
        commit_s: float,
        on_commit: Callable[[], None],
    ) -> None:
        self._bench, self._membership, self._lanes = bench, membership, lanes
        self._commit_s, self._on_commit = commit_s, on_commit
        self._committed: dict[Place, Committed] = {}
        self._confirmations: list[tuple[Place, asyncio.Future[bool]]] = []
        self._at_once = asyncio.Event()
        self._giving_up = False
        self.metadata_kept: bool | None = None

    async def run(self) -> None:
        """Commit for ever: every so often, and at once when a call waits to begin."""
        while True:
            await happens(self._at_once, self._commit_s)  # or it is time for the next one
            self._at_once.clear()  # whatever follows: `wait` does not yield to anybody while it is set
            if not self._giving_up and not self._membership.stopping and self._lanes:
                await self._commit()
                self._on_commit()

    async def _commit(self) -> None:
        waiting, self._confirmations = self._confirmations, []
        told = self._offsets()  # without those whose marks are more than Kafka takes
        asked = {place for place, _ in waiting}
        offsets = {place: at for place, at in told.items() if place in asked or self._committed.get(place) != at}
        for place in offsets:  # until it is confirmed, either may stand there
            self._committed.pop(place, None)
        confirmed = not offsets or await self._membership.subscription.commit(offsets)
        if confirmed:
            self._committed.update({place: at for place, at in offsets.items() if place in self._lanes})
            for place in told.keys() & self._lanes.keys():
                self._lanes[place].stands = True
        for place, future in waiting:
            if not future.done():
                future.set_result(confirmed and place in told)

    def _offsets(self) -> dict[Place, Committed]:
        now = self._bench.now()
        found = {place: lane.commit(now) for place, lane in self._lanes.items()}
        return {place: at for place, at in found.items() if at is not None}

    def renew(self, place: Place) -> None:
        """Commit it soon, whatever was confirmed before: a former owner's commit may not stand any longer."""
        self._committed.pop(place, None)
        self._at_once.set()

    async def last(self) -> dict[Place, Committed]:
        """Commit before the partitions are given up; returns what was confirmed."""
        offsets = self._offsets()
        confirmed = bool(offsets) and await self._membership.subscription.commit(offsets)
        return offsets if confirmed else {}

    def give_up(self) -> None:
        """Only the last one is made from here on: what it does not confirm, no other may say meanwhile. Whoever waits
        for a commit of this assignment waits in vain.
        """
        self._giving_up = True
        waiting, self._confirmations = self._confirmations, []
        for _, future in waiting:
            if not future.done():
                future.set_result(False)

    def forget(self) -> None:
        """The assignment is over, and with it all that was confirmed."""
        self.give_up()
        self._giving_up = False
        self._committed.clear()

    # --- what has to be known to the group before a call begins ---------------------------------------------------

    async def may_begin(self, lane: Lane, job: Job, is_idle: Callable[[], bool]) -> bool:
        """Whom the group has expelled learns it from a commit. Others must not find a call of one key, or one that
        they may not repeat, begun after that.
        """
        if job.at_most_once and self.metadata_kept:
            return await self._is_confirmed(lane, job, is_idle, lambda: lane.progress.begin(job.record.offset))
        return job.serial_key is None or await self._is_confirmed(lane, job, is_idle, lambda: None)

    async def _is_confirmed(self, lane: Lane, job: Job, is_idle: Callable[[], bool], mark: Callable[[], None]) -> bool:
        """Commit, with what `mark` adds to it; only what is confirmed in this assignment may be executed."""
        self._at_once.set()  # once: if that commit fails, the next one is soon enough
        while self._lanes.get(job.place) is lane and not is_idle():
            mark()
            confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._confirmations.append((job.place, confirmed))
            if await confirmed:
                return self._lanes.get(job.place) is lane
        return self._lanes.get(job.place) is lane

    async def find_out_about_metadata(self, place: Place, committed: Committed | None, begin: int) -> None:
        """At most once needs commits that say which calls have begun. Raises `ConfigError` where they cannot."""
        if self.metadata_kept is not None:
            return
        if committed is not None and committed.metadata:
            self.metadata_kept = True
            return
        subscription = self._membership.subscription
        probe = Committed(committed.offset if committed is not None else begin, _PROBE)
        if not await subscription.commit({place: probe}):
            raise AnabranchError("a first commit was not confirmed")
        found = (await subscription.committed([place])).get(place)
        self.metadata_kept = found is not None and bool(found.metadata)
        if not self.metadata_kept and not self._bench.lenient:
            raise ConfigError(
                "this broker keeps no commit metadata, so at_most_once cannot be kept: use Apache Kafka for these tools"
            )
