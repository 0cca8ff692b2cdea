"""Runs one agent over many records: bounded, and stoppable at any time.

Responsible for: how many runs are out at once, what is written when, and stopping in order. What is read and written,
and how it is shown, is given. Must never: hold the input, or lose an answer that has come.
Called by `enrich` and by the demonstration.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from anabranch.cli.enriching.outfile import OutFile, key_of, line_of, new_order
from anabranch.cli.enriching.records import BadLine, Job, Try, again
from anabranch.cli.enriching.tally import Tally
from anabranch.errors import InvalidRequest, ObjectLost, SealError, StoreError, StoreUnavailable, TooLarge
from anabranch.fields import Lane
from anabranch.messages import RunError, RunResponse
from anabranch.tasks import asked_by_signals

T = TypeVar("T")

AHEAD: Final = 4
"""In order: how many times the concurrency may be finished or running ahead of the line that is due."""


class Stop:
    """What the outside may ask: to stop in order (once), and at once (twice)."""

    def __init__(self) -> None:
        self.asked, self.hurry = asyncio.Event(), asyncio.Event()
        self._told: list[Callable[[], None]] = []

    def ask(self) -> None:
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()
        for tell in self._told:
            tell()

    def on_ask(self, tell: Callable[[], None]) -> None:
        """Have `tell` called whenever somebody asks."""
        self._told.append(tell)

    @asynccontextmanager
    async def on_signals(self) -> AsyncIterator[Stop]:
        """SIGINT, SIGTERM and SIGHUP ask, while inside."""
        with asked_by_signals(self.ask):
            yield self


class Submitter(Protocol):
    """What is needed of a `Client`."""

    async def submit(
        self, agent: str, input: str, *, run_id: str, tenant: str | None, deadline: float | str | None, lane: Lane
    ) -> Awaitable[RunResponse]: ...


class Screen(Protocol):
    """Who shows what happens."""

    def say(self, text: str) -> None: ...
    def update(self, tally: Tally) -> None: ...


@dataclass(frozen=True, slots=True)
class Order:
    """How the runs are asked for. `deadline` as in `Client.submit`; `drain_s` bounds what is waited for at a stop."""

    agent: str
    concurrency: int = 200
    ordered: bool = False
    tenant: str | None = None
    deadline: float | str | None = None
    drain_s: float = 30.0
    lane: Lane = "bulk"


class Enrichment:
    """One pass over the input: `await Enrichment(...).run(jobs)`. `abandoned` counts runs that were not waited for."""

    def __init__(self, order: Order, client: Submitter, out: OutFile, tally: Tally, screen: Screen, stop: Stop) -> None:
        self._order, self._client, self._out = order, client, out
        self._tally, self._screen, self._stop = tally, screen, stop
        self._seats = asyncio.Semaphore(order.concurrency)
        self._window = asyncio.Semaphore(order.concurrency * AHEAD)
        self._running: set[asyncio.Task[None]] = set()
        self._lines = _InOrder() if order.ordered else None
        self._keys = new_order()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.abandoned = 0

    async def run(self, jobs: AsyncIterator[Job | BadLine]) -> None:
        """Until the input is at its end, or somebody asks to stop. Raises what ended a run's task."""
        work = asyncio.create_task(self._work(jobs), name="work")
        try:
            await self._until(work, self._stop.asked)
            if self._stop.asked.is_set() and not work.done():
                await _end(work)
                rest = asyncio.create_task(self._all_ended(), name="rest")
                await self._until(rest, self._stop.hurry, self._order.drain_s)
                await _end(rest)
        finally:
            await _end(work)
            await self._abandon()
            self._write_all()
        if self._broken.done():
            self._broken.result()
        if not work.cancelled():
            work.result()
            self._out.settle(self._keys if self._order.ordered else None)

    async def _work(self, jobs: AsyncIterator[Job | BadLine]) -> None:
        await self._feed(jobs)
        await self._all_ended()

    async def _until(self, work: asyncio.Task[None], event: asyncio.Event, timeout_s: float | None = None) -> None:
        """Wait for `work`, but not longer than until `event`, or until the task of a run broke."""
        happening = asyncio.create_task(event.wait(), name="stop")
        waited: list[asyncio.Future[Any]] = [work, happening, self._broken]
        try:
            await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            happening.cancel()

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def _abandon(self) -> None:
        self.abandoned = len(self._running)
        for task in self._running:
            task.cancel()
        await self._all_ended()

    async def _feed(self, jobs: AsyncIterator[Job | BadLine]) -> None:
        async for job in jobs:
            if isinstance(job, BadLine):
                self._tally.bad += 1
                self._screen.say(f"line {job.line}: {job.problem}; skipped")
            else:
                await self._take(job)
            self._screen.update(self._tally)

    async def _take(self, job: Job) -> None:
        key = key_of(job.run_id)
        if self._lines is not None:
            self._keys.append(key)
        if key in self._out.standing.completed:
            self._tally.there += 1
            return
        if self._lines is not None:
            await self._window.acquire()
            self._lines.expect(job.line)
        await self._seats.acquire()
        task = asyncio.create_task(self._one(job, self._out.standing.tries.get(key, 0) + 1), name=job.run_id)
        self._running.add(task)
        task.add_done_callback(self._ended)
        self._tally.running += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._seats.release()
        self._tally.running -= 1
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)
        self._screen.update(self._tally)

    async def _one(self, job: Job, number: int) -> None:
        found = Try(job.run_id, "", number)
        response = await self._answer(job, again(job.run_id, number))
        self._tally.add(response)
        line = line_of(job.data, response)
        if self._lines is None:
            self._out.write(line, found, response.status)
        else:
            self._lines.put(job.line, (line, found, response.status))
            self._write_due()

    async def _answer(self, job: Job, run_id: str) -> RunResponse:
        order = self._order
        try:
            run = await self._client.submit(
                order.agent, job.prompt, run_id=run_id, tenant=order.tenant, deadline=order.deadline, lane=order.lane
            )
        except (StoreUnavailable, SealError):
            raise  # so it would be for all
        except (InvalidRequest, TooLarge, StoreError) as error:
            return RunResponse(run_id, order.agent, None, "failed", error=RunError("invalid_request", str(error)))
        try:
            return await run
        except ObjectLost as error:
            return RunResponse(run_id, order.agent, None, "failed", error=RunError("internal", str(error)))

    def _write_due(self) -> None:
        assert self._lines is not None
        for entry in self._lines.due():
            self._out.write(*entry)
            self._window.release()

    def _write_all(self) -> None:
        """At the end of a stop in order, what has come is written although something before it has not."""
        if self._lines is not None:
            for entry in self._lines.rest():
                self._out.write(*entry)


