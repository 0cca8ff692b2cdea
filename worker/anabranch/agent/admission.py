"""Requests taken up, one by one and in order: what becomes a run, and what does not.

While there is room, the partition's owner appends for each request one event that names the request before
it, so that each counts once. A bad request costs nothing but itself: it is kept as a dead letter, then
noted, and the fold of the note owes its answer. It folds nothing, and starts nothing while the owner is silent.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from anabranch import messages as m
from anabranch.agent.owner import RUN_BYTES, Owner
from anabranch.agent.station import Station
from anabranch.bodies import dump, read_request, sender_of
from anabranch.codec import Record, cloud_event
from anabranch.errors import AnabranchError, InvalidRequest, StoreError
from anabranch.kafka.sent import Sent
from anabranch.specs import AgentSpec
from anabranch.topics import BODY_BYTES, partition_of

log = logging.getLogger(__name__)

BUFFER: Final = 500
"""How many requests are held ready; beyond it the partition pauses."""
AT_ONCE: Final = 20
"""How many are taken up before others have their turn; there may be as many of us as partitions."""
BUFFER_BYTES: Final = 1024 * 1024
"""How many bytes of them: they may be large."""


@dataclass(frozen=True, slots=True)
class _Link:
    """A request that was taken up, and whose event is not read back yet."""

    request_offset: int
    opens: str | None  # the run that it opens
    size: int


class Admission:
    """The requests of one partition. `run` is its task while the owner is live."""

    def __init__(self, owner: Owner, station: Station) -> None:
        self._owner, self._station = owner, station
        self._buffer: deque[Record] = deque()
        self._buffered = 0  # the bytes of `_buffer`
        self._links: deque[_Link] = deque()
        self._opened: Counter[str] = Counter()  # the runs that `_links` open
        self._unread = 0  # the bytes of `_links`
        self._taking: Record | None = None
        self._wake = asyncio.Event()

    @property
    def position(self) -> int:
        """The next request to be taken up: the fold's, or what follows our own unread events."""
        folded = self._owner.state.next_request or 0
        return max(folded, self._links[-1].request_offset + 1) if self._links else folded

    @property
    def waiting_since(self) -> float:
        """Since when the oldest request that is here waits, in epoch seconds; `inf` if none does."""
        first = self._taking or (self._buffer[0] if self._buffer else None)
        return first.timestamp / 1000 if first is not None else math.inf

    @property
    def full(self) -> bool:
        return len(self._buffer) >= BUFFER or self._buffered >= BUFFER_BYTES

    @property
    def hungry(self) -> bool:
        return len(self._buffer) <= BUFFER // 2 and self._buffered <= BUFFER_BYTES // 2

    def feed(self, records: Sequence[Record]) -> None:
        self._buffer.extend(records)
        self._buffered += sum(len(record.value or b"") for record in records)
        self._wake.set()

    def suspend(self) -> None:
        """What is buffered will be read again."""
        self._buffer.clear()
        self._buffered, self._taking = 0, None

    def drop(self) -> None:
        """The partition did not come back: what was taken up is nothing to us any more."""
        self.suspend()
        while self._links:
            self._read_back(self._links.popleft())

    def folded(self) -> None:
        """The fold has moved on: events of ours that it has passed are settled."""
        reached = self._owner.state.next_request or 0
        while self._links and self._links[0].request_offset < reached:
            self._read_back(self._links.popleft())

    def _read_back(self, link: _Link) -> None:
        self._unread -= link.size
        self._station.room.change(-link.size)
        if link.opens is not None and self._opened[link.opens] > 1:
            self._opened[link.opens] -= 1
        elif link.opens is not None:
            del self._opened[link.opens]

    async def run(self) -> None:
        """Take requests up for ever."""
        for taken in count():
            if taken % AT_ONCE == 0:
                await asyncio.sleep(0)  # a flood must not keep the loop from everything else
            while not self._buffer:
                self._wake.clear()
                await self._wake.wait()
            await self._until_there_is_room()
            if self._buffer:
                record = self._buffer.popleft()
                self._buffered -= len(record.value or b"")
                if record.offset >= self.position:
                    self._taking = record
                    await self._take_up(record)
                    self._taking = None

    async def _until_there_is_room(self) -> None:
        room, limit = self._station.room, self._station.settings.max_partition_bytes
        while True:
            if room.used < room.limit and self._owner.held_bytes + self._unread < limit:
                return
            room.freed.clear()
            room.waiting += 1
            try:
                await room.freed.wait()
            finally:
                room.waiting -= 1

    async def _until_queues_keep_up(self, request: m.RunRequest, run_id: str) -> None:
        """What opens no run adds no calls, and waits for no queue."""
        saturation, agent = self._station.saturation, self._station.registry.agent(request.agent or "")
        if agent is None or request.cancel:
            return
        if self._is_here(run_id) and not self._is_known(run_id):
            await saturation.until_kept_up(agent, _time_s(request, agent))

    # --- one request -----------------------------------------------------------------------------------------

    async def _take_up(self, record: Record) -> None:
        run_id = _fallback_id(record)
        try:
            request = read_request(record.value)
            run_id = request.run_id or run_id
            await self._until_queues_keep_up(request, run_id)
            event = await self._decide(record, request if request.run_id else replace(request, run_id=run_id))
            outgoing = self._station.encoded(self._owner.partition, event)
            if (size := len(outgoing.value or b"")) > BODY_BYTES:
                mend = "a client with a store sends a reference (ANABRANCH_STORE)"
                raise InvalidRequest(f"the request is too large: {size} bytes, of {BODY_BYTES} at most; {mend}")
        except InvalidRequest as error:
            named, reply_to = sender_of(record.value)
            run_id = named or run_id
            event = await self._refuse(record, run_id, reply_to, error)
            outgoing = self._station.encoded(self._owner.partition, event)
        if record.offset < self.position:
            return  # while we waited, somebody's event of it was folded: ours would be counted after that
        size, opens = len(outgoing.value or b""), None
        if isinstance(event, m.RunRequested):
            event, opens = replace(event, size=size), run_id
            size += RUN_BYTES
        self._remember(_Link(record.offset, opens, size))
        sent = self._station.append_encoded(self._owner.partition, event, outgoing)
        sent.add_done_callback(self._appended)

    def _remember(self, link: _Link) -> None:
        self._links.append(link)
        self._unread += link.size
        self._station.room.change(link.size)
        if link.opens is not None:
            self._opened[link.opens] += 1

    def _appended(self, _: Sent) -> None:
        self.folded()  # the acknowledgement may have been enough

    async def _refuse(self, record: Record, run_id: str, reply_to: m.ReplyTo | None, error: InvalidRequest) -> m.Event:
        """A bad request is refused where its run would be: only there it is known whether that is open."""
        if record.key is not None and not self._is_here(run_id):
            with suppress(InvalidRequest):  # it may be too large to be sent on: then it is refused here
                await self._move(run_id, record.value)
                return self._note(record, run_id, "moved")
        log.warning("%s/%d/%d: bad request: %s", record.topic, record.partition, record.offset, error)
        await self._station.bury(record, f"{error.code}: {error}")
        if self._is_known(run_id):
            return await self._duplicate(record, run_id, reply_to)
        return self._note(record, run_id, "rejected", m.RunError(error.code, str(error)[:2000]), reply_to)

    def _is_here(self, run_id: str) -> bool:
        return partition_of(run_id, self._station.partitions) == self._owner.partition

    async def _decide(self, record: Record, request: m.RunRequest) -> m.Event:
        run_id = request.run_id or ""
        if not self._is_here(run_id):
            await self._move(run_id, dump(request))
            return self._note(record, run_id, "moved")
        if request.cancel and record.key is None and request.run_id == _fallback_id(record):
            raise InvalidRequest("run_id: is missing: name the run that is to be cancelled")
        if request.cancel:
            return self._note(record, run_id, "cancelled")
        if self._is_known(run_id):
            return await self._duplicate(record, run_id, request.reply_to)
        return self._opening(record, request)

    def _is_known(self, run_id: str) -> bool:
        return run_id in self._owner.state.runs or run_id in self._opened

    async def _duplicate(self, record: Record, run_id: str, reply_to: m.ReplyTo | None) -> m.Event:
        await self._owner.keep_within_reach(record.offset, run_id)
        return self._note(record, run_id, "duplicate", reply_to=reply_to)

    async def _move(self, run_id: str, body: bytes | None) -> None:
        """Publish it to its own partition; only then may it be noted as moved."""
        topic, partition = self._station.namespace.requests, partition_of(run_id, self._station.partitions)
        moved = cloud_event(topic, "run.request", "anabranch", run_id, body, partition=partition)
        try:
            await self._station.send(moved)
        except AnabranchError as error:
            raise InvalidRequest(f"the request cannot be moved to its own partition: {error}") from None

    def _note(
        self,
        record: Record,
        run_id: str,
        code: m.NoteCode,
        error: m.RunError | None = None,
        reply_to: m.ReplyTo | None = None,
    ) -> m.Event:
        return m.RequestNoted(run_id, str(record.offset), self.position, record.offset, code, error, reply_to)

    # --- a run ---------------------------------------------------------------------------------------------------

    def _opening(self, record: Record, request: m.RunRequest) -> m.RunRequested:
        """The event that opens the run, with everything decided that depends on configuration or a clock."""
        agent = self._agent_of(request)
        limits = agent.limits
        cost = min((c for c in (request.max_cost_usd, limits.max_cost_usd) if c is not None), default=None)
        if cost is not None and agent.model not in self._station.prices:
            raise InvalidRequest(
                f"max_cost_usd: no price is configured for model {agent.model!r} ([prices] in the settings)"
            )
        opening = m.Opening(
            request=request,
            revision=agent.revision,
            deadline=self._station.clockwork.now() + _time_s(request, agent),
            limits=m.RunLimits(min(request.max_turns or limits.max_turns, limits.max_turns), cost),
            requested_at=record.timestamp / 1000,
        )
        life = str(record.offset)
        return m.RunRequested(request.run_id or "", life, self.position, record.offset, opening)

    def _agent_of(self, request: m.RunRequest) -> AgentSpec:
        if request.agent is None:
            raise InvalidRequest("agent: is missing: name the agent that is to run")
        agent = self._station.registry.agent(request.agent)
        if agent is None:
            known = ", ".join(sorted(self._station.registry.agents)) or "none"
            raise InvalidRequest(f"there is no agent {request.agent!r}; the agents are: {known}", "unknown_agent")
        if sum(each is not None for each in (request.input, request.messages, request.messages_ref)) != 1:
            raise InvalidRequest(
                "give either input or messages: the first user message, or a conversation to go on with"
            )
        if request.messages_ref is not None:
            self._refuse_beyond_store(request.messages_ref)
        if request.input in ("", []) or request.messages == []:
            raise InvalidRequest("input: is empty")
        if request.reply_to is not None and request.reply_to.partition >= self._station.response_partitions:
            top = self._station.response_partitions - 1
            raise InvalidRequest(
                f"reply_to.partition: is {request.reply_to.partition}, and the last partition is {top}"
            )
        return agent

    def _refuse_beyond_store(self, reference: str) -> None:
        """Whether the object is there is seen when it is needed."""
        try:
            self._station.store.refuse(reference)
        except StoreError as error:
            raise InvalidRequest(f"messages_ref: {error}") from None


def _time_s(request: m.RunRequest, agent: AgentSpec) -> float:
    """How long the run has, from its admission on."""
    return min(request.deadline_s or agent.limits.deadline_s, agent.limits.deadline_s)


def _fallback_id(record: Record) -> str:
    """The key as the run's id, or `<partition>.<offset>` if it cannot be one."""
    key = (record.key or b"").decode("utf-8", "replace")
    return key if m.is_name(key) else f"{record.partition}.{record.offset}"
