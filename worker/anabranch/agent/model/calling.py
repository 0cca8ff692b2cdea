"""The model calls of one partition, through all of its assignments in this process.

A model call is settled only by a reply that has been folded. So a call is not made while one of ours is in
flight, or its reply is not read back yet; nor while somebody who gave the partition up goes on with it. What
is in flight when the partition is given up goes on, is handed off to the next owner in the log, and is
appended as always. `Owner` says what is due; `Thinker` makes the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.effects import ModelDue
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.offer import Offers
from anabranch.agent.reply.hearing import Hearing
from anabranch.agent.reply.pieces import Piece
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.speaking import Outlet, Speech
from anabranch.agent.state import Life, Run
from anabranch.agent.station import Station
from anabranch.fields import lane_of
from anabranch.kafka.sent import Sent
from anabranch.specs import AgentSpec

log = logging.getLogger(__name__)

MARGIN: Final = 0.1
"""The part of a hand-off's time that the giver leaves unused: clocks and networks are not perfect."""


@dataclass(slots=True)
class _Call:
    turn: int
    job: Job
    ends: asyncio.TimerHandle | None = None  # once it was handed off: the last one says for how long


@dataclass(slots=True)
class _Unread:
    """An event of ours that settles a call, and has not been read back."""

    turn: int
    attempt: str
    acked: bool = False


