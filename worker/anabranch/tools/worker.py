"""The tool role: a member of the group `tools.<queue>` that executes the calls of its partitions.

Calls of one partition run concurrently and finish out of order; a commit says which are finished, and which
at-most-once calls may have begun. When partitions are taken away, what runs goes on: it is handed off in the
logs of its runs, and marked as finished. A call that cannot be read, is unknown or is too late costs only
itself. `serving.py` executes; `runtime.py` starts and ends the worker.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from anabranch.codec import Record, encode
from anabranch.errors import AnabranchError, ConfigError, WireError
from anabranch.kafka.seam import Acked, Committed, Place, Subscription
from anabranch.messages import CallsHandedOff
from anabranch.tools import marks
from anabranch.tools.marks import Marks
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Bench, Job, Service, read_job

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
SETTLE_S: Final = 8.0
"""How long a revoke waits for the broker: the group waits for the revoke."""
WAITING: Final = 4000
"""How many calls of one partition are taken in; beyond it the partition pauses."""
MARGIN: Final = 0.1
"""The part of a hand-off's time that the giver leaves unused: clocks and networks are not perfect."""
METADATA: Final = 4000
"""Bytes of a commit's metadata that Kafka surely takes."""
_PROBE: Final = marks.write(0, Marks(held=(("probe", 0),)))


@dataclass(slots=True)
class _Lane:
    """One partition: how far it is done, what was taken in, and the serial keys that others go on with."""

    progress: Progress
    held: dict[str, int] = field(default_factory=dict)
    jobs: set[Job] = field(default_factory=set)
    paused: bool = False
    crowded: bool = False

    def commit(self, now: float) -> Committed | None:
        """What may be committed; None if it would be more than Kafka takes."""
        low = self.progress.low
        found = self.progress.marks
        held = tuple((key, until) for key, until in self.held.items() if until > now)
        metadata = marks.write(low, Marks(found.finished, found.begun, held))
        self.crowded = len(metadata) > marks.PAUSE
        return Committed(low, metadata) if len(metadata) <= METADATA else None


class ToolWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    def __init__(self, bench: Bench, commit_s: float) -> None:
        self._bench, self._commit_s = bench, commit_s
        self._tools = {tool.name: tool for tool in bench.app.tools_of(bench.queue)}
        self._service = Service(bench, self._tools, self._held_until)
        self._subscription: Subscription | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._assigned: frozenset[Place] = frozenset()
        self._lanes: dict[Place, _Lane] = {}
        self._executing: dict[Place, dict[int, Job]] = {}
        self._committed: dict[Place, Committed] = {}
        self._confirmations: list[tuple[Place, asyncio.Future[bool]]] = []
        self._commit_now = asyncio.Event()
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
        """Calls that execute now."""
        return sum(len(jobs) for jobs in self._executing.values())

    @property
    def oldest_waiting_s(self) -> float:
        """How long the oldest call that was taken in and does not run yet has waited here."""
        waiting = [job.arrived_at for lane in self._lanes.values() for job in lane.jobs if not job.begun]
        return max(0.0, self._bench.now() - min(waiting)) if waiting else 0.0

    async def run(self) -> None:
        """Execute calls until `end`."""
        self._service.owner = asyncio.current_task()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            committing = tasks.create_task(self._commit_for_ever(), name="commits")
            self._start_to_take_over()
            await self._over.wait()
            committing.cancel()
            if self._taking_over is not None:
                self._taking_over.cancel()
            for job in [*self._running(), *(job for lane in self._lanes.values() for job in lane.jobs)]:
                job.drop()

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all partitions up; what runs goes on for `for_s` at most."""
        self._stopping = True
        await self._give_up(for_s)

    async def finish(self, timeout_s: float) -> int:
        """Let the calls end that run; returns how many were abandoned."""
        if tasks := {job.task for job in self._running() if job.task is not None}:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            if pending:
                log.warning("%d calls were still running after %g s", len(pending), timeout_s)
        await self._bench.appender.flush(max(1.0, timeout_s / 10))
        return self.running

    def end(self) -> None:
        self._over.set()

    def _running(self) -> list[Job]:
        return [job for jobs in self._executing.values() for job in jobs.values()]

    # --- listener ----------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        log.info("assigned %d partitions of queue %s", len(places), self._bench.queue)
        self._assigned = places
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
            self._let_go()
        else:
            await self._give_up(self._bench.settings.hand_off_s)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        lane = self._lanes.get(place)
        if lane is None or self._stopping:
            return
        for record in records:
            taken = lane.progress.take(record.offset)
            if taken != "known":
                self._take_in(lane, record, was_begun=taken == "begun")
        self._pace(place, lane)

    def position(self, place: Place, offset: int) -> None:
        """Nothing to do: what was delivered has been taken in."""

    def _pace(self, place: Place, lane: _Lane) -> None:
        """Pause a partition that has more calls than there is room for; go on when there is room again."""
        if not lane.paused and (lane.crowded or len(lane.jobs) >= WAITING):
            lane.paused = True
            self.subscription.pause(place)
        elif lane.paused and not lane.crowded and len(lane.jobs) <= WAITING // 2:
            lane.paused = False
            self.subscription.resume(place)

    # --- taking over ----------------------------------------------------------------------------------------------

    async def _take_over(self, places: frozenset[Place]) -> None:
        while True:
            try:
                return await self._begin(sorted(places))
            except ConfigError:
                raise
            except AnabranchError as error:
                log.warning("cannot take over yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _begin(self, places: Sequence[Place]) -> None:
        """Every assignment reads the commit again. What runs here goes on."""
        begins, committed = await self.subscription.begins(places), await self.subscription.committed(places)
        if places:
            await self._find_out_about_metadata(places[0], committed.get(places[0]), begins[places[0]])
        for place in places:
            lane = self._lanes[place] = self._new_lane(place, committed.get(place), begins[place])
            self.subscription.seek(place, lane.progress.position)

    def _new_lane(self, place: Place, committed: Committed | None, begin: int) -> _Lane:
        position, known = begin, Marks()
        if committed is not None and committed.offset >= begin:
            position = committed.offset
            try:
                known = marks.read(position, committed.metadata)
            except WireError as error:
                log.error("%s/%d: %s: calls may be executed again", *place, error)
        return _Lane(Progress(position, known, self._executing.get(place, {})), dict(known.held))

    async def _find_out_about_metadata(self, place: Place, committed: Committed | None, begin: int) -> None:
        """At most once needs commits that say which calls have begun."""
        if self._metadata_kept is not None or not any(t.spec.delivery == "at_most_once" for t in self._tools.values()):
            return
        if committed is not None and committed.metadata:
            self._metadata_kept = True
            return
        probe = Committed(committed.offset if committed is not None else begin, _PROBE)
        if not await self.subscription.commit({place: probe}):
            raise AnabranchError("a first commit was not confirmed")
        found = (await self.subscription.committed([place])).get(place)
        self._metadata_kept = found is not None and bool(found.metadata)
        if not self._metadata_kept and not self._bench.lenient:
            raise ConfigError(
                "this broker keeps no commit metadata, so at_most_once cannot be kept: use Apache Kafka for these tools"
            )

    def _let_go(self) -> None:
        """Nothing is ours any more: what has not begun will be read again, by whoever gets the partition."""
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._assigned = frozenset()  # a revoke may come before `attach`, which then has nothing to take over
        for lane in self._lanes.values():
            self._drop_waiting(lane)
        self._lanes.clear()
        self._committed.clear()
        self._resolve(False)

    def _drop_waiting(self, lane: _Lane) -> None:
        for job in [job for job in lane.jobs if not job.begun]:
            lane.jobs.discard(job)
            lane.progress.give_back(job.record.offset)
            job.drop()

    # --- giving up --------------------------------------------------------------------------------------------------

    async def _give_up(self, for_s: float) -> None:
        """Hand off what runs; only what the logs know of is marked as finished; commit."""
        async with self._giving_up:
            await self._give_all_up(for_s)

    async def _give_all_up(self, for_s: float) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._resolve(False)
        for lane in self._lanes.values():
            self._drop_waiting(lane)
        jobs = [job for place, lane in self._lanes.items() for job in self._that_fit(place, lane, for_s)]
        for job in await self._hand_off(jobs, for_s):
            self._finish(job)
        offsets = self._offsets()
        confirmed = bool(offsets) and await self.subscription.commit(offsets)
        if not confirmed:
            for job in [job for job in jobs if job.serial_key is not None]:
                log.warning("call %s is cancelled: it may be redelivered, and its key is serial", job.call.call_id)
                job.drop()
        self._let_go()

    def _that_fit(self, place: Place, lane: _Lane, for_s: float) -> list[Job]:
        """What runs, but for serial calls that the commit cannot name: they are cancelled."""
        kept: list[Job] = []
        for job in self._executing.get(place, {}).values():
            if (key := job.serial_key) is not None:
                until = math.ceil(self._bench.now() + min(for_s, job.time_s))
                lane.held[key] = max(until, lane.held.get(key, 0))
                if lane.commit(self._bench.now()) is None:
                    del lane.held[key]
                    job.drop()
                    continue
            kept.append(job)
        return kept

    async def _hand_off(self, jobs: Iterable[Job], for_s: float) -> list[Job]:
        """Tell the partitions that they reply to; returns those of whom the broker knows."""
        groups: dict[tuple[str, int], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.call.reply.topic, job.call.reply.partition), []).append(job)
        sent: dict[asyncio.Future[Acked], list[Job]] = {}
        for (topic, partition), group in groups.items():
            time_s = min(for_s, max(job.time_s for job in group))
            event = CallsHandedOff(self._bench.worker_id, time_s, tuple(job.call.call_id for job in group))
            sent[self._bench.appender.append(encode(event, topic, partition, self._bench.worker_id))] = group
            for job in group:
                asyncio.get_running_loop().call_later(time_s * (1 - MARGIN), self._time_is_up, job)
        if not sent:
            return []
        done, _ = await asyncio.wait(sent, timeout=SETTLE_S)
        known = [future for future in done if not future.cancelled() and future.exception() is None]
        return [job for future in known for job in sent[future]]

    def _time_is_up(self, job: Job) -> None:
        if job in self._running():
            log.warning("call %s was handed off and takes too long: it is given up", job.call.call_id)
            job.drop()

    # --- taking calls in -------------------------------------------------------------------------------------------

    def _take_in(self, lane: _Lane, record: Record, was_begun: bool) -> None:
        assert self._tasks is not None, "records come only while running"
        try:
            job = read_job(record, self._tools, self._bench.now())
        except WireError as error:
            log.error("%s/%d/%d is not a call: %s", record.topic, record.partition, record.offset, error)
            self._tasks.create_task(self._bury(lane, record, str(error)), name="dead letter")
            return
        lane.jobs.add(job)
        work = self._tell_unknown(lane, job) if was_begun else self._serve(lane, job)
        job.task = self._tasks.create_task(work, name=f"call {job.call.call_id}")
        job.task.add_done_callback(lambda _: self._left(lane, job))

    async def _bury(self, lane: _Lane, record: Record, reason: str) -> None:
        await self._service.bury(record, reason)
        lane.progress.finish(record.offset)

    def _left(self, lane: _Lane, job: Job) -> None:
        lane.jobs.discard(job)
        place = Place(job.record.topic, job.record.partition)
        if lane.paused and self._lanes.get(place) is lane:
            self._pace(place, lane)

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _serve(self, lane: _Lane, job: Job) -> None:
        async with self._service.lane(job):
            if not await self._may_begin(lane, job):
                return
            if self._service.is_idle(job.call):
                self._finish(job)
                return
            place = Place(job.record.topic, job.record.partition)
            self._executing.setdefault(place, {})[job.record.offset] = job
            job.begun = True
            try:
                execution = await self._service.execute(job)
                await self._service.deliver(job, execution)
                self._finish(job)
            finally:
                del self._executing[place][job.record.offset]
                if job.dropped:
                    self._read_again(job)

    async def _tell_unknown(self, lane: _Lane, job: Job) -> None:
        """Somebody before us committed it as begun, and it is not finished: it is not executed again."""
        await self._service.deliver(job, self._service.unknown())
        lane.progress.finish(job.record.offset)

    def _finish(self, job: Job) -> None:
        lane = self._lanes.get(Place(job.record.topic, job.record.partition))
        if lane is not None:
            lane.progress.finish(job.record.offset)

    def _read_again(self, job: Job) -> None:
        """It was given up while it ran. If its partition came back meanwhile, nobody else will take it."""
        place = Place(job.record.topic, job.record.partition)
        lane = self._lanes.get(place)
        if lane is not None and lane.progress.is_open(job.record.offset) and not self._stopping:
            lane.progress.give_back(job.record.offset)
            self.subscription.seek(place, lane.progress.position)

    async def _may_begin(self, lane: _Lane, job: Job) -> bool:
        """Whom the group has expelled learns it from a commit. Others must not find a call of one key, or one that
        they may not repeat, begun after that."""
        if job.at_most_once and self._metadata_kept:
            return await self._is_confirmed(lane, job, lambda: lane.progress.begin(job.record.offset))
        return job.serial_key is None or await self._is_confirmed(lane, job, lambda: None)

    async def _is_confirmed(self, lane: _Lane, job: Job, mark: Callable[[], None]) -> bool:
        """Commit, with what `mark` adds to it; only what is confirmed in this assignment is executed."""
        place = Place(job.record.topic, job.record.partition)
        self._commit_now.set()  # once: if that commit fails, the next one is soon enough
        while self._lanes.get(place) is lane and not self._service.is_idle(job.call):
            mark()
            confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._confirmations.append((place, confirmed))
            if await confirmed:
                return self._lanes.get(place) is lane
        return self._lanes.get(place) is lane

    def _held_until(self, job: Job) -> float:
        lane = self._lanes.get(Place(job.record.topic, job.record.partition))
        return float(lane.held.get(job.serial_key or "", 0)) if lane is not None else 0.0

    # --- commits -----------------------------------------------------------------------------------------------------

    async def _commit_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):  # then it is time for the next one
                async with asyncio.timeout(self._commit_s):
                    await self._commit_now.wait()
            self._commit_now.clear()  # whatever follows: `wait` does not yield to anybody while it is set
            if self._subscription is not None and not self._stopping:
                await self._commit()

    async def _commit(self) -> None:
        waiting, self._confirmations = self._confirmations, []
        told = self._offsets()  # without those whose marks are more than Kafka takes
        asked = {place for place, _ in waiting}
        offsets = {place: at for place, at in told.items() if place in asked or self._committed.get(place) != at}
        confirmed = not offsets or await self.subscription.commit(offsets)
        if confirmed:
            self._committed.update({place: at for place, at in offsets.items() if place in self._lanes})
        for place, future in waiting:
            if not future.done():
                future.set_result(confirmed and place in told)
        for place, lane in self._lanes.items():
            self._pace(place, lane)

    def _resolve(self, confirmed: bool) -> None:
        waiting, self._confirmations = self._confirmations, []
        for _, future in waiting:
            if not future.done():
                future.set_result(confirmed)

    def _offsets(self) -> dict[Place, Committed]:
        now = self._bench.now()
        found = {place: lane.commit(now) for place, lane in self._lanes.items()}
        return {place: at for place, at in found.items() if at is not None}
