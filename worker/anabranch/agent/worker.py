"""The agent role: a member of the group `agents` that owns partitions of the run log.

It gives each partition that is assigned an `Owner` and an `Admission`, feeds them what is read, and commits
for them. A partition that comes back after a rebalance keeps its fold and what is in flight. It never decides
anything about a run. `runtime.py` starts and drains it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from anabranch.agent.admission import Admission
from anabranch.agent.owner import Commit, Owner
from anabranch.agent.station import Station
from anabranch.codec import Record
from anabranch.errors import BrokerError
from anabranch.kafka.seam import Committed, Place, Subscription

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5


class AgentWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    def __init__(self, station: Station, commit_s: float) -> None:
        self._station, self._commit_s = station, commit_s
        self._log, self._requests = station.namespace.log, station.namespace.requests
        self._subscription: Subscription | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._assigned: set[int] = set()
        self._owners: dict[int, Owner] = {}
        self._admissions: dict[int, Admission] = {}
        self._admitting: dict[int, asyncio.Task[None]] = {}
        self._committed: dict[Place, Committed] = {}
        self._metadata_kept: bool | None = None
        self._stopping = False

    def attach(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def subscription(self) -> Subscription:
        assert self._subscription is not None, "attach() comes first"
        return self._subscription

    @property
    def running(self) -> int:
        """Model calls in flight."""
        return self._station.thinker.running

    @property
    def owned(self) -> int:
        """Partitions that are live."""
        return sum(owner.live for owner in self._owners.values())

    async def run(self) -> None:
        """Own partitions until the subscription stops."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            thinking = tasks.create_task(self._station.thinker.run(), name="model calls")
            committing = tasks.create_task(self._commit_for_ever(), name="commits")
            self._start_to_take_over()
            await self.subscription.run()
            for task in (thinking, committing, self._taking_over, *self._admitting.values()):
                if task is not None:
                    task.cancel()

    async def drain(self, timeout_s: float) -> int:
        """Take nothing more, finish the model calls in flight; returns how many were abandoned."""
        self._stopping = True
        self._stop_admitting()
        self._station.thinker.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._station.thinker.idle()
        except TimeoutError:
            log.warning("%d model calls were still running after %g s", self.running, timeout_s)
        await self._station.appender.flush(max(1.0, timeout_s / 10))
        await self._commit()
        return self.running

    # --- listener ------------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        """Only where both the log and the requests are ours do we act."""
        ours = {p.partition for p in places if p.topic == self._log}
        ours &= {p.partition for p in places if p.topic == self._requests}
        log.info("assigned %d partitions: %s", len(ours), sorted(ours))
        for partition in self._owners.keys() - ours:
            self._owners.pop(partition).drop()
            self._admissions.pop(partition)
        self._assigned = ours
        self._start_to_take_over()

    def _start_to_take_over(self) -> None:
        """The group may assign before `run` has begun."""
        if self._tasks is not None and not self._stopping:
            self._taking_over = self._tasks.create_task(self._take_over(self._assigned), name="take over")

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._stop_admitting()
        offsets = {} if lost else self._offsets()
        for owner in self._owners.values():
            owner.suspend()
        self._committed.clear()
        if offsets:
            await self.subscription.commit(offsets)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        owner, admission = self._owners.get(place.partition), self._admissions.get(place.partition)
        if owner is None or admission is None:
            return
        if place.topic == self._log:
            owner.fold(records)
            admission.folded()
            self._feed_again(place.partition, admission)
        else:
            admission.feed(records)
            if admission.full:
                self.subscription.pause(place)

    def position(self, place: Place, offset: int) -> None:
        owner = self._owners.get(place.partition)
        if owner is not None and place.topic == self._log:
            owner.caught_up(offset)
        elif (admission := self._admissions.get(place.partition)) is not None:
            self._feed_again(place.partition, admission)

    def _feed_again(self, partition: int, admission: Admission) -> None:
        if partition in self._admitting and admission.hungry:
            self.subscription.resume(Place(self._requests, partition))

    def _stop_admitting(self) -> None:
        for partition, task in self._admitting.items():
            task.cancel()
            self._admissions[partition].suspend()
        self._admitting.clear()

    # --- taking over ------------------------------------------------------------------------------------------------

    async def _take_over(self, partitions: set[int]) -> None:
        """Begin or go on to fold; tried until it works, for without it nothing happens here."""
        while True:
            try:
                return await self._begin(partitions)
            except BrokerError as error:
                log.warning("cannot take over yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _begin(self, partitions: set[int]) -> None:
        logs = [Place(self._log, partition) for partition in sorted(partitions)]
        requests = [Place(self._requests, partition) for partition in sorted(partitions)]
        ends, begins = await self.subscription.ends(logs), await self.subscription.begins([*logs, *requests])
        committed = await self.subscription.committed(logs)
        for place, request_place in zip(logs, requests, strict=True):
            owner = self._owners.get(place.partition)
            if owner is None:
                owner = Owner(place.partition, self._station, self._on_live)
                self._owners[place.partition] = owner
                self._admissions[place.partition] = Admission(owner, self._station)
                known = _read_commit(committed.get(place))
                position = owner.begin(known, begins[place], ends[place], begins[request_place])
            else:
                position = owner.resume(ends[place])
            self.subscription.seek(place, position)
            owner.caught_up(position)

    def _on_live(self, owner: Owner) -> None:
        """From here on requests are taken up, from where the fold says."""
        if self._stopping or self._tasks is None:
            return
        partition, admission = owner.partition, self._admissions[owner.partition]
        admission.suspend()
        self.subscription.seek(Place(self._requests, partition), admission.position)
        name = f"admit {partition}"
        self._admitting[partition] = self._tasks.create_task(admission.run(), name=name)

    # --- commits -------------------------------------------------------------------------------------------------

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._commit_s)
            await self._commit()

    async def _commit(self) -> None:
        offsets = {p: at for p, at in self._offsets().items() if self._committed.get(p) != at}
        if offsets and await self.subscription.commit(offsets):
            self._committed.update(offsets)
            if self._metadata_kept is None:
                await self._find_out_about_metadata()

    def _offsets(self) -> dict[Place, Committed]:
        offsets: dict[Place, Committed] = {}
        for partition, owner in self._owners.items():
            commit = owner.commit(bool(self._metadata_kept))
            if commit is not None:
                offsets[Place(self._log, partition)] = _write_commit(commit)
                offsets[Place(self._requests, partition)] = Committed(owner.state.next_request or 0, "")
        return offsets

    async def _find_out_about_metadata(self) -> None:
        """A broker that keeps none gives back an empty text."""
        places = [place for place in self._committed if place.topic == self._log]
        found = await self.subscription.committed(places)
        self._metadata_kept = any(at.metadata for at in found.values())
        if not self._metadata_kept:
            log.info("this broker keeps no commit metadata: restarts repeat more")


def _write_commit(commit: Commit) -> Committed:
    return Committed(commit.low, f"1 {commit.done} {commit.next_request}")


def _read_commit(committed: Committed | None) -> Commit | None:
    """Without metadata, `next_request` is what the first event that names one says."""
    if committed is None:
        return None
    parts = committed.metadata.split()
    if len(parts) == 3 and parts[0] == "1" and parts[1].isdecimal() and parts[2].isdecimal():
        return Commit(committed.offset, int(parts[1]), int(parts[2]))
    return Commit(committed.offset, 0, -1)
