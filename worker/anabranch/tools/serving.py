"""One call on its way through a tool worker: lane, limiter, execution, result.

It waits for whatever the call has to wait for, has it executed, and appends what it came to. Which calls there
are, and which of them count as finished, `calls.py` knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

from anabranch.about import Fields, about_record, place_of, traced
from anabranch.app import App, Tool
from anabranch.bodies import dump, read
from anabranch.codec import Outgoing, Record, cloud_event
from anabranch.config import ToolSettings
from anabranch.deadletters import dead_letter
from anabranch.errors import AnabranchError, Forbidden, StoreError, TooLarge, TopicsError, WireError
from anabranch.homes import home_of, in_turn
from anabranch.in_hand import InHand
from anabranch.kafka.seam import Appender, Place
from anabranch.log_events import OUTCOME_UNKNOWN, ResultOutcome, ToolResult
from anabranch.messages import ToolCall
from anabranch.meters import OTHER
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.serially import Serially
from anabranch.spans import HEADER as TRACE
from anabranch.spans import valid
from anabranch.store import NO_STORE, Store
from anabranch.tools import large
from anabranch.tools.executor import Execution, Executor
from anabranch.tools.failures import take_back
from anabranch.tools.meters import ToolMeters
from anabranch.tools.shares import Shares
from anabranch.tools.slots import Slots, Whose
from anabranch.tools.strays import Strays
from anabranch.tools.traces import ToolTraces
from anabranch.tools.turns import Paced
from anabranch.topics import BODY_BYTES, Namespace
from anabranch.values import frozen

log = logging.getLogger(__name__)

REMEMBERED: Final = 50_000
SPARE_S: Final = 30.0


@frozen()
class Bench:
    """What a tool worker works with. `namespace` and `worker_id` name it to others.

    `partitions` is how many the queue has, and a rebalance of its group takes `rebalance_s` at most. `lenient` runs
    at-most-once tools even where the broker cannot keep that promise.
    """

    namespace: Namespace
    worker_id: str
    app: App
    queue: str
    appender: Appender
    executor: Executor
    settings: ToolSettings
    now: Callable[[], float]
    partitions: int
    rebalance_s: float = 5.0
    lenient: bool = False
    store: Store = NO_STORE
    sealing: Sealing = NO_SEALING
    in_hand: InHand = field(default_factory=InHand)
    meters: ToolMeters = field(default_factory=ToolMeters)
    traces: ToolTraces | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A call that was taken in. `begun` once it executes: from then on it goes on, whatever the group does. While
    it is `behind_its_key`, it waits for no place of this worker, but for the calls before it that it must not overtake.
    """

    record: Record
    place: Place  # the partition that it was read from; none that there is, if that is gone
    offset: int
    call: ToolCall
    life: str
    arrived_at: float
    tool: Tool | None
    started: bool = False  # its task
    begun: bool = False
    behind_its_key: bool = False
    dropped: bool = False
    held_until: int = 0  # what was told to the next owner of its serial key, in epoch seconds
    ends: asyncio.TimerHandle | None = None  # once it was handed off: the last one says for how long
    task: asyncio.Task[None] | None = None
    gate: Paced | None = None
    gone: bool = False  # handed off, and a commit says so: nobody reads it again
    stays: asyncio.Future[bool] | None = None  # of one that starts here after a revoke: whether the commit says so
    trace: str | None = None  # the `traceparent` that its result gets: what it came with, or one of ours below that

    @property
    def whose(self) -> Whose:
        return Whose(self.call.tenant, self.call.run_id, self.call.lane or "interactive")

    @property
    def since(self) -> float:
        """When it was published, in epoch seconds, or came here, if nobody has said."""
        return self.record.timestamp / 1000 if self.record.timestamp > 0 else self.arrived_at

    @property
    def running(self) -> bool:
        """Whether it executes now, or stays in the line of its limit to do so."""
        return self.begun and (self.task is None or not self.task.done())

    @property
    def next_step(self) -> asyncio.Future[Any] | None:
        """What it waits for: the end of its task, or its turn."""
        return self.task if self.task is not None or self.gate is None else self.gate.turn_comes

    @property
    def serial_key(self) -> str | None:
        """The hash by which calls of one serial key know each other."""
        serial = self.tool is not None and self.tool.spec.serial_key is not None
        return (self.record.key or b"").decode("utf-8", "replace") if serial else None

    @property
    def at_most_once(self) -> bool:
        return self.tool is not None and self.tool.spec.delivery == "at_most_once"

    @property
    def time_s(self) -> float:
        """How long it may still run, at most, in seconds; rather too much than too little."""
        return SPARE_S if self.tool is None else self.tool.spec.timeout_s * (1 + self.tool.retries) + SPARE_S

    def about(self) -> Fields:
        """What its task's log records are about."""
        call, record = self.call, self.record
        where: Fields = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        return {"run_id": call.run_id, "call_id": call.call_id, "tool": call.tool, **where, **traced(self.trace)}

    def drop(self) -> None:
        """End it: it will be read again, or its hand-off's time is up."""
        self.dropped = True
        if self.started and self.task is not None:
            self.task.cancel()  # one that has not started yet finds it out
        elif self.gate is not None:
            self.gate.quit()