class ModelCalls:
    """See the module. `wanted` gives the run that owes this model call, if it is ours to make now, and `begin_early` is
    told of a call of it that is complete while the model speaks.
    """

    def __init__(self, partition: int, station: Station, offers: Offers) -> None:
        self._partition, self._station, self._offers = partition, station, offers
        self._calls: dict[Life, _Call] = {}
        self._unread: dict[Life, _Unread] = {}
        self._surplus: dict[Life, list[e.ModelDiscarded]] = {}  # replies of which another one came first
        self._outlet = Outlet(station)
        self.wanted: Callable[[Life, int], Run | None] = lambda life, turn: None
        self.begin_early: Callable[[Run, BatchContext, Piece], None] = lambda run, context, piece: None

    def begin(self) -> None:
        """A new fold begins: it will read what has been acknowledged before it gets to the log's end."""
        self._unread = {life: unread for life, unread in self._unread.items() if not unread.acked}
        self._surplus.clear()

    def want(self, run: Run, due: ModelDue | None) -> None:
        """Make the call that is due, unless it is being made; end one that no longer is."""
        life = (run.run_id, run.life)
        known = self._calls.get(life)
        if known is not None and (due is None or known.turn != due.turn):
            self.drop(life, "another reply of the turn came first" if run.open else "the run has ended")
            known = None
        if due is None or known is not None or life in self._unread:
            return
        agent = self._station.registry.agent(run.opening.request.agent or "", run.opening.revision)
        hearing = self._hearing(run, life, agent)
        job = Job(
            run.opening.request.tenant or "",
            agent.model if agent is not None else "",  # if the registry does not know it, `_prepare` will tell
            prepare=partial(self._prepare, life, due.turn),
            append=partial(self._append, life),
            on_event=None if hearing is None else hearing.event,
            due_at=self._station.clockwork.steady(),
            lane=lane_of(run.life),
            fallback=agent.fallback if agent is not None else None,
            on_end=None if hearing is None else hearing.end,
        )
        self._calls[life] = _Call(due.turn, job)
        self._station.thinker.submit(job)

    def _hearing(self, run: Run, life: Life, agent: AgentSpec | None) -> Hearing | None:
        """Who listens to the model while it speaks, if anybody does."""
        begin = partial(self._begin_early, life) if agent is not None and agent.early_start else None
        if not run.opening.request.stream:
            return Hearing(None, begin) if begin is not None else None
        return Hearing(Speech(run, self._outlet, self._station.clockwork.steady), begin)

    def _begin_early(self, life: Life, context: BatchContext, piece: Piece) -> None:
        """A call is complete: it begins if the owner there is now, if there is one, is for it."""
        if (run := self.wanted(life, context.turn)) is not None:
            self.begin_early(run, context, piece)

    def has(self, life: Life, turn: int) -> bool:
        """Whether this very call is being made, or waits for its place."""
        return (known := self._calls.get(life)) is not None and known.turn == turn

    def drop(self, life: Life, why: str = "its reply is no longer wanted") -> None:
        """End it."""
        if (known := self._calls.pop(life, None)) is not None:
            self._station.thinker.cancel(known.job, why)

    def cut_short_by(self, event: e.RunExpired) -> e.RunExpired:
        """The event with what the call in flight has used: it is the last that counts of the run."""
        known = self._calls.get((event.run_id, event.life))
        spent = self._station.thinker.spent(known.job) if known is not None else None
        if spent is None:
            return event
        return replace(event, attempt=spent.attempt, usage=spent.usage, model=spent.model, tried=spent.tried)

    def read_back(self, event: e.ModelReplied | e.ModelFailed, run: Run | None) -> None:
        """It was folded, whoever wrote it, and `run` is as it left it."""
        life = (event.run_id, event.life)
        if type(event) is e.ModelReplied and run is not None and _is_surplus(run, event):
            self._surplus.setdefault(life, []).append(_unused(event, "another reply of the turn came first"))
        unread = self._unread.get(life)
        if unread is not None and unread.attempt == event.attempt:
            del self._unread[life]

    def tell_surplus(self, run: Run) -> None:
        """Two have paid for one turn, as a zombie and its successor may: what was not used counts as discarded."""
        for paid in self._surplus.pop((run.run_id, run.life), ()):
            if run.open and paid.attempt not in run.discards:
                self._station.append(self._partition, paid)

    # --- giving up ----------------------------------------------------------------------------------------------

    def hand_off(self, for_s: float) -> list[Sent]:
        """Tell the next owner of each call in flight, or finished but not yet appended.

        What has not begun is dropped. Each call ends a margin before its time, unless the partition has come back.
        """
        thinker = self._station.thinker
        for life in [life for life, call in self._calls.items() if not thinker.has_begun(call.job)]:
            self.drop(life)
        held = [(life, call.turn) for life, call in self._calls.items()]
        held += [(life, unread.turn) for life, unread in self._unread.items() if not unread.acked]
        loop = asyncio.get_running_loop()
        for life, call in self._calls.items():
            if call.ends is not None:
                call.ends.cancel()
            call.ends = loop.call_later(for_s * (1 - MARGIN), self._time_is_up, life, call)
        worker = self._station.worker_id
        self._station.meters.hand_offs.add(len(held), "model", "given")
        return [
            self._station.append(self._partition, e.ModelHandedOff(life[0], life[1], turn, worker, for_s))
            for life, turn in held
        ]

    def abandon(self) -> None:
        """What was handed off has been ended with the rest, as this process ends: nobody need wait for it any more."""
        worker = self._station.worker_id
        for life, call in self._calls.items():
            if call.ends is not None:
                call.ends.cancel()
                self._station.append(self._partition, e.ModelHandedOff(life[0], life[1], call.turn, worker, 0.0))
        self._calls.clear()

    def _time_is_up(self, life: Life, call: _Call) -> None:
        if self._calls.get(life) is call and self.wanted(life, call.turn) is None:
            what = {"run_id": life[0], "partition": self._partition}
            log.warning("run %s: a model call that was handed off takes too long, and is given up", life[0], extra=what)
            self.drop(life, "it took longer than the hand-off's time")

    # --- one call -------------------------------------------------------------------------------------------------

    def _prepare(self, life: Life, turn: int) -> Request | None:
        """The model call, if it is still ours to make."""
        run = self.wanted(life, turn)
        if run is None:
            self._calls.pop(life, None)
            return None
        try:
            return to_request(run, self._offers, self._station.place, self._station.prices)
        except Exception as error:  # noqa: BLE001 - whatever it was, only this run may suffer
            self._append(life, self._failure(life, turn, f"the model call could not be prepared: {error}"))
            return None

    def _append(self, life: Life, event: e.Event) -> None:
        """A reply counts when it is read back; until then the call is not made again."""
        unread: _Unread | None = None
        if type(event) is e.ModelReplied or type(event) is e.ModelFailed:
            self._calls.pop(life, None)
            unread = self._unread[life] = _Unread(event.turn, event.attempt)
        self._station.append(self._partition, event).add_done_callback(partial(self._appended, life, event, unread))

    def _appended(self, life: Life, event: e.Event, unread: _Unread | None, sent: Sent) -> None:
        if sent.is_written:
            if unread is not None:
                unread.acked = True
            return
        if (error := sent.exception()) is None:
            return
        what = {"run_id": life[0], "partition": self._partition}
        log.error("run %s: %s could not be appended: %s", life[0], type(event).__name__, error, extra=what)
        if isinstance(event, e.ModelReplied):
            why = f"the reply could not be written to the log: {error}"
            self._append(life, _unused(event, why))
            self._append(life, self._failure(life, event.turn, why))

    def _failure(self, life: Life, turn: int, message: str) -> e.ModelFailed:
        attempt = self._station.clockwork.new_id()
        return e.ModelFailed(life[0], life[1], turn, attempt, m.RunError("internal", message))


def _unused(reply: e.ModelReplied, why: str) -> e.ModelDiscarded:
    """A reply that was paid for, and does not count."""
    return e.ModelDiscarded(
        reply.run_id, reply.life, reply.turn, reply.attempt, reply.usage, why, reply.model, reply.tried
    )


def _is_surplus(run: Run, event: e.ModelReplied) -> bool:
    """Whether another reply than this one counts, of a run that is open still."""
    for turn in reversed(run.turns):
        if turn.attempt == event.attempt:
            return False
    return run.open and not run.parked and run.life == event.life
