"""Calls that go on while their partition is taken away: they are told to the logs of their runs, and their keys held.

A call is marked as finished only when the log knows of its hand-off; one that takes longer than was announced is
given up, a margin before. Of a serial key the commit says until when it is held: that is the bound for others, and
here it is free as soon as its call is over. `ToolWorker` says what runs, and commits.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from anabranch.codec import encode
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Sent, settled
from anabranch.log_events import CallsHandedOff
from anabranch.tools.lane import Lane
from anabranch.tools.serving import Bench, Job

log = logging.getLogger(__name__)

SETTLE_S: Final = 8.0
"""How long a revoke waits for the broker: the group waits for the revoke."""
NAMED: Final = 4000
"""How many calls one event names; an id has 200 characters at most."""
MARGIN: Final = 0.1
"""The part of a hand-off's time that the giver leaves unused: clocks and networks are not perfect."""

Replies = tuple[str, int]
"""Topic and partition that a call replies to."""


class HandOffs:
    """See the module. `give_up` ends a job. What executes here is asked of each: `begun`, and its task not done."""

    def __init__(self, bench: Bench, give_up: Callable[[Job], None]) -> None:
        self._bench, self._give_up = bench, give_up
        self._over: dict[tuple[Place, str], int] = {}  # keys that were told, with their time, whose call is over

    # --- serial keys ------------------------------------------------------------------------------------------

    def hold(self, lane: Lane, job: Job, for_s: float) -> bool:
        """Name a serial call's key in the commit, with the call's time; False if there is no room for it."""
        key = job.serial_key
        if key is None:
            return True
        now = self._bench.now()
        until = math.ceil(now + min(for_s, job.time_s))
        if until <= lane.held.get(key, 0):
            return True
        if not lane.hold(key, until, now):
            return False
        job.held_until = until
        return True

    def free(self, lane: Lane | None, job: Job) -> None:
        """Its call is over: no call of its key has to wait here for the time that was told to others."""
        key = job.serial_key
        if key is None or not job.held_until:
            return
        self._over[job.place, key] = job.held_until
        if lane is not None and lane.held.get(key) == job.held_until:
            del lane.held[key]

    def held(self, place: Place, told: Iterable[tuple[str, int]]) -> dict[str, int]:
        """The keys that a commit names, but for those of calls of ours that are over."""
        self._over = {key: until for key, until in self._over.items() if until > self._bench.now()}
        return {key: until for key, until in told if self._over.get((place, key)) != until}

    # --- telling ----------------------------------------------------------------------------------------------

    async def tell(self, jobs: Iterable[Job], for_s: float) -> list[Job]:
        """Tell the partitions that they reply to; returns those of whom the broker knows."""
        groups_sent: dict[Sent, list[Job]] = {}
        for where, group in _in_parts(jobs):
            time_s = min(for_s, max(job.time_s for job in group))
            groups_sent[self._append(where, group, time_s)] = group
            for job in group:
                if job.ends is not None:
                    job.ends.cancel()
                its_s = time_s if job.serial_key is None else min(for_s, job.time_s)  # no longer than its key is held
                job.ends = asyncio.get_running_loop().call_later(its_s * (1 - MARGIN), self._time_is_up, job)
        await settled(groups_sent, SETTLE_S)
        told = [job for sent, group in groups_sent.items() if sent.is_written for job in group]
        self._bench.meters.hand_offs.add(len(told), "call", "given")
        return told

    def cancel(self, jobs: Iterable[Job]) -> None:
        """They are not to go on, and are read again; of those that a former commit says are over, the owners hear that
        they need not wait for them any more.
        """
        given_up = list(jobs)
        self.abandon(job for job in given_up if job.gone)
        for job in given_up:
            job.drop()

    def cancel_untold(self, jobs: Iterable[Job], committed: Mapping[Place, object]) -> None:
        """After a revoke: what the commit does not tell may be redelivered. A serial call may not run twice, and of a
        place that is not named there the next owner does not know.
        """
        for job in jobs:
            if job.place in committed or job.task is None:  # who waits in a line hears of it there
                continue
            if job.serial_key is not None:
                why = "it may be redelivered, and its key is serial"
            elif job.tool is not None and job.tool.limit is not None and job.tool.limit.concurrency is not None:
                why = f"no commit tells that it has a place of limit {job.tool.limit.name}"
            else:
                continue
            log.warning("call %s is cancelled: %s", job.call.call_id, why, extra=job.about())
            self.cancel([job])

    def abandon(self, jobs: Iterable[Job]) -> None:
        """Nobody goes on with them: nobody need wait for those that were handed off any more."""
        for where, group in _in_parts(job for job in jobs if job.ends is not None):
            self._append(where, group, 0.0)

    def _append(self, where: Replies, group: Iterable[Job], time_s: float) -> Sent:
        worker_id = self._bench.worker_id
        event = CallsHandedOff(worker_id, time_s, tuple(job.call.call_id for job in group))
        return self._bench.appender.append(encode(event, *where, worker_id))

    def _time_is_up(self, job: Job) -> None:
        if job.running:
            call_id, what = job.call.call_id, job.about()
            log.warning("call %s was handed off and takes too long: it is given up", call_id, extra=what)
            self._give_up(job)


def _in_parts(jobs: Iterable[Job]) -> Iterator[tuple[Replies, list[Job]]]:
    """By where they reply to; no event names more calls than a record has room for."""
    groups: dict[Replies, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.call.reply.topic, job.call.reply.partition), []).append(job)
    for where, group in groups.items():
        for begin in range(0, len(group), NAMED):
            yield where, group[begin : begin + NAMED]