def read_job(record: Record, place: Place, tools: dict[str, Tool], now: float) -> Job:
    """Raises `WireError` if the record is no call that can be answered."""
    call, headers = read(ToolCall, record.value), dict(record.headers)
    if (call.input is not None) + (call.input_ref is not None) + (call.input_sealed is not None) != 1:
        raise WireError("input: is missing, and so are input_ref and input_sealed, or several are there")
    large.refuse_depth(call.input, record.value)
    life = headers.get("ce_life")
    if life is None:
        raise WireError("header ce_life is missing: a result could not name the run's life")
    job = Job(record, place, record.offset, call, life.decode("utf-8", "replace"), now, tools.get(call.tool))
    if (trace := headers.get(TRACE)) is not None:
        job.trace = valid(trace.decode("utf-8", "replace"))
    return job


class Service:
    """Executes jobs. `hold_until` says until when a serial key is another's, in epoch seconds."""

    def __init__(
        self, bench: Bench, tools: dict[str, Tool], shares: Shares, hold_until: Callable[[Job], float]
    ) -> None:
        self._bench, self._shares, self._hold_until = bench, shares, hold_until
        weight = bench.settings.interactive_weight
        self._slots = Slots(bench.settings.concurrency, weight)
        self._per_tool = {t.name: Slots(t.concurrency, weight) for t in tools.values() if t.concurrency}
        self._copies, self._keys, self._strays = Serially(), Serially(), Strays()  # by the call's id; by its serial key
        self._seen: OrderedDict[str, int] = OrderedDict()  # call id -> the dispatch that was answered
        self.owner: asyncio.Task[object] | None = None  # who runs the jobs: when it is cancelled, they are

    @property
    def slots(self) -> Slots:
        """The places that all tools of this worker share."""
        return self._slots

    def left_s(self, call: ToolCall) -> float:
        """For how long it is still wanted: until its deadline, or not at all if this worker has answered it already."""
        return 0.0 if self._seen.get(call.call_id, -1) >= call.dispatch else call.deadline - self._bench.now()

    def is_idle(self, call: ToolCall) -> bool:
        return self.left_s(call) <= 0

    async def enter(self, job: Job) -> AsyncExitStack | None:
        """Wait for everything that this call has to wait for, and hold it until `leave` is told what this says."""
        call_id = job.call.call_id
        if not self._copies.take(call_id):
            if job.gate is not None:
                job.gate.quit()  # a copy waits behind it, and holds no turn meanwhile
            await self._copies.acquire(call_id)
        try:
            if job.tool is None or self._is_free(job.tool):
                if not self._slots.take():
                    await self._slots.acquire(job.whose)
                return None
            stack = AsyncExitStack()
            if self._home_of(job) is None:
                await stack.enter_async_context(self._queued(job, job.tool))
            else:
                await self._strays.comes(job.call)
            return stack
        except BaseException:
            self._copies.release(call_id)
            raise

    async def leave(self, job: Job, held: AsyncExitStack | None) -> None:
        try:
            if held is None:
                self._slots.release()
            else:
                await held.aclose()
        finally:
            self._copies.release(job.call.call_id)

    def _is_free(self, tool: Tool) -> bool:
        """Whether its calls wait for nothing but a place: most do, and for them no context is made."""
        return tool.spec.serial_key is None and tool.limit is None and tool.name not in self._per_tool

    @asynccontextmanager
    async def _queued(self, job: Job, tool: Tool) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if (key := job.serial_key) is not None:
                job.behind_its_key = True
                await stack.enter_async_context(self._keys.turn(key))
                while (left := self._hold_until(job) - self._bench.now()) > 0:  # noqa: ASYNC110 - for time itself
                    await asyncio.sleep(left)
                job.behind_its_key = False
            if tool.name in self._per_tool:
                await stack.enter_async_context(self._per_tool[tool.name].slot(job.whose))
            if tool.limit is None:
                await stack.enter_async_context(self._slots.slot(job.whose))
            elif job.gate is not None or not self.is_idle(job.call):
                job.gate = job.gate or self._gate(job, tool)
                stack.push_async_callback(job.gate.leave)
                await job.gate.enter()
            yield

    def _gate(self, job: Job, tool: Tool) -> Paced:
        return Paced(job, tool, self._shares, self._slots, lambda: self.left_s(job.call))

    def join(self, job: Job, then: Callable[[], None]) -> bool:
        """Let a call that waits for nothing but its limit stand in line without a task: there may be thousands.

        `then` is called when its turn has come. False: it has to wait for more. Raises `ShareLost`.
        """
        tool, home = job.tool, self._home_of(job)
        if tool is None or home is not None or tool.spec.serial_key is not None or tool.name in self._per_tool:
            return False
        job.gate = self._gate(job, tool)
        job.gate.join(then)
        return True

    def _home_of(self, job: Job) -> int | None:
        """Where the call belongs, if its limit has no home where it lies."""
        if job.tool is None or job.tool.limit is None:
            return None
        among = self._shares.homes(job.tool.limit.name, job.call.tenant)
        if job.record.partition in among:
            return None
        return home_of(job.serial_key, among) if job.serial_key is not None else in_turn(job.offset, among)

    async def answer(self, job: Job) -> None:
        """Execute the call and append its result; one that has missed its home is published again to it."""
        if (home := self._home_of(job)) is not None:
            return await self.send_home(job, home)
        traces = self._bench.traces
        execution = await (self.execute(job) if traces is None else self._traced(traces, job))
        self._measure(job, execution)
        job.begun = True  # whatever its last try came to
        return await self.deliver(job, execution)

    def skip(self, job: Job) -> None:
        """It is finished without having been executed: nobody waits for it, or it was answered here before."""
        self._count(job, "skipped")
        if self._bench.traces is not None:
            self._bench.traces.skipped(job, self._bench.now())

    def _count(self, job: Job, outcome: str) -> None:
        self._bench.meters.calls.count(job.call.tool if job.tool is not None else OTHER, outcome)

    def _measure(self, job: Job, execution: Execution) -> None:
        """A call that never began has waited, too, but for nothing that is worth a place in the figures."""
        meters = self._bench.meters
        if job.tool is not None and execution.began_at is not None:
            meters.wait.observe(execution.began_at - job.since)
            meters.duration.observe(execution.ran_s, job.call.tool)
            if execution.tries > 1:
                meters.retries.add(execution.tries - 1, job.call.tool)

    async def send_home(self, job: Job, home: int) -> None:
        """As it is, and one of at most once a single time: whoever owns the home goes on with it."""
        record = job.record
        sent = Outgoing(record.topic, record.key, record.value, tuple(record.headers), home)
        try:
            await self._bench.appender.append(sent, once=job.at_most_once)
        except AnabranchError as error:
            log.error("call %s cannot be sent to a home of its limit: %s", job.call.call_id, error)
            text = f"{job.call.tool[:128]} was not run: its call could not be sent where its limit is kept: {error}"
            await self.deliver(job, self.unknown() if job.at_most_once else self._without_tool("error", text))

    async def _traced(self, traces: ToolTraces, job: Job) -> Execution:
        if (above := traces.begins(job)) is None:
            return await self.execute(job)
        with traces.inside(job):
            execution = await self.execute(job)
        traces.executed(job, above, execution)
        return execution

    async def execute(self, job: Job) -> Execution:
        call, tool = job.call, job.tool
        if tool is None:
            text = f"there is no tool {call.tool[:128]!r} on the workers of queue {self._bench.queue!r}"
            return self._without_tool("error", text)
        try:
            arguments = await large.input_of(self._bench.store, call, self._bench.now(), self._bench.sealing)
        except (StoreError, WireError) as error:
            return self._without_tool("error", f"{tool.name} was not run: its input cannot be had: {error}")
        try:
            execution = await self._bench.executor.execute(tool, arguments, call, job.gate)
        except asyncio.CancelledError:
            if self._has_to_end(job):
                raise
            execution = self._without_tool("error", f"{tool.name} failed: it cancelled itself")
        if job.task is not None and job.task.cancelling() and not self._has_to_end(job):
            await take_back(job.task)
        return execution

    def _has_to_end(self, job: Job) -> bool:
        return job.dropped or (self.owner is not None and self.owner.cancelling() > 0)

    def unknown(self) -> Execution:
        """Of an at-most-once call that somebody before us may have executed."""
        return self._without_tool("unknown", OUTCOME_UNKNOWN)

    def _without_tool(self, outcome: ResultOutcome, text: str) -> Execution:
        now = self._bench.now()
        return Execution(outcome, text, now, now, 1, error=outcome)

    async def deliver(self, job: Job, execution: Execution) -> None:
        """Append the result. A call whose result can never be delivered, by its own fault, is a dead letter.

        Raises `Forbidden` or `TopicsError` if our own log takes no results: then no worker here is of any use.
        """
        self._count(job, execution.outcome)
        try:
            await self._send(job, execution)
        except AnabranchError as error:
            if isinstance(error, Forbidden | TopicsError) and job.call.reply.topic == self._bench.namespace.log:
                raise
            log.error("the result of call %s cannot be delivered: %s", job.call.call_id, error)
            await self.bury(job.record, "undeliverable", f"its result cannot be delivered: {error}")
        self._seen[job.call.call_id] = job.call.dispatch
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    async def _send(self, job: Job, execution: Execution) -> None:
        bench, call = self._bench, job.call
        try:
            body = await self._written(job, execution)
            await bench.appender.append(self._record(job, execution.outcome, body))
        except (StoreError, TooLarge, WireError) as error:
            text = f"the result of {call.tool[:128]} cannot be sent: {error}"
            shorter = replace(execution, outcome="error", content=text)  # of nothing that has to be sealed
            await bench.appender.append(self._record(job, "error", dump(self._result(shorter))))

    async def _written(self, job: Job, execution: Execution) -> bytes:
        """The body. Those that no record takes are written a few at a time: all would take long, and much memory."""
        bench, size = self._bench, large.size_of(execution.content)
        async with bench.in_hand.hold(size) if size > BODY_BYTES else nullcontext():
            return await large.body_of(bench.store, self._result(execution), job.call, bench.now(), bench.sealing)

    async def bury(self, record: Record, kind: str, reason: str) -> None:
        """Keep a record as a dead letter; returns when the broker has it, or never will."""
        self._bench.meters.dead_letters.count(kind)
        try:
            await self._bench.appender.append(dead_letter(self._bench.namespace, record, reason))
        except AnabranchError as error:
            log.error("%s is not kept: %s", place_of(record), error, extra=about_record(record))

    def _result(self, execution: Execution) -> ToolResult:
        its, by = execution, self._bench.worker_id
        return ToolResult(its.content, its.started_at, its.finished_at, its.tries, by)

    def _record(self, job: Job, outcome: ResultOutcome, body: bytes) -> Outgoing:
        call = job.call
        pairs = [("ce_runid", call.run_id), ("ce_life", job.life), ("ce_callid", call.call_id), ("ce_outcome", outcome)]
        if job.trace is not None:
            pairs.append((TRACE, job.trace))
        source, reply = self._bench.worker_id, call.reply
        return cloud_event(reply.topic, "tool.returned", source, call.run_id, body, pairs, reply.partition)
