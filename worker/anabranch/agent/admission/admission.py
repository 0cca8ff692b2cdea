"""Requests taken up, one by one and in order: what becomes a run, and what does not.

While there is room, the partition's owner appends for each request one event that names the request before
it, so that each counts once. A bad request costs nothing but itself: it is kept as a dead letter, then
noted, and the fold of the note owes its answer. It folds nothing, and starts nothing while the owner is silent.

There are two lanes, each with its own topic, room and waiting requests; one that waits holds the other up in nothing.
An event presumes where both are, so that those of both are one sequence, and whoever appends one knows all runs that
were opened before. When the log has taken another turn than ours, what we appended is nothing, and is read again.
`waiting.py` holds the requests ready, and `opening.py` says what a run begins with.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.about import about_record, place_of
from anabranch.agent.admission import opening
from anabranch.agent.admission.room import RUN_BYTES
from anabranch.agent.admission.waiting import Waiting
from anabranch.agent.owner import Owner
from anabranch.agent.state import Nexts
from anabranch.agent.station import Station
from anabranch.bodies import beginnings, dump, read_request, sender_of, without_given
from anabranch.codec import Record, cloud_event, header
from anabranch.errors import AnabranchError, InvalidRequest
from anabranch.fields import LANES, Lane, is_name, life_of
from anabranch.kafka.sent import Sent
from anabranch.spans import HEADER as TRACE
from anabranch.spans import valid
from anabranch.specs import AgentSpec
from anabranch.topics import partition_of
from anabranch.values import frozen

log = logging.getLogger(__name__)

AT_ONCE: Final = 20
"""How many of the interactive lane are taken up before others have their turn; there may be as many of us as
partitions."""


@frozen()
class _Link:
    """A request that was taken up, and whose event is not read back yet: the lanes are at `reaches` once it counts."""

    lane: Lane
    after: Nexts
    reaches: Nexts
    opens: str | None  # the run that it opens
    size: int


class Admission:
    """The requests of one partition. `run` is a task for each lane while the owner is live; `read_again` is called when
    both are to be read from `position` on, `read_on` when one that was paused is hungry.
    """

    def __init__(
        self,
        owner: Owner,
        station: Station,
        read_again: Callable[[], None] = lambda: None,
        read_on: Callable[[Lane], None] = lambda lane: None,
    ) -> None:
        self._owner, self._station, self._read_again, self._read_on = owner, station, read_again, read_on
        self.lanes: dict[Lane, Waiting] = {lane: Waiting(lane) for lane in LANES}
        self._links: deque[_Link] = deque()
        self._opened: dict[str, int] = {}  # the runs that `_links` open, and how often
        self._starts = 0  # how often we have started over
        self._astray = False  # whether we have to
        owner.on_link = self._follow

    @property
    def waiting_since(self) -> float:
        """Of both lanes."""
        return min(waiting.waiting_since for waiting in self.lanes.values())

    def position(self, lane: Lane) -> int:
        """The next request of a lane to be taken up."""
        return self._nexts.of(lane) or 0

    @property
    def _nexts(self) -> Nexts:
        """Where the lanes are: by the fold, or by our own unread events."""
        return self._links[-1].reaches if self._links else self._owner.state.nexts

    def feed(self, records: Sequence[Record], lane: Lane = "interactive") -> bool:
        """What was read of a lane. Returns whether no more of it is to be read, until `read_on` is called."""
        return self.lanes[lane].feed(records)

    def suspend(self) -> None:
        """What is buffered will be read again."""
        for waiting in self.lanes.values():
            waiting.clear()

    def drop(self) -> None:
        """The partition did not come back: what was taken up is nothing to us any more."""
        self.suspend()
        while self._links:
            self._read_back(self._links.popleft())

    def _follow(self) -> None:
        """The fold has taken one event that takes a request up, ours or another's: what it has passed is settled.

        If it is no longer where the first of the others presumes it, none of them will count. That has to be seen at
        each event: a later one may lead to where ours, which lies before it and did not count, would have.
        """
        nexts = self._owner.state.nexts
        while self._links and nexts.is_past(self._links[0].reaches):
            self._read_back(self._links.popleft())
        if self._links and self._links[0].after != nexts:
            self._starts += 1
            self._astray = True
            self.drop()

    def folded(self) -> None:
        """All that was at hand is folded."""
        if self._astray:
            self._astray = False
            partition = self._owner.partition
            what = {"partition": partition}
            log.info("partition %d: others took requests up as well: starting over", partition, extra=what)
            self._read_again()

    def _read_back(self, link: _Link) -> None:
        self._owner.held.room.change(-link.size, link.lane)
        if link.opens is not None and (others := self._opened.pop(link.opens) - 1):
            self._opened[link.opens] = others

    async def run(self, lane: Lane = "interactive") -> None:
        """Take the requests of a lane up for ever."""
        waiting, weight = self.lanes[lane], self._station.settings.interactive_weight
        at_once = AT_ONCE if lane == "interactive" else max(1, AT_ONCE // weight)
        for taken in count():
            if taken % at_once == 0:
                await asyncio.sleep(0)  # a flood must not keep the loop from everything else
            if not waiting.records:
                await waiting.first()
            await self._until_there_is_room(lane)
            if waiting.records:
                record = waiting.take()
                if waiting.paused and waiting.hungry:
                    waiting.paused = False
                    self._read_on(lane)
                if record.offset >= self.position(lane):
                    waiting.taking = record
                    await self._take_up(record, lane)
                    waiting.taking = None

    async def _until_there_is_room(self, lane: Lane) -> None:
        rooms = (self._station.room, self._owner.held.room)
        if rooms[0].takes(lane) and rooms[1].takes(lane):
            return
        for room in rooms:
            room.waits(lane, 1)
        try:
            while not all(room.takes(lane) for room in rooms):
                rooms[0].freed.clear()  # it is the freed of both
                await rooms[0].freed.wait()
        finally:
            for room in rooms:
                room.waits(lane, -1)

    # --- one request -----------------------------------------------------------------------------------------

    async def _take_up(self, record: Record, lane: Lane) -> None:
        starts = self._starts
        try:
            request = read_request(record.value)
            if request.run_id is None:
                request = replace(request, run_id=_fallback_id(record))
            event = await self._decide(record, lane, request)
            outgoing = self._station.encoded(self._owner.partition, event)
        except InvalidRequest as error:
            named, reply_to = sender_of(record.value)
            event = await self._refuse(record, lane, named or _fallback_id(record), reply_to, error)
            outgoing = self._station.encoded(self._owner.partition, event)
        if record.offset < self.position(lane) or self._starts != starts:
            return  # while we waited, somebody's event of it was folded: ours would be counted after that
        size, opens, after = len(outgoing.value or b""), None, self._nexts
        if type(event) is e.RunRequested:
            size, opens = size + RUN_BYTES, event.run_id
        self._remember(_Link(lane, after, after.after(lane, record.offset), opens, size))
        sent = self._station.append_encoded(self._owner.partition, event, outgoing)
        sent.add_done_callback(self._appended)

    def _remember(self, link: _Link) -> None:
        self._links.append(link)
        self._owner.held.room.change(link.size, link.lane)
        if link.opens is not None:
            self._opened[link.opens] = self._opened.get(link.opens, 0) + 1

    def _appended(self, _: Sent) -> None:
        self.folded()  # the acknowledgement may have been enough

    async def _refuse(
        self, record: Record, lane: Lane, run_id: str, reply_to: m.ReplyTo | None, error: InvalidRequest
    ) -> e.Event:
        """A bad request is refused where its run would be: only there it is known whether that is open."""
        if record.key is not None and not self._is_here(run_id):
            with suppress(InvalidRequest):  # it may be too large to be sent on: then it is refused here
                await self._move(lane, run_id, record, record.value)
                return self._note(record, lane, run_id, "moved")
        what = {**about_record(record, str(error)), "run_id": run_id}
        log.warning("%s: bad request: %s", place_of(record), without_given(str(error)), extra=what)
        await self._station.bury(record, f"{error.code}: {error}")
        if self._is_known(run_id):
            return await self._duplicate(record, lane, run_id, reply_to)
        return self._note(record, lane, run_id, "rejected", m.RunError(error.code, str(error)[:2000]), reply_to)

    def _is_here(self, run_id: str) -> bool:
        return partition_of(run_id, self._station.partitions) == self._owner.partition

    async def _decide(self, record: Record, lane: Lane, request: m.RunRequest) -> e.Event:
        run_id = request.run_id or ""
        if not self._is_here(run_id):
            await self._move(lane, run_id, record, dump(request))
            return self._note(record, lane, run_id, "moved")
        if request.cancel and record.key is None and request.run_id == _fallback_id(record):
            raise InvalidRequest("run_id: is missing: name the run that is to be cancelled")
        if request.cancel:
            if beginnings(request):
                what = {**about_record(record), "run_id": run_id}
                log.warning("%s: it cancels run %s, so its input begins none", place_of(record), run_id, extra=what)
            return self._note(record, lane, run_id, "moved" if self._is_heard(record, lane, run_id) else "cancelled")
        agent = None if self._is_known(run_id) else await self._until_queues_keep_up(record, request, lane)
        if agent is None or self._is_known(run_id):
            return await self._duplicate(record, lane, run_id, request.reply_to)
        return opening.event_of(self._station, record, lane, request, agent, self._nexts)

    def _is_heard(self, record: Record, lane: Lane, run_id: str) -> bool:
        """Whether the log has told this cancel with its place in both lanes: the runs that it means have ended, or
        will where they open. One that is open all the same was asked for after it, by the other lane.
        """
        known = self._owner.state.cancels.get(run_id)
        return known is not None and known.is_of(lane, record.offset) and None not in known.before

    async def _until_queues_keep_up(self, record: Record, request: m.RunRequest, lane: Lane) -> AgentSpec:
        """The request's agent. What opens no run adds no calls, and waits for no queue: it is refused before."""
        agent = opening.agent_of(self._station, request)
        if agent.tools:
            if len(record.value or b"") > opening.SURELY_FITS:
                opening.written(self._station, record, request, agent)
            if await self._station.saturation.until_kept_up(agent, opening.time_s(request, agent), lane):
                return opening.agent_of(self._station, request)  # it may be another revision by now
        return agent

    def _is_known(self, run_id: str) -> bool:
        return run_id in self._owner.state.runs or run_id in self._opened

    async def _duplicate(self, record: Record, lane: Lane, run_id: str, reply_to: m.ReplyTo | None) -> e.Event:
        await self._owner.reach.keep(lane, record.offset, run_id)
        return self._note(record, lane, run_id, "duplicate", reply_to=reply_to)

    async def _move(self, lane: Lane, run_id: str, record: Record, body: bytes | None) -> None:
        """Publish it to its own partition of the lane; only then may it be noted as moved."""
        topic, partition = self._station.namespace.requests_of(lane), partition_of(run_id, self._station.partitions)
        trace = [(TRACE, valid(header(record.headers, TRACE)))]
        moved = cloud_event(topic, "run.request", "anabranch", run_id, body, trace, partition)
        try:
            await self._station.send(moved)
        except AnabranchError as error:
            raise InvalidRequest(f"the request cannot be moved to its own partition: {error}") from None

    def _note(
        self,
        record: Record,
        lane: Lane,
        run_id: str,
        code: e.NoteCode,
        error: m.RunError | None = None,
        reply_to: m.ReplyTo | None = None,
    ) -> e.Event:
        after, life = self._nexts, life_of(lane, record.offset)
        trace = valid(header(record.headers, TRACE)) if code == "rejected" else None  # the others have nothing to tell
        return e.RequestNoted(
            run_id, life, after.interactive or 0, record.offset, code, error, reply_to, lane, after.bulk, trace
        )


def _fallback_id(record: Record) -> str:
    """The key as the run's id, or `<partition>.<offset>` if it cannot be one."""
    key = (record.key or b"").decode("utf-8", "replace")
    return key if is_name(key) else f"{record.partition}.{record.offset}"
