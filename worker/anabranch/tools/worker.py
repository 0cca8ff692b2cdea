"""The tool role: a member of the group `tools.<queue>` that executes the calls of its partitions.

Calls of one partition run concurrently and finish out of order; a commit says which are finished, and which
at-most-once calls may have begun. When partitions are taken away, what runs goes on: it is handed off in the
logs of its runs, and marked as finished. A call that cannot be read, is unknown or is too late costs only
itself. `serving.py` executes, `commits.py` commits, `handing_off.py` tells of what goes on; `kafka/membership.py`
says when to take over and when to give up, `runtime.py` when to start and when to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from anabranch.about import TOPIC, about_record, place_of
from anabranch.bodies import without_given
from anabranch.codec import Record
from anabranch.errors import WireError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Committed, Place, Subscription
from anabranch.limits import ShareLost
from anabranch.tasks import Group
from anabranch.tools import marks
from anabranch.tools.commits import Commits
from anabranch.tools.handing_off import HandOffs, cancel_serial
from anabranch.tools.intake import Intake
from anabranch.tools.lane import Lane
from anabranch.tools.marks import Marks
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Bench, Job, Service, read_job
from anabranch.tools.shares import Shares
from anabranch.wording import counted

log = logging.getLogger(__name__)

_Work = Callable[[Lane, Job], Awaitable[None]]


class ToolWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    def __init__(self, bench: Bench, commit_s: float) -> None:
        self._bench = bench
        self._tools = {tool.name: tool for tool in bench.app.tools_of(bench.queue)}
        limits = [limit for limit in bench.app.limit_specs() if limit.queue == bench.queue]
        weight = bench.settings.interactive_weight
        self._shares = Shares(
            limits, bench.partitions, bench.now, lambda: self._membership.subscription.alive, bench.meters, weight
        )
        self._service = Service(bench, self._tools, self._shares, self._held_until)
        self._at_most_once = any(tool.spec.delivery == "at_most_once" for tool in self._tools.values())
        self._careful = {t.name for t in self._tools.values() if t.spec.serial_key or t.spec.delivery == "at_most_once"}
        self._membership = Membership(self, bench.settings.hand_off_s, bench.meters)
        self._tasks: Group | None = None
        self._lanes: dict[Place, Lane] = {}
        self._executing: defaultdict[Place, dict[int, Job]] = defaultdict(dict)
        self._intake = Intake(bench.settings.max_taken_bytes)
        self._commits = Commits(bench, self._membership, self._lanes, commit_s, self._committed)
        self._hand_offs = HandOffs(bench)
        self._serving: set[asyncio.Task[None]] = set()
        self._over, self._failures = asyncio.Event(), list[BaseException]()
        self.on_failure: Callable[[BaseException], None] = lambda error: None

    def attach(self, subscription: Subscription) -> None:
        self._membership.attach(subscription)

    @property
    def running(self) -> int:
        """Calls that execute now."""
        return sum(len(jobs) for jobs in self._executing.values())

    @property
    def oldest_waiting_s(self) -> float:
        """How long the oldest call that was taken in and does not run yet has waited, since it was published."""
        since = [at for lane in self._lanes.values() if (at := lane.waiting_since) is not None]
        oldest_s = max(0.0, self._bench.now() - min(since)) if since else 0.0
        self._bench.meters.oldest_waiting.set(oldest_s)
        return oldest_s

    @property
    def is_settled(self) -> bool:
        """Whether what is assigned has been taken over."""
        return self._membership.is_settled

    @property
    def unready(self) -> str:
        """Why what is assigned is not worked on; "" if it is, be it nothing."""
        return "" if self.is_settled else "it waits for its partitions"

    @property
    def positions(self) -> dict[Place, int]:
        """What is to be taken in next, by partition."""
        return {place: lane.progress.position for place, lane in self._lanes.items()}

    def sample(self) -> None:
        """Bring the gauges up to date, but for the age of the oldest call, which is dear: that is told when it is."""
        meters, bench = self._bench.meters, self._bench
        meters.partitions.set(len(self._membership.places), bench.namespace.calls(bench.queue))
        meters.unacknowledged.set(bench.appender.outstanding)
        meters.slots.set(self._service.slots.count)
        meters.slots_used.set(self._service.slots.used)
        meters.threads.set(bench.settings.threads)
        meters.threads_busy.set(bench.executor.busy_threads)
        meters.waiting.set(sum(lane.waiting for lane in self._lanes.values()))
        meters.taken_bytes.set(self._intake.used)
        meters.taken_bytes_max.set(bench.settings.max_taken_bytes)
        self._shares.sample()

    async def run(self) -> None:
        """Execute calls until `end`."""
        self._service.owner = asyncio.current_task()
        async with Group(lambda error: self.on_failure(error)) as tasks:
            self._tasks = tasks
            committing = tasks.watch(tasks.create_task(self._commits.run(), name="commits"))
            self._membership.enter(tasks)
            try:
                await self._over.wait()
            finally:
                committing.cancel()
                self._membership.forget()
                for job in [*self._running(), *(job for lane in self._lanes.values() for job in lane.jobs.values())]:
                    job.drop()
                while self._serving:
                    await asyncio.wait(self._serving)
            for error in self._failures:
                raise error

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all partitions up; what runs goes on for `for_s` at most."""
        await self._membership.release(for_s)

    async def finish(self, timeout_s: float) -> int:
        """Let the calls end that run; returns how many were abandoned."""
        try:
            async with asyncio.timeout(timeout_s):
                while steps := {step for job in self._running() if (step := job.next_step) is not None}:
                    await asyncio.wait(steps)
        except TimeoutError:
            running = counted(self.running, "call was", "calls were")
            log.warning("%s still running after %g s", running, timeout_s)
        await self._bench.appender.flush(max(1.0, timeout_s / 10))
        return self.running

    def end(self) -> None:
        self._over.set()

    def _running(self) -> list[Job]:
        return [job for jobs in self._executing.values() for job in jobs.values()]

    # --- listener ----------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        log.info("assigned %s of queue %s", counted(len(places), "partition"), self._bench.queue)
        self._membership.assigned(places)

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        await self._membership.revoked(lost)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        lane = self._lanes.get(place)
        if lane is None or self._membership.stopping or self._over.is_set():
            return
        take, now = lane.progress.take, self._bench.now()
        for record in records:
            taken = take(record.offset)
            if taken != "known":
                self._take_in(place, lane, record, now, was_begun=taken == "begun")
        self._pace(place, lane)

    def position(self, place: Place, offset: int) -> None:
        """Nothing to do: what was delivered has been taken in."""

    def known(self, place: Place) -> int:
        """Nothing that was not delivered: we write to none of the topics that we read."""
        return 0

    @property
    def is_answering(self) -> bool:
        return False

    def _committed(self) -> None:
        self._pace_all()
        for place, lane in self._lanes.items():
            if lane.stands:
                self._shares.may_start(place.partition)

    def _pace_all(self) -> None:
        for place, lane in self._lanes.items():
            self._pace(place, lane)

    def _pace(self, place: Place, lane: Lane) -> None:
        """Pause a partition that has more calls than there is room for; go on when there is room again."""
        partitions = len(self._lanes)
        if lane.paused_at is None and (lane.full or self._intake.full(place, partitions)):
            lane.paused_at = self._bench.now()
            self._membership.subscription.pause(place)
        elif lane.paused_at is not None and lane.has_room and self._intake.has_room(place, partitions):
            lane.paused_at = None
            self._membership.subscription.resume(place)

    # --- taking over and giving up ----------------------------------------------------------------------------------

    async def take_over(self, places: frozenset[Place]) -> None:
        """Every assignment reads the commit again. What runs here goes on."""
        subscription, ours = self._membership.subscription, sorted(places)
        if self._shares.in_use:
            self._shares.spread_over(await subscription.partitions(self._bench.namespace.calls(self._bench.queue)))
        begins, committed = await subscription.begins(ours), await subscription.committed(ours)
        ends = await subscription.ends(ours)
        if ours and self._at_most_once:
            first = ours[0]
            await self._commits.find_out_about_metadata(first, committed.get(first), begins[first])
        for place in ours:
            lane = self._lanes[place] = self._new_lane(place, committed.get(place), begins[place], ends[place])
            subscription.seek(place, lane.progress.position)
        self._bench.meters.takeovers.observe(asyncio.get_running_loop().time() - self._membership.assigned_at)

    def _new_lane(self, place: Place, committed: Committed | None, begin: int, end: int) -> Lane:
        position, known = begin, Marks()
        if committed is not None:
            position = max(committed.offset, begin)  # retention may have eaten a call that waits for long
            try:
                known = marks.lying_below(end, marks.read(committed.offset, committed.metadata))
            except WireError as error:
                log.error("%s/%d: %s: calls may be executed again", *place, error, extra=place._asdict())
            if committed.offset > end:
                what = "%s/%d ends at %d, and calls up to %d were finished: records are lost"
                log.error(what, *place, end, committed.offset, extra=place._asdict())
                position = end
        progress = Progress(position, known, self._executing.get(place, {}))
        if self._shares.in_use:
            self._shares.gain(place.partition, known.shares)
            self._commits.renew(place)
        return Lane(progress, self._hand_offs.held(place, known.held), partial(self._shares.told, place.partition))

    async def give_up(self, for_s: float) -> None:
        """Hand off what runs; only what the logs know of is marked as finished; commit."""
        self._commits.give_up()
        stay = self._keep_due(min(self._bench.rebalance_s, for_s / 3))
        for lane in list(self._lanes.values()):
            lane.drop_waiting()
            await asyncio.sleep(0)  # there may be thousands, and what runs goes on
        jobs = [job for place, lane in self._lanes.items() for job in self._that_fit(place, lane, for_s)]
        told = set(await self._hand_offs.tell(jobs, for_s))
        for job in told:
            self._finish(job)
        committed = await self._commits.last()
        for job in jobs:
            job.gone = job in told and job.place in committed
        for job in stay:
            if job.stays is not None and not job.stays.done():
                job.stays.set_result(job.gone)
        cancel_serial(jobs, committed)
        self._shares.leave(place.partition for place in committed)
        self._forget()

    def _keep_due(self, for_s: float) -> list[Job]:
        """The next calls in the lines of our limits start here, while the group divides the partitions anew."""
        places = {place.partition: place for place in self._lanes}

        def waiting(partition: int, offset: int) -> Job | None:
            place = places[partition]
            return self._lanes[place].jobs.get(offset) or self._executing.get(place, {}).get(offset)

        def may_stay(partition: int, offset: int, is_in: bool) -> bool:
            job = waiting(partition, offset)
            return job is not None and not (is_in and job.at_most_once)  # its commit may be under way

        stay = [job for where in self._shares.close(for_s, may_stay) if (job := waiting(*where)) is not None]
        for job in stay:
            if job.at_most_once:
                job.stays = asyncio.get_running_loop().create_future()
            self._goes_on(job)
        for job in set(self._running()) - set(stay):
            if job.task is None and job.place in self._lanes:  # it stayed the last time, and may not stay again
                self._executing[job.place].pop(job.offset)
                job.drop()
        return stay

    def _that_fit(self, place: Place, lane: Lane, for_s: float) -> list[Job]:
        """What runs, but for calls whose key or place the commit cannot name: they are cancelled."""
        kept: list[Job] = []
        for job in [job for job in self._executing.get(place, {}).values() if not job.dropped]:
            limit = job.tool.limit if job.tool is not None else None
            told = limit is None or self._shares.may_go_on(limit.name, job.call.tenant, place.partition)
            if told and self._hand_offs.hold(lane, job, for_s):
                kept.append(job)
            else:
                job.drop()
        return kept

    def let_go(self) -> None:
        """Nothing is ours any more, and nothing of it was told."""
        self._shares.leave(())
        self._forget()

    def _forget(self) -> None:
        for lane in self._lanes.values():
            lane.drop_waiting()
        self._lanes.clear()
        self._intake.keep_only(self._running())
        self._commits.forget()

    # --- taking calls in -------------------------------------------------------------------------------------------

    def _take_in(self, place: Place, lane: Lane, record: Record, now: float, was_begun: bool) -> None:
        assert self._tasks is not None, "records come only while running"
        try:
            job = read_job(record, place, self._tools, now)
        except WireError as error:
            why = without_given(str(error))
            log.error("%s is not a call: %s", place_of(record), why, extra=about_record(record, str(error)))
            self._tasks.watch(self._tasks.create_task(self._bury(lane, record, str(error)), name="dead letter"))
            return
        lane.jobs[job.offset] = job
        self._intake.take(job)
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
        if job.task is None and not job.dropped and not self._over.is_set():
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
            self._failures.append(error)
            self._over.set()
            self.on_failure(error)
        finally:
            self._serving.discard(job.task)
            executing = self._executing[job.place].pop(job.offset, None) is not None
            if executing and job.dropped:
                self._read_again(job)
            self._left(lane, job)

    async def _bury(self, lane: Lane, record: Record, reason: str) -> None:
        await self._service.bury(record, "unreadable", reason)
        lane.progress.finish(record.offset)

    def _left(self, lane: Lane, job: Job) -> None:
        lane.forget(job)
        if self._intake.free(job):
            self._pace_all()
        elif lane.paused_at is not None and self._lanes.get(job.place) is lane:
            self._pace(job.place, lane)

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _serve(self, lane: Lane, job: Job) -> None:
        try:
            held = await self._service.enter(job)
            try:
                if (job.stays is not None or job.call.tool in self._careful) and not await self._may_begin(lane, job):
                    return
                if self._service.is_idle(job.call):
                    self._service.skip(job)
                else:
                    self._goes_on(job)
                    await self._service.answer(job)
                self._finish(job)
                if job.held_until:
                    self._hand_offs.free(self._lanes.get(job.place), job)
            finally:
                await self._service.leave(job, held)
        except ShareLost:  # its home's next owner reads it, or is sent it anew
            job.dropped = True
            if job.gone:
                await self._service.send_home(job, job.record.partition)

    def _goes_on(self, job: Job) -> None:
        """From here on it runs, whatever the group does."""
        self._executing[job.place][job.offset] = job
        job.begun = True

    async def _tell_unknown(self, lane: Lane, job: Job) -> None:
        """Somebody before us committed it as begun, and it is not finished: it is not executed again."""
        await self._service.deliver(job, self._service.unknown())
        lane.progress.finish(job.record.offset)

    def _finish(self, job: Job) -> None:
        lane = self._lanes.get(job.place)
        if lane is not None:
            lane.progress.finish(job.record.offset)

    def _read_again(self, job: Job) -> None:
        """It was given up while it ran. If its partition came back meanwhile, nobody else will take it."""
        lane = self._lanes.get(job.place)
        if lane is not None and lane.progress.is_open(job.record.offset) and not self._membership.stopping:
            lane.progress.give_back([job.record.offset])
            self._membership.subscription.seek(job.place, lane.progress.position)

    async def _may_begin(self, lane: Lane, job: Job) -> bool:
        if job.stays is not None:
            return await job.stays
        return await self._commits.may_begin(lane, job, lambda: self._service.is_idle(job.call))

    def _held_until(self, job: Job) -> float:
        lane = self._lanes.get(job.place)
        return float(lane.held.get(job.serial_key or "", 0)) if lane is not None else 0.0
