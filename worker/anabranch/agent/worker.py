"""The agent role: a member of the group `agents` that owns partitions of the run log.

It gives each partition that is assigned an `Owner` and an `Admission`, and feeds them what is read; `committing.py`
commits for them. A partition that comes back after a rebalance keeps its fold; what is in flight of one that does not
is handed off in the log, and goes on. It never decides anything about a run. `kafka/membership.py` says when to take
over and when to give up, `runtime.py` when to start and when to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from anabranch.agent.admission.admission import Admission
from anabranch.agent.commit import taken_over
from anabranch.agent.committing import Commits
from anabranch.agent.deadlines import Moment
from anabranch.agent.model.calling import ModelCalls
from anabranch.agent.owner import Hooks, Owner
from anabranch.agent.prompt.offer import Offers
from anabranch.agent.station import Station
from anabranch.agent.telemetry.sampling import sample
from anabranch.codec import Record
from anabranch.errors import AnabranchError
from anabranch.fields import LANES, Lane
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Broker, Place, Subscription
from anabranch.kafka.sent import Sent, settled
from anabranch.tasks import Group
from anabranch.wording import counted

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
SETTLE_S: Final = 8.0
"""How long a revoke waits for the broker, at most, in each of its steps: the group waits for the revoke."""


class AgentWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    ahead_bytes: Final = 2 * 1024 * 1024  # a log is read as fast as it can be

    def __init__(self, station: Station, broker: Broker, commit_s: float) -> None:
        self._station, self._broker = station, broker
        self._log = station.namespace.log
        self._topics: dict[Lane, str] = {lane: station.namespace.requests_of(lane) for lane in LANES}
        self._lanes = {topic: lane for lane, topic in self._topics.items()}
        self._places: frozenset[Place] = frozenset()
        self._membership = Membership(self, station.settings.hand_off_s, station.meters)
        self._tasks: Group | None = None
        self._owners: dict[int, Owner] = {}
        self._calls: dict[int, ModelCalls] = {}
        self._offers = Offers(station.registry)
        self._admissions: dict[int, Admission] = {}
        self._admitting: dict[Place, asyncio.Task[object]] = {}
        self._commits = Commits(station, self._membership, self._owners, lambda: self._places, commit_s)
        self._ends: dict[Place, int] = {}  # when they were taken over
        self._gaps: dict[int, int] = {}  # where, in a partition's log, records seemed to be missing
        self._over = asyncio.Event()
        self._abandoned = 0
        self.on_failure: Callable[[BaseException], None] = lambda error: None

    def attach(self, subscription: Subscription) -> None:
        self._membership.attach(subscription)

    @property
    def subscription(self) -> Subscription:
        return self._membership.subscription

    @property
    def running(self) -> int:
        """Model calls in flight, or given up at the end."""
        return self._station.thinker.running + self._abandoned

    @property
    def owned(self) -> int:
        """Partitions that are live."""
        return sum(owner.live for owner in self._owners.values())

    @property
    def is_settled(self) -> bool:
        """Whether what is assigned has been taken over."""
        return self._membership.is_settled

    @property
    def unready(self) -> str:
        """Why not all that is assigned is worked on; "" if it is, be it nothing."""
        if not self.is_settled:
            return "it waits for its partitions"
        silent = sum(not owner.live for owner in self._owners.values())
        return f"{silent} of its {len(self._owners)} partitions are still read" if silent else ""

    @property
    def positions(self) -> dict[Place, int]:
        """What is to be taken up next, by partition."""
        logs = {Place(self._log, p): owner.state.position for p, owner in self._owners.items()}
        requests = [
            place for place in self._places if place.topic in self._lanes and place.partition in self._admissions
        ]
        return logs | {at: self._admissions[at.partition].position(self._lanes[at.topic]) for at in requests}

    def sample(self) -> None:
        """Bring the gauges up to date."""
        sample(self._station, self._membership.places, self._owners.values(), self._admissions.values())

    async def run(self) -> None:
        """Own partitions, and make their model calls, until `end`."""
        async with Group(lambda error: self.on_failure(error)) as tasks:
            self._tasks = tasks
            own: list[asyncio.Task[object]] = [tasks.create_task(self._station.thinker.run(), name="model calls")]
            own.append(tasks.create_task(self._commits.run(), name="commits"))
            own.append(tasks.create_task(self._station.fate.come(), name="fate"))
            for task in own:
                tasks.watch(task)
            self._membership.enter(tasks)
            await self._over.wait()
            self._membership.forget()
            for task in (*own, *self._admitting.values()):
                task.cancel()

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all partitions up; what is in flight goes on for `for_s` at most."""
        self._station.thinker.disown(False)
        await self._membership.release(for_s)

    async def finish(self, timeout_s: float) -> int:
        """Let the model calls end that are in flight; returns how many were abandoned."""
        self._station.thinker.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._station.thinker.idle()
        except TimeoutError:
            log.warning("%d model calls were still running after %g s", self.running, timeout_s)
        abandoned = self.running
        self._station.thinker.cancel_all("its worker stopped")  # what they have used is told, and written below
        await self._station.thinker.idle()
        for calls in self._calls.values():
            calls.abandon()
        self._abandoned = abandoned
        await self._station.appender.flush(max(1.0, timeout_s / 10))
        return self.running

    def end(self) -> None:
        self._over.set()

    # --- listener ------------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        """Only where both the log and the requests are ours do we act, and take those of the bulk lane if they are."""
        ours, self._places = self._ours(places), places
        log.info("assigned %s: %s", counted(len(ours), "partition"), ours)
        for partition in self._owners.keys() - set(ours):
            self._forget(partition)
        self._station.thinker.own(frozenset(ours), self._station.partitions)
        self._membership.assigned(places)

    def _ours(self, places: frozenset[Place]) -> list[int]:
        logs = {place.partition for place in places if place.topic == self._log}
        return sorted(logs & {place.partition for place in places if place.topic == self._topics["interactive"]})

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        self._station.thinker.disown(lost)
        await self._membership.revoked(lost)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        if (owner := self._at_work(place.partition)) is None:
            return
        admission = self._admissions[place.partition]
        if place.topic != self._log:
            if admission.feed(records, self._lanes[place.topic]):
                self.subscription.pause(place)
        elif not self._takes_over_again(owner, records[0].offset):
            owner.fold(records)
            admission.folded()

    def position(self, place: Place, offset: int) -> None:
        owner = self._at_work(place.partition) if place.topic == self._log else None
        if owner is not None and not self._takes_over_again(owner, offset):
            owner.caught_up(offset)

    def _at_work(self, partition: int) -> Owner | None:
        """Whoever takes what is read of a partition: nobody while partitions change hands."""
        changes = self._membership.stopping or self._membership.is_taking_over
        return None if changes else self._owners.get(partition)

    def known(self, place: Place) -> int:
        """Events of our own are folded at their acknowledgement: see `Owner.acknowledged`."""
        owner = self._owners.get(place.partition) if place.topic == self._log else None
        return 0 if owner is None else owner.state.position

    @property
    def is_answering(self) -> bool:
        return self._station.appender.outstanding > 0

    @property
    def is_sated(self) -> bool:
        return False  # how much is admitted is said by pausing

    def _takes_over_again(self, owner: Owner, offset: int) -> bool:
        """Whether what is read next lies beyond what was folded: retention may have eaten what is in between.

        Markers of a transaction leave a gap as well, so the partition is taken over again, which looks where the
        log begins; a gap that is still there afterwards is none.
        """
        position = owner.state.position
        if offset <= position or self._gaps.get(owner.partition) == position:
            return False
        log.warning(
            "partition %d: %d is read next, and the fold is at %d",
            owner.partition,
            offset,
            position,
            extra={"partition": owner.partition},
        )
        self._gaps[owner.partition] = position
        self._membership.take_over_again()
        return True

    def _stop_admitting(self) -> None:
        for place, task in self._admitting.items():
            task.cancel()
            self._admissions[place.partition].suspend()
        self._admitting.clear()

    # --- giving up --------------------------------------------------------------------------------------------------

    async def give_up(self, for_s: float) -> None:
        """Finish the publications of all that is folded, hand off what is in flight, say so, commit."""
        self._stop_admitting()
        owners = list(self._owners.values())
        for owner in owners:
            owner.give_up()
        await self._read_dispatches_back([owner for owner in owners if owner.has_dispatches_to_read])
        await _settled(sent for owner in owners for sent in owner.under_way())
        await _settled(sent for owner in owners for sent in owner.hand_off(for_s))
        offsets = self._commits.due()
        self.let_go()
        if offsets:
            await self.subscription.commit(offsets)

    def let_go(self) -> None:
        """Nothing is ours any more."""
        self._stop_admitting()
        for owner in self._owners.values():
            owner.suspend()
        self._commits.forget()

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

    async def take_over(self, places: frozenset[Place]) -> None:
        """A partition that was kept goes on with its fold; of another one it is begun anew."""
        partitions = self._ours(places)
        logs = [Place(self._log, partition) for partition in partitions]
        requests = [Place(self._topics["interactive"], partition) for partition in partitions]
        bulk = [Place(self._topics["bulk"], partition) for partition in partitions]
        everything = [*logs, *requests, *bulk]
        committed = await self.subscription.committed(everything)
        for place in requests:
            if (last := committed.get(place)) is not None:
                self._station.signer.recognise(last.metadata, f"{self._log}/{place.partition}")
        ends = self._ends = await self.subscription.ends(everything)
        begins = await self.subscription.begins(everything)
        for place, *lanes in zip(logs, requests, bulk, strict=True):
            known, requests_left = taken_over(place, lanes, committed, begins, ends)
            owner = self._owners.get(place.partition)
            if owner is None or not begins[place] <= owner.state.position <= ends[place]:  # it is a fold of another log
                self._forget(place.partition)
                owner = self._new_owner(place.partition)
                position = owner.begin(known, begins[place], ends[place], requests_left)
            else:
                position = owner.resume(ends[place])
                owner.committed(known.low if known is not None else begins[place])
            self.subscription.seek(place, position)
            owner.caught_up(position)

    def _forget(self, partition: int) -> None:
        if (owner := self._owners.pop(partition, None)) is not None:
            owner.drop()
        if (admission := self._admissions.pop(partition, None)) is not None:
            admission.drop()

    def _new_owner(self, partition: int) -> Owner:
        calls = self._calls.get(partition)
        if calls is None:
            calls = self._calls[partition] = ModelCalls(partition, self._station, self._offers)
        hooks = Hooks(self._on_live, self._on_time_up, lambda: self.subscription.alive, self._commits.soon)
        owner = Owner(partition, self._station, calls, hooks)
        self._owners[partition] = owner
        read_again, read_on = partial(self._read_again, partition), partial(self._read_on, partition)
        self._admissions[partition] = Admission(owner, self._station, read_again, read_on)
        return owner

    def _read_again(self, partition: int) -> None:
        """What is taken up next, in each lane, lies where the fold says."""
        for lane, topic in self._topics.items():
            if (place := Place(topic, partition)) in self._admitting:
                self.subscription.seek(place, self._admissions[partition].position(lane))

    def _read_on(self, partition: int, lane: Lane) -> None:
        """What is held ready of a lane has become less."""
        self.subscription.resume(Place(self._topics[lane], partition))

    def _on_live(self, owner: Owner) -> None:
        """From here on requests are taken up, from where the fold says."""
        if self._membership.stopping or self._tasks is None:
            return
        partition, admission = owner.partition, self._admissions[owner.partition]
        after_s = asyncio.get_running_loop().time() - self._membership.assigned_at
        self._station.meters.takeovers.observe(after_s)
        log.debug(
            "partition %d is live after %.2f s, with %d bytes of open runs",
            partition,
            after_s,
            owner.held.open_bytes,
            extra={"partition": partition},
        )
        admission.suspend()
        for lane, topic in self._topics.items():
            if (place := Place(topic, partition)) in self._places:
                position = admission.position(lane)
                self.subscription.seek(place, min(position, self._ends.get(place, position)))
                if (admitting := self._tasks.begin(admission.run(lane), f"admit {partition} {lane}")) is not None:
                    self._admitting[place] = admitting

    def _on_time_up(self, owner: Owner, moment: Moment) -> None:
        """A hand-off's time is up: the giver's reply may stand in the log, up to its end as it is now."""
        if self._tasks is not None and not self._membership.stopping:
            self._tasks.begin(self._capture_end(owner, moment), f"end of {owner.partition}")

    async def _capture_end(self, owner: Owner, moment: Moment) -> None:
        end = await self._membership.end_of(Place(self._log, owner.partition), lambda: owner.live)
        if end is not None:
            owner.read_on(moment, end)


async def _settled(sent: Iterable[Sent]) -> None:
    """Wait for the broker, within bounds."""
    if late := await settled(sent, SETTLE_S):
        many = counted(len(late), "record was", "records were")
        log.warning("%s not acknowledged within %g s of a revoke", many, SETTLE_S)
