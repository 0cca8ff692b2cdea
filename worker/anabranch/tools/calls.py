"""The calls that a tool worker has taken in: each from its record to the mark that it is finished.

Responsible for: the task of each, which of them execute, and when a partition has to pause because it has too many.
What executes goes on whatever the group does. Must never: take partitions over, give them up or commit. `serving.py`
executes each call. Called by: `worker.py`, which has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

from anabranch.about import TOPIC, about_record, place_of
from anabranch.app import Tool
from anabranch.bodies import without_given
from anabranch.codec import Record
from anabranch.errors import WireError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Place
from anabranch.limits import ShareLost
from anabranch.tasks import Group
from anabranch.tools.commits import Commits
from anabranch.tools.handing_off import HandOffs
from anabranch.tools.intake import Intake
from anabranch.tools.lane import Lane
from anabranch.tools.serving import Bench, Job, Service, read_job

log = logging.getLogger(__name__)

_Work = Callable[[Lane, Job], Awaitable[None]]


class Calls:
    """See the module. `lanes` are the worker's own; `over` is set once it is to end, be it because of `failures`."""

    def __init__(
        self,
        bench: Bench,
        tools: dict[str, Tool],
        lanes: dict[Place, Lane],
        membership: Membership,
        service: Service,
        commits: Commits,
        hand_offs: HandOffs,
    ) -> None:
        self._bench, self._tools, self._lanes, self._membership = bench, tools, lanes, membership
        self._service, self._commits, self._hand_offs = service, commits, hand_offs
        self._careful = {t.name for t in tools.values() if t.spec.serial_key or t.spec.delivery == "at_most_once"}
        self._tasks: Group | None = None
        self._executing: defaultdict[Place, dict[int, Job]] = defaultdict(dict)
        self._serving: set[asyncio.Task[None]] = set()
        self.intake = Intake(bench.settings.max_taken_bytes)
        self.over, self.failures = asyncio.Event(), list[BaseException]()

    def enter(self, tasks: Group, on_failure: Callable[[BaseException], None]) -> None:
        """From here on calls may be taken in. `on_failure` hears at once of what ends us."""
        self._tasks, self._on_failure = tasks, on_failure
        self._service.owner = asyncio.current_task()

    async def drop_all(self) -> None:
        """Nothing goes on; returns when nothing does."""
        for job in [*self.running(), *(job for lane in self._lanes.values() for job in lane.jobs.values())]:
            job.drop()
        while self._serving:
            await asyncio.wait(self._serving)

    # --- what executes ---------------------------------------------------------------------------------------------

    def running(self) -> list[Job]:
        return [job for jobs in self._executing.values() for job in jobs.values()]

    @property
    def count(self) -> int:
        """How many execute now."""
        return sum(len(jobs) for jobs in self._executing.values())

    def running_of(self, place: Place) -> dict[int, Job]:
        """Those of one partition, by offset."""
        return self._executing.get(place, {})

    def disown(self, place: Place, end: int) -> None:
        """The partition ends at `end`: what runs of offsets that are yet to come was read from one that is gone.

        It runs on, and is answered; but no call that comes to lie there counts as running or as finished because of it.
        """
        gone = [offset for offset in self.running_of(place) if offset >= end]
        nowhere = place._replace(partition=-1 - place.partition)
        for offset in gone:
            job = self._executing[nowhere][offset] = self._executing[place].pop(offset)
            job.place = nowhere
        if gone:
            self.intake.keep_only(self.running())

    def goes_on(self, job: Job) -> None:
        """From here on it runs, whatever the group does."""
        self._executing[job.place][job.offset] = job
        job.begun = True

    def is_careful(self, job: Job) -> bool:
        """Whether it begins only once a commit stands: it may not be repeated, or its key is serial."""
        return job.call.tool in self._careful

    def give_up(self, job: Job) -> None:
        """It is not to go on. In a line it has no task whose end would tell of it."""
        job.drop()
        if job.task is None and self._executing[job.place].pop(job.offset, None) is not None:
            self._free(job)

    def give_back(self, job: Job) -> None:
        """It stayed in a line, and is not to start here after all: it will be read again, or lies there anew."""
        self.give_up(job)
        if job.gone:
            assert self._tasks is not None, "calls stay only while running"
            self._tasks.begin(self._service.send_home(job, job.record.partition), "send back")

    def is_gone(self, job: Job) -> None:
        """It was handed off, and a commit says so. While that was under way its line may have sent it away."""
        if not job.gone:
            job.gone = True
            if job.dropped and not job.begun:
                self.give_back(job)

    def finish(self, job: Job) -> None:
        """A commit may say from here on that it is."""
        lane = self._lanes.get(job.place)
        if lane is not None:
            lane.progress.finish(job.record.offset)

    # --- room ------------------------------------------------------------------------------------------------------

    def pace_all(self) -> None:
        for place, lane in self._lanes.items():
            self.pace(place, lane)

    def pace(self, place: Place, lane: Lane) -> None:
        """Pause a partition that has more calls than there is room for; go on when there is room again."""
        partitions = len(self._lanes)
        if lane.paused_at is None and (lane.full or self.intake.full(place, partitions)):
            lane.paused_at = self._bench.now()
            self._membership.subscription.pause(place)
        elif lane.paused_at is not None and lane.has_room and self.intake.has_room(place, partitions):
            lane.paused_at = None
            self._membership.subscription.resume(place)

    # --- taking calls in -------------------------------------------------------------------------------------------

    def take_in(self, place: Place, lane: Lane, record: Record, now: float, was_begun: bool) -> None:
        assert self._tasks is not None, "records come only while running"
        try:
            job = read_job(record, place, self._tools, now)
        except WireError as error:
            why = without_given(str(error))
            log.error("%s is not a call: %s", place_of(record), why, extra=about_record(record, str(error)))
            self._tasks.begin(self._bury(lane, record, str(error)), "dead letter")
            return
        lane.jobs[job.offset] = job
        self.intake.take(job)
        if was_begun:
            self._start(lane, job, self._tell_unknown)
        elif not self._joins(lane, job):
            self._start(lane, job, self._serve)

    def _joins(self, lane: Lane, job: Job) -> bool:
        """Whether it waits in a line, until its turn has come."""
        if job.tool is None or job.tool.limit is None:
            return False
        try:
            return self._service.join(job, partial(self._serve_now, lane, job))
        except ShareLost:
            return False  # who serves it hears of it again

    def _serve_now(self, lane: Lane, job: Job) -> None:
        if job.task is None and not job.dropped and not self.over.is_set():
            self._start(lane, job, self._serve)

    def _start(self, lane: Lane, job: Job, work: _Work) -> None:
        """In a task that `run` waits for: a task group would cost as much again as the task."""
        name, loop = f"call {job.call.call_id}", asyncio.get_running_loop()
        job.task = loop.create_task(self._see_to(lane, job, work), name=name)
        self._serving.add(job.task)

    async def _see_to(self, lane: Lane, job: Job, work: _Work) -> None:
        TOPIC.set(job)
        job.started = True
        try:
            if not job.dropped:
                await work(lane, job)
        except Exception as error:  # noqa: BLE001 - `run` raises it, and ends: but those that it drops may take long
            self.failures.append(error)
            self.over.set()
            self._on_failure(error)
        finally:
            self._serving.discard(job.task)
            executing = self._executing[job.place].pop(job.offset, None) is not None
            if executing and job.dropped:
                self._read_again(job)
            self._left(lane, job)
            TOPIC.set(None)  # what a call holds is freed with it: its task does not lead back to it

    async def _bury(self, lane: Lane, record: Record, reason: str) -> None:
        await self._service.bury(record, "unreadable", reason)
        lane.progress.finish(record.offset)

    def _left(self, lane: Lane, job: Job) -> None:
        lane.forget(job)
        if not self._free(job) and lane.paused_at is not None and self._lanes.get(job.place) is lane:
            self.pace(job.place, lane)

    def _free(self, job: Job) -> bool:
        """It is over, and neither its gate nor its hand-off leads back to it. Whether all may be read on for that."""
        if job.ends is not None:
            job.ends.cancel()
        job.gate = job.ends = None
        if is_roomy := self.intake.free(job):
            self.pace_all()
        return is_roomy

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _serve(self, lane: Lane, job: Job) -> None:
        try:
            held = await self._service.enter(job)
            try:
                if (job.stays is not None or self.is_careful(job)) and not await self._may_begin(lane, job):
                    return
                if self._service.is_idle(job.call):
                    self._service.skip(job)
                else:
                    self.goes_on(job)
                    await self._service.answer(job)
                self.finish(job)
                if job.held_until:
                    self._hand_offs.free(self._lanes.get(job.place), job)
            finally:
                await self._service.leave(job, held)
        except ShareLost:  # its home's next owner reads it, or is sent it anew
            job.dropped, job.begun = True, False
            if job.gone:
                await self._service.send_home(job, job.record.partition)

    async def _tell_unknown(self, lane: Lane, job: Job) -> None:
        """Somebody before us committed it as begun, and it is not finished: it is not executed again."""
        await self._service.deliver(job, self._service.unknown())
        lane.progress.finish(job.record.offset)

    def _read_again(self, job: Job) -> None:
        """It was given up while it ran, or before. If its partition is ours, nobody else will take it."""
        lane, offset = self._lanes.get(job.place), job.record.offset
        if lane is None or not lane.progress.is_open(offset):
            return
        if job.begun:
            lane.progress.interrupt(offset)
        else:
            lane.progress.give_back([offset])
        if not self._membership.stopping:
            self._membership.subscription.seek(job.place, lane.progress.position)

    async def _may_begin(self, lane: Lane, job: Job) -> bool:
        if job.stays is not None:
            return await job.stays
        return await self._commits.may_begin(lane, job, lambda: self._service.is_idle(job.call))
