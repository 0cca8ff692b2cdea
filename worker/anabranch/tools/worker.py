"""The tool role: a member of the group `tools.<queue>` that executes the calls of its partitions.

consume → lane → limiter → timeout → execute → append the result → mark the offset. Calls of one partition
run concurrently and finish out of order; only those with a serial key wait for each other. A call that
cannot be read, is unknown or is too late costs only itself. `runtime.py` starts and drains it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from anabranch.app import App, Call, Tool
from anabranch.bodies import depth_of, dump, read
from anabranch.codec import Outgoing, Record, cloud_event, header
from anabranch.config import ToolSettings
from anabranch.deadletters import dead_letter
from anabranch.errors import AnabranchError, TooLarge, WireError
from anabranch.kafka.seam import Appender, Committed, Place, Subscription
from anabranch.limits import Pacer, Serially
from anabranch.messages import ToolCall, ToolResult
from anabranch.tools.executor import Execution, Executor
from anabranch.tools.progress import Progress
from anabranch.topics import BODY_BYTES, Namespace

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
WAITING: Final = 4000
"""How many calls of one partition are taken in; beyond it the partition pauses."""
REMEMBERED: Final = 50_000
MAX_INPUT_DEPTH: Final = 150


@dataclass(frozen=True, slots=True)
class Bench:
    """What a tool worker works with. `namespace` and `worker_id` name it to others."""

    namespace: Namespace
    worker_id: str
    app: App
    queue: str
    appender: Appender
    executor: Executor
    settings: ToolSettings
    now: Callable[[], float]


@dataclass(slots=True, eq=False)
class _Job:
    """A call that was taken in. `begun` once it runs: from then on it goes on, whatever the group does."""

    record: Record
    call: ToolCall
    life: str
    arrived_at: float
    begun: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Lane:
    """One partition: how far it is done, and what was taken in."""

    progress: Progress
    jobs: set[_Job] = field(default_factory=set)
    paused: bool = False


class ToolWorker:
    """See the module; also the `Listener` of its subscription, which `attach` names."""

    def __init__(self, bench: Bench, commit_s: float) -> None:
        self._bench, self._commit_s = bench, commit_s
        self._tools = {tool.name: tool for tool in bench.app.tools_of(bench.queue)}
        self._subscription: Subscription | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._assigned: frozenset[Place] = frozenset()
        self._lanes: dict[Place, _Lane] = {}
        self._committed: dict[Place, Committed] = {}
        self._slots = asyncio.Semaphore(bench.settings.concurrency)
        self._per_tool = {t.name: asyncio.Semaphore(t.concurrency) for t in self._tools.values() if t.concurrency}
        limits = {tool.limit.name: tool.limit for tool in self._tools.values() if tool.limit is not None}
        self._pacers = {name: Pacer(limit.per_second, limit.concurrency) for name, limit in limits.items()}
        self._serially = Serially()
        self._executing: dict[str, _Job] = {}
        self._seen: OrderedDict[str, int] = OrderedDict()  # call id -> the dispatch that was answered
        self._stopping = False

    def attach(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def subscription(self) -> Subscription:
        assert self._subscription is not None, "attach() comes first"
        return self._subscription

    @property
    def running(self) -> int:
        """Calls that execute now."""
        return len(self._executing)

    @property
    def oldest_waiting_s(self) -> float:
        """How long the oldest call that was taken in and does not run yet has waited here."""
        waiting = [job.arrived_at for lane in self._lanes.values() for job in lane.jobs if not job.begun]
        return max(0.0, self._bench.now() - min(waiting)) if waiting else 0.0

    async def run(self) -> None:
        """Execute calls until the subscription stops."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            committing = tasks.create_task(self._commit_for_ever(), name="commits")
            self._start_to_take_over()
            await self.subscription.run()
            committing.cancel()
            if self._taking_over is not None:
                self._taking_over.cancel()
            for lane in self._lanes.values():
                for job in lane.jobs:
                    if job.task is not None:
                        job.task.cancel()

    async def drain(self, timeout_s: float) -> int:
        """Take nothing more, finish what runs; returns how many calls were abandoned."""
        self._stopping = True
        for lane in self._lanes.values():
            self._drop_waiting(lane)
        tasks = {job.task for job in self._executing.values() if job.task is not None}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            if pending:
                log.warning("%d calls were still running after %g s", len(pending), timeout_s)
        await self._bench.appender.flush(max(1.0, timeout_s / 10))
        await self._commit()
        return len(self._executing)

    # --- listener ----------------------------------------------------------------------------------------------

    def assigned(self, places: frozenset[Place]) -> None:
        log.info("assigned %d partitions of queue %s", len(places), self._bench.queue)
        for place in self._lanes.keys() - places:
            del self._lanes[place]
        self._assigned = places
        self._start_to_take_over()

    def _start_to_take_over(self) -> None:
        """The group may assign before `run` has begun."""
        if self._tasks is not None and not self._stopping:
            self._taking_over = self._tasks.create_task(self._take_over(self._assigned), name="take over")

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
        for lane in self._lanes.values():
            self._drop_waiting(lane)
        offsets = {} if lost else self._offsets()
        self._committed.clear()
        if offsets:
            await self.subscription.commit(offsets)

    def records(self, place: Place, records: Sequence[Record]) -> None:
        lane = self._lanes.get(place)
        if lane is None or self._stopping:
            return
        for record in records:
            if lane.progress.take(record.offset):
                self._take_in(lane, record)
        if len(lane.jobs) >= WAITING and not lane.paused:
            lane.paused = True
            self.subscription.pause(place)

    def position(self, place: Place, offset: int) -> None:
        """Nothing to do: what was delivered has been taken in."""

    def _drop_waiting(self, lane: _Lane) -> None:
        """What has not begun will be read again, by whoever gets the partition."""
        for job in list(lane.jobs):
            if not job.begun:
                lane.jobs.discard(job)
                lane.progress.give_back(job.record.offset)
                if job.task is not None:
                    job.task.cancel()

    async def _take_over(self, places: frozenset[Place]) -> None:
        while True:
            try:
                return await self._begin(sorted(places))
            except AnabranchError as error:
                log.warning("cannot take over yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _begin(self, places: Sequence[Place]) -> None:
        begins, committed = await self.subscription.begins(places), await self.subscription.committed(places)
        for place in places:
            lane = self._lanes.get(place)
            if lane is None:
                known = committed.get(place)
                position = max(known.offset, begins[place]) if known is not None else begins[place]
                lane = self._lanes[place] = _Lane(Progress(position))
            lane.paused = False
            self.subscription.seek(place, lane.progress.position)

    # --- taking calls in -------------------------------------------------------------------------------------------

    def _take_in(self, lane: _Lane, record: Record) -> None:
        try:
            call = _read_call(record)
        except WireError as error:
            log.error("%s/%d/%d is not a call: %s", record.topic, record.partition, record.offset, error)
            letter = dead_letter(self._bench.namespace, record, str(error))
            self._bench.appender.append(letter).add_done_callback(lambda _: lane.progress.finish(record.offset))
            return
        job = _Job(record, call, header(record.headers, "ce_life") or "", self._bench.now())
        lane.jobs.add(job)
        assert self._tasks is not None, "records come only while running"
        job.task = self._tasks.create_task(self._serve(lane, job), name=f"call {call.call_id}")
        job.task.add_done_callback(lambda _: self._left(lane, job))

    def _left(self, lane: _Lane, job: _Job) -> None:
        lane.jobs.discard(job)
        if lane.paused and len(lane.jobs) <= WAITING // 2:
            lane.paused = False
            self.subscription.resume(Place(job.record.topic, job.record.partition))

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _serve(self, lane: _Lane, job: _Job) -> None:
        tool = self._tools.get(job.call.tool)
        async with self._lane(job, tool):
            if self._is_idle_work(job.call):
                lane.progress.finish(job.record.offset)
                return
            job.begun = True
            self._executing[job.call.call_id] = job
            try:
                execution = await self._execute(job.call, tool)
                await self._return(job, execution)
                lane.progress.finish(job.record.offset)
            finally:
                self._executing.pop(job.call.call_id, None)

    @asynccontextmanager
    async def _lane(self, job: _Job, tool: Tool | None) -> AsyncIterator[None]:
        """Wait for everything that this call has to wait for."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._serially.turn(f"call {job.call.call_id}"))  # a copy waits behind it
            if tool is not None and tool.spec.serial_key is not None:
                await stack.enter_async_context(self._serially.turn(f"key {(job.record.key or b'').hex()}"))
            if tool is not None and tool.name in self._per_tool:
                await stack.enter_async_context(self._per_tool[tool.name])
            if tool is not None and tool.limit is not None and not self._is_idle_work(job.call):
                await stack.enter_async_context(self._pacers[tool.limit.name].slot())
            await stack.enter_async_context(self._slots)
            yield

    def _is_idle_work(self, call: ToolCall) -> bool:
        """Past its deadline, or answered by this worker already."""
        return self._bench.now() >= call.deadline or self._seen.get(call.call_id, 0) >= call.dispatch

    async def _execute(self, call: ToolCall, tool: Tool | None) -> Execution:
        if tool is None:
            now = self._bench.now()
            text = f"there is no tool {call.tool[:128]!r} on the workers of queue {self._bench.queue!r}"
            return Execution("error", text, now, now, 1)
        told = Call(
            id=call.call_id,
            run_id=call.run_id,
            tool=tool.name,
            dispatch=call.dispatch,
            deadline=call.deadline,
            tenant=call.tenant,
            idempotency_key=call.idempotency_key,
        )
        return await self._bench.executor.execute(tool, call.input, told)

    async def _return(self, job: _Job, execution: Execution) -> None:
        """Append the result. A call whose result can never be delivered, by its own fault, is a dead letter."""
        try:
            await self._send(job, execution)
        except AnabranchError as error:
            log.error("the result of call %s cannot be delivered: %s", job.call.call_id, error)
            await self._bury(job.record, f"its result cannot be delivered: {error}")
        self._seen[job.call.call_id] = job.call.dispatch
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    async def _send(self, job: _Job, execution: Execution) -> None:
        try:
            await self._bench.appender.append(self._result(job, execution))
        except (TooLarge, WireError) as error:
            text = f"the result of {job.call.tool[:128]} cannot be sent: {error}"
            shorter = Execution("error", text, execution.started_at, execution.finished_at, execution.tries)
            await self._bench.appender.append(self._result(job, shorter))

    async def _bury(self, record: Record, reason: str) -> None:
        try:
            await self._bench.appender.append(dead_letter(self._bench.namespace, record, reason))
        except AnabranchError as error:
            log.error("%s/%d/%d is not kept: %s", record.topic, record.partition, record.offset, error)

    def _result(self, job: _Job, execution: Execution) -> Outgoing:
        call, worker = job.call, self._bench.worker_id
        result = ToolResult(execution.content, execution.started_at, execution.finished_at, execution.tries, worker)
        body = dump(result)
        if len(body) > BODY_BYTES:
            raise TooLarge(f"{len(body)} bytes, of {BODY_BYTES} at most: give the tool a lower max_result")
        pairs = [("ce_runid", call.run_id), ("ce_life", job.life), ("ce_callid", call.call_id)]
        pairs.append(("ce_outcome", execution.outcome))
        reply = call.reply
        return cloud_event(reply.topic, "tool.returned", worker, call.run_id, body, pairs, reply.partition)

    # --- commits -----------------------------------------------------------------------------------------------------

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._commit_s)
            await self._commit()

    async def _commit(self) -> None:
        offsets = {place: at for place, at in self._offsets().items() if self._committed.get(place) != at}
        if offsets and await self.subscription.commit(offsets):
            self._committed.update(offsets)

    def _offsets(self) -> dict[Place, Committed]:
        return {place: Committed(lane.progress.low, "") for place, lane in self._lanes.items()}


def _read_call(record: Record) -> ToolCall:
    """Raises `WireError` if the record is no call that can be answered."""
    call = read(ToolCall, record.value)
    if depth_of(call.input, MAX_INPUT_DEPTH) > MAX_INPUT_DEPTH:
        raise WireError(f"input: nests deeper than {MAX_INPUT_DEPTH} levels")
    if header(record.headers, "ce_life") is None:
        raise WireError("header ce_life is missing: a result could not name the run's life")
    return call
