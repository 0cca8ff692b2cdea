"""The tool role: a member of the group `tools.<queue>` that executes the calls of its partitions.

Calls of one partition run concurrently and finish out of order; a commit says which are finished, and which
at-most-once calls may have begun. When partitions are taken away, what runs goes on: it is handed off in the
logs of its runs, and marked as finished. A call that cannot be read, is unknown or is too late costs only
itself. `calls.py` has the calls that were taken in, `commits.py` commits, `handing_off.py` tells of what goes on;
`kafka/membership.py` says when to take over and when to give up, `runtime.py` when to start and when to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from anabranch.codec import Record
from anabranch.errors import WireError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Committed, Place, Subscription
from anabranch.tasks import Group
from anabranch.tools import marks
from anabranch.tools.calls import Calls
from anabranch.tools.commits import Commits
from anabranch.tools.handing_off import HandOffs
from anabranch.tools.lane import Lane
from anabranch.tools.marks import Marks
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Bench, Job, Service
from anabranch.tools.shares import Shares
from anabranch.wording import counted

log = logging.getLogger(__name__)

SATED: Final = 500
"""So many calls are enough to do for a while; each that is taken in costs time that those before it may need."""


class ToolWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    ahead_bytes: Final = 256 * 1024  # a few hundred calls: after a rebalance all workers read anew at once

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
        self._membership = Membership(self, bench.settings.hand_off_s, bench.meters)
        self._lanes: dict[Place, Lane] = {}
        self._commits = Commits(bench, self._membership, self._lanes, commit_s, self._committed)
        self._hand_offs = HandOffs(bench, lambda job: self._calls.give_up(job))
        self._calls = Calls(
            bench, self._tools, self._lanes, self._membership, self._service, self._commits, self._hand_offs
        )
        self.on_failure: Callable[[BaseException], None] = lambda error: None

    def attach(self, subscription: Subscription) -> None:
        self._membership.attach(subscription)

    @property
    def running(self) -> int:
        """Calls that execute now."""
        return self._calls.count

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
        meters.taken_bytes.set(self._calls.intake.used)
        meters.taken_bytes_max.set(bench.settings.max_taken_bytes)
        self._shares.sample()

    async def run(self) -> None:
        """Execute calls until `end`."""
        async with Group(lambda error: self.on_failure(error)) as tasks:
            self._calls.enter(tasks, lambda error: self.on_failure(error))
            committing = tasks.watch(tasks.create_task(self._commits.run(), name="commits"))
            self._membership.enter(tasks)
            try:
                await self._calls.over.wait()
            finally:
                committing.cancel()
                self._membership.forget()
                await self._calls.drop_all()
            for error in self._calls.failures:
                raise error

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all partitions up; what runs goes on for `for_s` at most."""
        await self._membership.release(for_s)

    async def finish(self, timeout_s: float) -> int:
        """Let the calls end that run; returns how many were abandoned."""
        try:
            async with asyncio.timeout(timeout_s):
                while steps := {step for job in self._calls.running() if (step := job.next_step) is not None}:
                    await asyncio.wait(steps)
        except TimeoutError:
            running = counted(self.running, "call was", "calls were")
            log.warning("%s still running after %g s", running, timeout_s)
            self._hand_offs.abandon(self._calls.running())
        await self._bench.appender.flush(max(1.0, timeout_s / 10))
        return self.running

    def end(self) -> None:
        self._calls.over.set()

    # --- listener ----------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        log.info("assigned %s of queue %s", counted(len(places), "partition"), self._bench.queue)
        self._membership.assigned(places)

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        await self._membership.revoked(lost)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        lane = self._lanes.get(place)
        if lane is None or self._membership.stopping or self._calls.over.is_set():
            return
        take, now = lane.progress.take, self._bench.now()
        for record in records:
            taken = take(record.offset)
            if taken != "known":
                self._calls.take_in(place, lane, record, now, was_begun=taken == "begun")
        self._calls.pace(place, lane)

    def position(self, place: Place, offset: int) -> None:
        """Nothing to do: what was delivered has been taken in."""

    def known(self, place: Place) -> int:
        """Nothing that was not delivered: we write to none of the topics that we read."""
        return 0

    @property
    def is_answering(self) -> bool:
        return False

    @property
    def is_sated(self) -> bool:
        return self._calls.intake.count >= SATED

    def _committed(self) -> None:
        self._calls.pace_all()
        for place, lane in self._lanes.items():
            if lane.stands:
                self._shares.may_start(place.partition)

    # --- taking over and giving up ----------------------------------------------------------------------------------

    async def take_over(self, places: frozenset[Place]) -> None:
        """Every assignment reads the commit again. What runs here goes on."""
        subscription, ours, asked = self._membership.subscription, sorted(places), set(places)
        if self._shares.in_use:
            topic = self._bench.namespace.calls(self._bench.queue)
            count = await subscription.partitions(topic)
            self._shares.spread_over(count, self._bench.rebalance_s)
            asked.update(Place(topic, at) for at in range(count))
        begins, committed = await subscription.begins(ours), await subscription.committed(asked)
        ends = await subscription.ends(ours)
        if self._shares.in_use:
            self._shares.begin({place.partition: marks.shares_in(at.metadata) for place, at in committed.items()})
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
        self._calls.disown(place, end)
        progress = Progress(position, known, self._calls.running_of(place))
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
        told = [job for job in await self._hand_offs.tell(jobs, for_s) if not job.dropped]  # else it is read again
        for job in told:
            self._calls.finish(job)
        committed = await self._commits.last()
        for job in told:
            if job.place in committed:
                self._calls.is_gone(job)
        for job in stay:
            if job.stays is not None and not job.stays.done():
                job.stays.set_result(job.gone)
        self._hand_offs.cancel_untold(jobs, committed)
        self._shares.leave(place.partition for place in committed)
        self._forget()

    def _keep_due(self, for_s: float) -> list[Job]:
        """The next calls in the lines of our limits start here, while the group divides the partitions anew."""
        places = {place.partition: place for place in self._lanes}

        def waiting(partition: int, offset: int) -> Job | None:
            place = places[partition]
            return self._lanes[place].jobs.get(offset) or self._calls.running_of(place).get(offset)

        def may_stay(partition: int, offset: int, is_in: bool) -> bool:
            job = waiting(partition, offset)
            return job is not None and not (is_in and self._calls.is_careful(job))  # its commit may be under way

        stay = [job for where in self._shares.close(for_s, may_stay) if (job := waiting(*where)) is not None]
        for job in stay:
            if self._calls.is_careful(job):
                job.stays = asyncio.get_running_loop().create_future()
            self._calls.goes_on(job)
        for job in set(self._calls.running()) - set(stay):
            if job.task is None and job.place in self._lanes:  # it stayed the last time, and may not stay again
                self._calls.give_back(job)
        return stay

    def _that_fit(self, place: Place, lane: Lane, for_s: float) -> list[Job]:
        """What runs, but for calls whose key or place the commit cannot name: they are cancelled, or given back."""
        kept: list[Job] = []
        for job in [job for job in self._calls.running_of(place).values() if not job.dropped]:
            limit = job.tool.limit if job.tool is not None else None
            told = limit is None or self._shares.may_go_on(limit.name, job.call.tenant, place.partition)
            if told and self._hand_offs.hold(lane, job, for_s):
                kept.append(job)
            elif job.task is None:
                self._calls.give_back(job)
            else:
                self._hand_offs.cancel([job])
        return kept

    def let_go(self) -> None:
        """Nothing is ours any more, and nothing of it was told."""
        self._shares.leave(())
        self._forget()

    def _forget(self) -> None:
        for lane in self._lanes.values():
            lane.drop_waiting()
        self._lanes.clear()
        self._calls.intake.keep_only(self._calls.running())
        self._commits.forget()

    def _held_until(self, job: Job) -> float:
        lane = self._lanes.get(job.place)
        return float(lane.held.get(job.serial_key or "", 0)) if lane is not None else 0.0
