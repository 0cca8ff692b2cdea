"""Calls that begin while their model still speaks, if the agent says so; see docs/decisions/0017.

Responsible for: which calls may begin, publishing them, and what comes back of them before the log has their reply.
Must never: let a result count. The fold alone does, and it knows a call only by a reply that it has folded; the id of
an early call follows from the attempt and from all that is asked, so no other reply and no other call has it.

When the reply is folded and asks for exactly that call, one of three things stands for its publication:

- no result has been read: the early record, for its result will lie behind the reply;
- the result lies before the reply, where the fold takes no notice of it: a copy, which is appended now;
- neither is certain (somebody handed the call off, or its result was not kept): nothing, and it is published as always.

That holds as long as one fold has read everything since the call began. So all of this is one owner's, in its memory,
and a takeover knows nothing of it: it publishes the call as always. `Owner` says what begins, what was read and what is
over, `Publisher` asks what stands for a publication.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Final

from anabranch import log_events as e
from anabranch.agent.effects import CallDue
from anabranch.agent.fold import run_of
from anabranch.agent.outbox import early_record
from anabranch.agent.reply.blocks import Misfit
from anabranch.agent.reply.pieces import Piece
from anabranch.agent.reply.plan import BatchContext, planned_alone
from anabranch.agent.reply.reply import RequestedCall, call_of
from anabranch.agent.state import Life, Partition, Run
from anabranch.agent.station import Station
from anabranch.kafka.sent import Sent
from anabranch.specs import ToolSpec

log = logging.getLogger(__name__)

INPUT_BYTES: Final = 64 * 1024
"""Calls with longer arguments wait for their reply."""
RESULT_BYTES: Final = 4 * 1024 * 1024
"""Of one partition: what comes back early beyond that is not kept, and the call is made again."""


@dataclass(slots=True, eq=False)
class _Begun:
    """An early call. `returned` is its result, if that lies before its reply; `certain`: see the module."""

    queue: str
    sent: Sent
    returned: e.ToolReturned | None = None
    certain: bool = True


@dataclass(slots=True, eq=False)
class _Speaking:
    """What has begun of one turn of a run, by call id: of all attempts of this process, though only one can count."""

    turn: int
    calls: dict[str, _Begun] = field(default_factory=dict)


class Early:
    """One fold's; see the module. While `speaking` is empty it knows of nothing, and need not be told or asked."""

    def __init__(self, partition: int, station: Station, state: Partition) -> None:
        self._partition, self._station, self._state = partition, station, state
        self.speaking: dict[Life, _Speaking] = {}
        self._bytes = 0

    def begin(self, run: Run, context: BatchContext, piece: Piece) -> None:
        """A call is complete while its model speaks on: publish it, if it may begin now. `run` owes this turn."""
        call = requested(piece)
        if call is None or call.tool_use_id in context.used:
            return
        if run.turn >= run.opening.limits.max_turns:
            return  # what nobody will read is not run
        planned, spec = planned_alone(piece.call, call, context)
        if spec is None or planned.rejected is not None or not may_begin(spec):
            return
        if self._station.saturation.is_behind(spec.queue):
            return
        given = call.input if context.sealer is None else context.sealer.seal("input", json.dumps(call.input).encode())
        record = early_record(self._station, self._partition, run, planned, given)
        speaking = self.speaking.get((run.run_id, run.life))
        if speaking is None or speaking.turn != run.turn:
            self.drop((run.run_id, run.life))
            speaking = self.speaking[run.run_id, run.life] = _Speaking(run.turn)
        if planned.call_id not in speaking.calls:
            speaking.calls[planned.call_id] = _Begun(spec.queue, self._station.send(record))
            self._station.saturation.published(spec.queue)
            self._station.meters.calls_early.count(spec.queue, "started")

    def read(self, event: e.Event) -> None:
        """An event of the log that has just been folded: what it says of a call that the fold does not know yet."""
        match event:
            case e.ToolReturned():
                begun = self._begun(event.run_id, event.life, event.call_id)
                if begun is not None and begun.returned is None and self._is_unknown(event.run_id, event.call_id):
                    self._keep(begun, event)
            case e.CallsHandedOff():
                for call_id in event.calls:
                    run = self._state.runs.get(run_of(call_id))
                    begun = self._begun(run.run_id, run.life, call_id) if run is not None else None
                    if begun is not None and self._is_unknown(run_of(call_id), call_id):
                        begun.certain = False  # nobody will notice if that worker dies

    def claim(self, due: CallDue) -> Sent | None:
        """What stands for this publication, or None: it has to be made."""
        begun = self._begun(due.run_id, due.life, due.call_id)
        if begun is None or due.dispatch != 1 or due.at_most_once:
            return None
        if begun.returned is None and (not begun.certain or _has_failed(begun.sent)):
            return None
        self._station.meters.calls_early.count(begun.queue, "used")
        return begun.sent if begun.returned is None else self._station.append(self._partition, begun.returned)

    def look_at(self, run: Run) -> None:
        """What was started for a turn that the run no longer owes has been claimed, or is of no use."""
        speaking = self.speaking.get((run.run_id, run.life))
        if speaking is not None and not (run.owed and run.turn == speaking.turn):
            self.drop((run.run_id, run.life))

    def drop(self, life: Life) -> None:
        """Nothing of this run is of use any more."""
        if (speaking := self.speaking.pop(life, None)) is not None:
            kept = [begun.returned for begun in speaking.calls.values() if begun.returned is not None]
            self._bytes -= sum(len(returned.body) for returned in kept)

    def _begun(self, run_id: str, life: str, call_id: str) -> _Begun | None:
        speaking = self.speaking.get((run_id, life))
        return speaking.calls.get(call_id) if speaking is not None else None

    def _is_unknown(self, run_id: str, call_id: str) -> bool:
        """Whether the fold has not come to the reply that asks for the call."""
        run = self._state.runs.get(run_id)
        return run is not None and not (run.turns and call_id in run.turns[-1].calls)

    def _keep(self, begun: _Begun, event: e.ToolReturned) -> None:
        if self._bytes + len(event.body) > RESULT_BYTES:
            begun.certain = False
            return
        self._bytes += len(event.body)
        begun.returned = event


def requested(piece: Piece) -> RequestedCall | None:
    """The call that was streamed; None if there is something about it that only the whole reply can settle."""
    if len(piece.text) > INPUT_BYTES:
        return None
    try:
        call = call_of(piece.block, piece.text)
    except Misfit:
        return None
    return call if call.refused is None else None


def may_begin(spec: ToolSpec) -> bool:
    """Whether a call of this tool may run for nothing, waits for no other one, and has until the run's deadline."""
    free = not spec.after and spec.serial_key is None and spec.deadline_s is None
    return spec.read_only and free and spec.delivery == "at_least_once"


def _has_failed(sent: Sent) -> bool:
    return sent.cancelled() or sent.exception() is not None