_Entry = tuple[bytes, Try, str]


class _InOrder:
    """Holds back lines until those before them are there. Numbers are those of the input's lines."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry | None] = {}

    def expect(self, number: int) -> None:
        self._entries[number] = None

    def put(self, number: int, entry: _Entry) -> None:
        self._entries[number] = entry

    def due(self) -> Iterator[_Entry]:
        while self._entries:
            first = next(iter(self._entries))
            entry = self._entries[first]
            if entry is None:
                return
            del self._entries[first]
            yield entry

    def rest(self) -> Iterator[_Entry]:
        entries, self._entries = self._entries, {}
        return (entry for entry in entries.values() if entry is not None)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it, and wait until it is over; whoever wants its error looks at it."""
    task.cancel()
    await asyncio.wait([task])


# --- input that may make us wait ------------------------------------------------------------------------------------


async def at_hand(items: Iterator[T]) -> AsyncIterator[T]:
    """Items that come at once, such as those of a file."""
    for item in items:
        yield item


async def waited_for(items: Iterator[T]) -> AsyncIterator[T]:
    """Items that may take their time, such as those of a pipe: read by a thread that nobody need wait for."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[T] | BaseException | None](64)

    def put(item: tuple[T] | BaseException | None) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

    def read() -> None:
        with suppress(RuntimeError, asyncio.CancelledError):  # the loop is over, and nobody wants more
            try:
                for item in items:
                    put((item,))
            except Exception as error:  # noqa: BLE001 (raised where the items are read)
                put(error)
            else:
                put(None)

    threading.Thread(target=read, name="input", daemon=True).start()
    while (entry := await queue.get()) is not None:
        if isinstance(entry, BaseException):
            raise entry
        yield entry[0]
