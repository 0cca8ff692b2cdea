"""Follows one run: the log's events, and what its model says meanwhile, as one sequence.

Responsible for reading: the log at once, and the partition of `agent.stream` that the run speaks to as soon as the log
says that it does. Whichever has something is heard first; `spoken.py` puts it in order. A stream that cannot be read
costs only the news that would have been early, unless whoever listens wants to be told that he may not (`strict`).
It never appends. Used by the client and the commands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.answer import response
from anabranch.agent.state import Call, Run
from anabranch.bodies import read
from anabranch.client_seals import ClientSeals
from anabranch.codec import Record
from anabranch.errors import AnabranchError, Forbidden, StoreError, WireError
from anabranch.events import Answer, CallResult, Event, RunEvent, Spoken, Turn
from anabranch.kafka.seam import Broker, Place, Reader
from anabranch.spoken import Turning
from anabranch.topics import Namespace, partition_of
from anabranch.view import LogView

log = logging.getLogger(__name__)

T = TypeVar("T")
Blocks = list[dict[str, Any]]

POLL_S: Final = 0.5
BEFORE_S: Final = 10.0
"""How long before the broker's time of a turn its first words may be stamped: the stream has its writers' clocks."""
_DEAF: Final = "run %s cannot be heard while it speaks, only when it has spoken: %s"
BATCHES: Final = 16
"""How many batches of the stream wait for whoever listens."""


class Ears:
    """A reader of the log, beside which the stream of a run may be followed. Give it to whoever reads the log."""

    def __init__(self, reader: Reader, broker: Broker, namespace: Namespace, run_id: str, strict: bool = False) -> None:
        self._strict = strict
        self._refused: Forbidden | None = None
        self._log, self._broker, self._topic, self._run_id = reader, broker, namespace.stream, run_id
        self._batches: asyncio.Queue[Sequence[Record]] = asyncio.Queue(BATCHES)
        self._reading: asyncio.Task[Sequence[Record]] | None = None
        self._listening: asyncio.Task[Sequence[Record]] | None = None
        self._following: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, reader: Reader, broker: Broker, namespace: Namespace, run_id: str, strict: bool = False
    ) -> AsyncIterator[Ears]:
        ears = cls(reader, broker, namespace, run_id, strict)
        try:
            yield ears
        finally:
            tasks = {task for task in (ears._reading, ears._listening, ears._following) if task is not None}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def follow(self, run: Run) -> None:
        """Listen to this run, if it asked to be streamed, from what may be the beginning of its turn on."""
        if run.opening.request.stream and run.open and self._following is None:
            following = self._follow(run.opening.request.reply_to, run.owed_at - BEFORE_S)
            self._following = asyncio.create_task(following, name=f"stream of {run.run_id}")

    async def read(self, timeout_s: float) -> tuple[Sequence[Record], list[m.StreamDelta]]:
        """The next records of the log, and what was heard; neither after `timeout_s`. May raise `Forbidden`."""
        if self._refused is not None and self._strict:
            raise self._refused
        if self._following is None:
            return await self._log.read(timeout_s), []
        self._reading = self._reading or asyncio.create_task(self._log.read(timeout_s), name="log")
        self._listening = self._listening or asyncio.create_task(self._batches.get(), name="stream")
        await asyncio.wait({self._reading, self._listening}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        heard: list[m.StreamDelta] = []
        if self._listening.done():
            heard, self._listening = self._deltas(self._listening.result()), None
        records: Sequence[Record] = []
        if self._reading.done():
            reading, self._reading = self._reading, None
            records = reading.result()
        return records, heard

    async def _follow(self, reply_to: m.ReplyTo | None, since: float) -> None:
        try:
            count = await self._broker.partitions(self._topic)
            is_there = reply_to is not None and reply_to.partition < count
            partition = reply_to.partition if reply_to and is_there else partition_of(self._run_id, count)
            async with self._broker.reader([Place(self._topic, partition)], max(0.0, since)) as reader:
                key = self._run_id.encode()
                while True:
                    if records := [record for record in await reader.read(POLL_S) if record.key == key]:
                        await self._batches.put(records)
        except Forbidden as error:
            self._refused = error
            log.log(logging.DEBUG if self._strict else logging.WARNING, _DEAF, self._run_id, error)
        except AnabranchError as error:
            log.warning(_DEAF, self._run_id, error)
        except Exception:  # whatever it was, the log tells all in the end
            log.exception(_DEAF, self._run_id, "a defect")

    def _deltas(self, records: Sequence[Record]) -> list[m.StreamDelta]:
        deltas: list[m.StreamDelta] = []
        for record in records:
            try:
                deltas.append(read(m.StreamDelta, record.value))
            except WireError as error:  # it counts as lost, which its number shows
                log.debug("a record of %s cannot be read: %s", self._topic, error)
        return deltas


class Following:
    """What happens to one run: its log folded by `view`, and what is heard meanwhile, opened with `seals`."""

    def __init__(self, view: LogView, ears: Ears, seals: ClientSeals) -> None:
        self.view, self.spoken = view, Turning()
        self._ears, self._seals, self._meaning = ears, seals, Meaning()
        self._tenant: str | None = None
        self._is_sealed = False

    def join(self, run: Run) -> None:
        """Go on from here with a run whose log has been read so far."""
        self.spoken.join(run)
        self._ears.follow(run)

    async def read(self, timeout_s: float) -> AsyncIterator[Event]:
        """What is next, or nothing after `timeout_s`; each event shows the run as of then."""
        records, heard = await self._ears.read(timeout_s)
        for sealed in heard:
            if (delta := await self._opened(self._seals.delta(sealed, self._tenant), "what it says")) is not None:
                for piece in self.spoken.delta(delta):
                    yield piece
        for record in records:
            for seen in self.view.take([record]):
                if seen.run is not None:
                    self._tenant = seen.run.opening.request.tenant
                opened = await self._blocks(seen.event)
                before, after = self._news(seen, opened)
                for event in (*before, self._meaning.of(seen, opened), *after):
                    yield event

    def _news(self, seen: RunEvent, opened: Blocks | None) -> tuple[list[Spoken], list[Spoken]]:
        if seen.run is None or not seen.run.opening.request.stream:
            return [], []
        self._ears.follow(seen.run)
        return self.spoken.log(seen, opened)

    async def _blocks(self, event: e.Event) -> Blocks | None:
        """Those of a sealed reply."""
        if not isinstance(event, e.ModelReplied):
            return None
        return await self._opened(self._seals.blocks(event.body, self._tenant, event.run_id), "a reply")

    async def _opened(self, opening: Awaitable[T], what: str) -> T | None:
        """What cannot be opened counts as lost; why is said once."""
        try:
            return await opening
        except StoreError as error:
            log.log(logging.DEBUG if self._is_sealed else logging.WARNING, "%s stays sealed: %s", what, error)
            self._is_sealed = True
            return None


# --- what an event of the log means ---------------------------------------------------------------------------------


class Meaning:
    """Finds out what each event of a run's log means: `Turn`, `CallResult`, `Answer`, or what its type says."""

    def __init__(self) -> None:
        self._life: str | None = None
        self._turns, self._results, self._over = 0, 0, False

    def of(self, event: RunEvent, opened: Blocks | None = None) -> RunEvent:
        run, said, base = event.run, event.event, (event.type, event.at, event.offset, event.event, event.run)
        if run is None:
            if isinstance(said, e.RequestNoted) and said.code == "rejected":
                return Answer(*base, m.RunResponse(said.run_id, None, None, "failed", error=said.error))
            return event
        turns, results, over = len(run.turns), _results(run), not run.open
        is_new = run.life != self._life
        before = (0, 0, False) if is_new else (self._turns, self._results, self._over)
        self._life, self._turns, self._results, self._over = run.life, turns, results, over
        if over and not before[2]:
            return Answer(*base, response(run))
        if isinstance(said, e.ModelReplied) and turns > before[0]:
            return Turn(*base, said.turn, said.usage, said.body, said.plan, opened)
        if isinstance(said, e.ToolReturned | e.CallExpired | e.CallLost) and results > before[1]:
            return _of_call(base, run, said.call_id) or event
        return event


def _results(run: Run) -> int:
    return sum(call.result is not None for turn in run.turns for call in turn.calls.values())


def _of_call(base: tuple[str, float, int, e.Event, Run | None], run: Run, call_id: str) -> CallResult | None:
    turn = run.turns[-1]
    call: Call | None = turn.calls.get(call_id)
    if call is None or call.result is None:
        return None
    planned, result = call.planned, call.result
    return CallResult(*base, turn.number, call_id, planned.tool_use_id, planned.tool, result.outcome, result)
