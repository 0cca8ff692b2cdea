"""The agent role: a member of the group `agents` that owns partitions of the run log.

It gives each partition that is assigned an `Owner` and an `Admission`, feeds them what is read, and commits
for them. A partition that comes back after a rebalance keeps its fold; what is in flight of one that does not
is handed off in the log, and goes on. It never decides anything about a run. `runtime.py` starts and ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final

from anabranch.agent.admission import Admission
from anabranch.agent.calling import ModelCalls
from anabranch.agent.owner import Commit, Hooks, Owner
from anabranch.agent.station import Station
from anabranch.codec import Record
from anabranch.errors import AnabranchError, BrokerError
from anabranch.kafka.seam import Broker, Committed, Place, Subscription

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
SETTLE_S: Final = 8.0
"""How long a revoke waits for the broker, at most, in each of its steps: the group waits for the revoke."""


class AgentWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    def __init__(self, station: Station, broker: Broker, commit_s: float) -> None:
        self._station, self._broker, self._commit_s = station, broker, commit_s
        self._log, self._requests = station.namespace.log, station.namespace.requests
        self._subscription: Subscription | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._assigned: set[int] = set()
        self._assigned_at = 0.0
        self._owners: dict[int, Owner] = {}
        self._calls: dict[int, ModelCalls] = {}
        self._admissions: dict[int, Admission] = {}
        self._admitting: dict[int, asyncio.Task[None]] = {}
        self._committed: dict[Place, Committed] = {}
        self._metadata_kept: bool | None = None
        self._stopping = False
        self._giving_up = asyncio.Lock()
        self._over = asyncio.Event()

    def attach(self, subscription: Subscription) -> None:
        """From here on partitions are taken over. The group may have assigned them before."""
        self._subscription = subscription
        self._start_to_take_over()

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
        """Own partitions, and make their model calls, until `end`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            own = [tasks.create_task(self._station.thinker.run(), name="model calls")]
            own.append(tasks.create_task(self._commit_for_ever(), name="commits"))
            self._start_to_take_over()
            await self._over.wait()
            for task in (*own, self._taking_over, *self._admitting.values()):
                if task is not None:
                    task.cancel()

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all partitions up; what is in flight goes on for `for_s` at most."""
        self._stopping = True
        await self._give_up(for_s)

    async def finish(self, timeout_s: float) -> int:
        """Let the model calls end that are in flight; returns how many were abandoned."""
        self._station.thinker.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._station.thinker.idle()
        except TimeoutError:
            log.warning("%d model calls were still running after %g s", self.running, timeout_s)
        await self._station.appender.flush(max(1.0, timeout_s / 10))
        return self.running

    def end(self) -> None:
        self._over.set()

    # --- listener ------------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        """Only where both the log and the requests are ours do we act."""
        ours = {p.partition for p in places if p.topic == self._log}
        ours &= {p.partition for p in places if p.topic == self._requests}
        log.info("assigned %d partitions: %s", len(ours), sorted(ours))
        self._assigned_at = asyncio.get_running_loop().time()
        for partition in self._owners.keys() - ours:
            self._owners.pop(partition).drop()
            self._admissions.pop(partition)
        self._assigned = ours
        self._station.thinker.own(frozenset(ours), self._station.partitions)
        self._start_to_take_over()

    def _start_to_take_over(self) -> None:
        if self._tasks is None or self._subscription is None or self._stopping:
            return
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._taking_over = self._tasks.create_task(self._take_over(self._assigned), name="take over")

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        if self._stopping:
            async with self._giving_up:  # the group waits: what `release` has begun may be under way still
                return
        if lost:
            self._let_go(lost=True)
        else:
            await self._give_up(self._station.settings.hand_off_s)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        owner, admission = self._owners.get(place.partition), self._admissions.get(place.partition)
        if owner is None or admission is None or self._stopping:
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
        if self._stopping or owner is None:
            return
        if place.topic == self._log:
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

    # --- giving up --------------------------------------------------------------------------------------------------

    async def _give_up(self, for_s: float) -> None:
        """Finish the publications of all that is folded, hand off what is in flight, say so, commit."""
        async with self._giving_up:
            await self._give_all_up(for_s)

    async def _give_all_up(self, for_s: float) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._stop_admitting()
        owners = list(self._owners.values())
        for owner in owners:
            owner.give_up()
        await self._read_dispatches_back([owner for owner in owners if owner.has_dispatches_to_read])
        await _settled(future for owner in owners for future in owner.under_way())
        await _settled(future for owner in owners for future in owner.hand_off(for_s))
        offsets = self._offsets()
        self._let_go()
        if offsets:
            await self.subscription.commit(offsets)

    def _let_go(self, lost: bool = False) -> None:
        self._station.thinker.disown(lost)
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._assigned = set()  # a revoke may come before `attach`, which then has nothing to take over
        self._stop_admitting()
        for owner in self._owners.values():
            owner.suspend()
        self._committed.clear()

    async def _read_dispatches_back(self, owners: Sequence[Owner]) -> None:
        """Nothing is delivered to us meanwhile, so another reader folds on until ours are read."""
        if not owners:
            return
        starts = {Place(self._log, owner.partition): owner.state.position for owner in owners}
        try:
            async with asyncio.timeout(SETTLE_S), self._broker.reader(list(starts), starts) as reader:
                while any(owner.has_dispatches_to_read for owner in owners):
                    for record in await reader.read(AGAIN_S):
                        self._owners[record.partition].fold([record])
        except (TimeoutError, AnabranchError) as error:
            log.warning("a call.dispatched of ours was not read back: its deadline will answer (%r)", error)

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
                owner = self._new_owner(place.partition)
                known = _read_commit(committed.get(place))
                position = owner.begin(known, begins[place], ends[place], begins[request_place])
            else:
                position = owner.resume(ends[place])
            self.subscription.seek(place, position)
            owner.caught_up(position)

    def _new_owner(self, partition: int) -> Owner:
        calls = self._calls.get(partition)
        if calls is None:
            calls = self._calls[partition] = ModelCalls(partition, self._station)
        owner = Owner(
            partition, self._station, calls, Hooks(self._on_live, self._on_time_up, lambda: self.subscription.alive)
        )
        self._owners[partition] = owner
        self._admissions[partition] = Admission(owner, self._station)
        return owner

    def _on_live(self, owner: Owner) -> None:
        """From here on requests are taken up, from where the fold says."""
        if self._stopping or self._tasks is None:
            return
        partition, admission = owner.partition, self._admissions[owner.partition]
        after_s = asyncio.get_running_loop().time() - self._assigned_at
        log.debug("partition %d is live after %.2f s, with %d bytes of open runs", partition, after_s, owner.open_bytes)
        admission.suspend()
        self.subscription.seek(Place(self._requests, partition), admission.position)
        name = f"admit {partition}"
        self._admitting[partition] = self._tasks.create_task(admission.run(), name=name)

    def _on_time_up(self, owner: Owner, key: Hashable) -> None:
        """A hand-off's time is up: the giver's reply may stand in the log, up to its end as it is now."""
        if self._tasks is not None and not self._stopping:
            self._tasks.create_task(self._capture_end(owner, key), name=f"end of {owner.partition}")

    async def _capture_end(self, owner: Owner, key: Hashable) -> None:
        place = Place(self._log, owner.partition)
        while owner.live:
            try:
                ends = await self.subscription.ends([place])
                return owner.read_on(key, ends[place])
            except BrokerError as error:
                log.warning("the end of %s/%d cannot be had yet: %s", *place, error)
                await asyncio.sleep(AGAIN_S)
        return None

    # --- commits -------------------------------------------------------------------------------------------------

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._commit_s)
            if not self._stopping:
                await self._commit()
                for owner in self._owners.values():
                    owner.clean(self._station.settings.snapshot_age_s)

    async def _commit(self) -> None:
        offsets = {p: at for p, at in self._offsets().items() if self._committed.get(p) != at}
        if offsets and await self.subscription.commit(offsets):
            self._committed.update(offsets)
            for place, at in offsets.items():
                if place.topic == self._log and place.partition in self._owners:
                    self._owners[place.partition].committed(at.offset)
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


async def _settled(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for the broker, within bounds."""
    waiting = list(futures)
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=SETTLE_S)
        if late:
            log.warning("%d records were not acknowledged within %g s of a revoke", len(late), SETTLE_S)


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
