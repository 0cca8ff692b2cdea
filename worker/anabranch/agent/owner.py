"""The owner of one partition: folds its log, and does what the fold wants done.

Silent until it has folded up to the end that was captured when the partition was assigned; from there on it
performs an effect if the fold still wants it, it is not in flight here, and every record of ours that could
settle it has been read back. It decides nothing about a run: it appends, and the fold decides. `worker.py`
feeds it; `admission.py` takes the requests up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from anabranch import messages as m
from anabranch.agent import effects, fold
from anabranch.agent.answer import answer, note_answer
from anabranch.agent.asking import stream_record, to_request
from anabranch.agent.effects import AnswerDue, CallDue, NoteDue, Publication
from anabranch.agent.outbox import call_record, response_record
from anabranch.agent.state import Partition, Run
from anabranch.agent.station import Station
from anabranch.agent.thinking import Job, Request
from anabranch.agent.timers import Timers
from anabranch.bodies import dump
from anabranch.codec import Outgoing, Record, decode
from anabranch.deadletters import dead_letter
from anabranch.errors import BrokerError, WireError
from anabranch.kafka.seam import Acked

log = logging.getLogger(__name__)

REMEMBERED: Final = 2000
"""How many answered runs an owner remembers, to answer a request that comes again."""
AGAIN_S: Final = 1.0

Life = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Commit:
    """What is committed for the partition: where a fold has to begin, and what it then must know."""

    low: int
    done: int
    next_request: int


class Owner:
    """See the module. `on_live` is called each time the owner has become live."""

    def __init__(self, partition: int, station: Station, on_live: Callable[[Owner], None]) -> None:
        self.partition, self._station, self._on_live = partition, station, on_live
        self.state = Partition()
        self.live = False
        self._end = 0
        self._done = 0
        self._token = station.clockwork.new_id()
        self._jobs: dict[Life, tuple[int, Job]] = {}
        self._unread: dict[Life, str] = {}  # the attempt of our reply that is not read back yet
        self._dispatching: set[str] = set()
        self._sending: set[Hashable] = set()
        self._acked: dict[Life, set[Publication]] = {}
        self._needed: dict[Life, Run] = {}  # the runs that are open, or not answered yet
        self._sizes: dict[Life, int] = {}
        self._answered: dict[Life, bytes] = {}
        self._remembered: dict[Life, None] = {}  # the runs that nobody waits for any more, the oldest first
        self._timers = Timers(station.clockwork.now, self._ring)
        self.open_bytes = 0

    # --- assignment -----------------------------------------------------------------------------------------

    def begin(self, commit: Commit | None, log_begin: int, end: int, requests_begin: int) -> int:
        """Fold anew, from the commit or the log's start; returns the offset to read from."""
        low = max(commit.low, log_begin) if commit is not None else log_begin
        self.state = Partition(began=low, position=low)
        self._first_request = requests_begin
        if commit is not None and commit.next_request >= 0:
            self._first_request = max(requests_begin, commit.next_request)
            if commit.low >= log_begin:  # else it was of a record that is gone: the log itself must tell
                self.state.next_request = commit.next_request
        self._done = commit.done if commit is not None else 0
        return self.resume(end)

    def resume(self, end: int) -> int:
        """Go on with the fold there is; silent up to `end`. Returns the offset to read from."""
        self._end = end
        self.live = False
        return self.state.position

    def suspend(self) -> None:
        """The partition is no longer ours: start nothing more. What is in flight goes on."""
        self.live = False
        self._timers.clear()

    def drop(self) -> None:
        """It did not come back: forget the fold, and give its room back."""
        self.suspend()
        self._station.room.change(-self.open_bytes)
        self.open_bytes = 0

    def caught_up(self, position: int) -> None:
        """Everything below `position` has been read."""
        self.state.position = max(self.state.position, position)
        if not self.live and self.state.position >= self._end:
            self._go_live()

    def _go_live(self) -> None:
        self.live = True
        if self.state.next_request is None:
            self.state.next_request = self._first_request
        for run in list(self.state.runs.values()):
            self._act(run)
        for offset in list(self.state.notes):
            self._publish(NoteDue(offset))
        self._on_live(self)

    # --- folding ----------------------------------------------------------------------------------------------

    def fold(self, records: Sequence[Record]) -> None:
        """Fold what was read, then act on the runs that it spoke of."""
        touched: dict[str, Run] = {}
        for record in records:
            if record.offset >= self.state.position:
                for run in self._fold_one(record):
                    touched[run.run_id] = run
        if self.live:
            for run in touched.values():
                self._act(run)
        else:
            self.caught_up(self.state.position)

    def _fold_one(self, record: Record) -> list[Run]:
        event: m.Event | None
        try:
            event = decode(record)
        except WireError as error:
            event = None
            if record.offset >= self._done:
                log.error("%s/%d/%d cannot be read: %s", record.topic, record.partition, record.offset, error)
                self._station.send(dead_letter(self._station.namespace, record, str(error)))
        before = self.state.runs.get(getattr(event, "run_id", None) or "")
        run = fold.apply(self.state, event, record.offset, record.timestamp / 1000)
        if before is not None and before is not run:
            self._replaced(before)
        self._read_back(event)
        if isinstance(event, m.RequestNoted) and event.code == "rejected" and record.offset in self.state.notes:
            self._publish(NoteDue(record.offset))
        if isinstance(event, m.UnknownEvent):
            log.error("offset %d: %s: run %s is parked", record.offset, event.reason, event.run_id)
        if run is None:
            return []
        self._account(run)
        return [run]

    def _read_back(self, event: m.Event | None) -> None:
        match event:
            case m.ModelReplied() | m.ModelFailed():
                if self._unread.get((event.run_id, event.life)) == event.attempt:
                    del self._unread[event.run_id, event.life]
            case m.CallDispatched():
                self._dispatching.discard(event.call_id)

    def _replaced(self, run: Run) -> None:
        """Another life of it was opened: whatever this one still wanted is wanted no more."""
        life = (run.run_id, run.life)
        self._needed.pop(life, None)
        if (known := self._jobs.pop(life, None)) is not None:
            self._station.thinker.cancel(known[1])

    def _account(self, run: Run) -> None:
        """Keep count of the bytes of open runs."""
        life = (run.run_id, run.life)
        self._needed[life] = run
        size = run.size if run.open else 0
        change = size - self._sizes.get(life, 0)
        if run.open:
            self._sizes[life] = size
        else:
            self._sizes.pop(life, None)
        self.open_bytes += change
        self._station.room.change(change)

    # --- acting -------------------------------------------------------------------------------------------------

    def _act(self, run: Run) -> None:
        """Whatever the fold wants of this run, and nobody here is doing yet."""
        self._call_model(run)
        for due in effects.publications(run):
            self._publish(due)
        if run.open:
            self._arm(run)
        else:
            self._close(run)

    def _call_model(self, run: Run) -> None:
        life, due = (run.run_id, run.life), effects.model_due(run)
        known = self._jobs.get(life)
        if known is not None and (due is None or known[0] != due.turn):
            self._station.thinker.cancel(known[1])
            del self._jobs[life]
            known = None
        if due is None or known is not None or life in self._unread:
            return
        job = Job(
            run.opening.request.tenant or "",
            prepare=partial(self._prepare, life, due.turn),
            append=partial(self._append_of_model, life),
            on_event=partial(self._speak, run),
        )
        self._jobs[life] = (due.turn, job)
        self._station.thinker.submit(job)

    def _prepare(self, life: Life, turn: int) -> Request | None:
        """The model call, if it is still ours to make."""
        run = self.state.runs.get(life[0])
        if not self.live or run is None or run.life != life[1] or not run.owed or run.turn != turn:
            self._jobs.pop(life, None)
            return None
        try:
            return to_request(run, self._station.registry)
        except Exception as error:  # noqa: BLE001 - whatever it was, only this run may suffer
            attempt = self._station.clockwork.new_id()
            failure = m.RunError("internal", f"the model call could not be prepared: {error}")
            self._append_of_model(life, m.ModelFailed(life[0], life[1], turn, attempt, failure))
            return None

    def _append_of_model(self, life: Life, event: m.Event) -> None:
        """A reply counts when it is read back; until then the call is not made again."""
        if isinstance(event, m.ModelReplied | m.ModelFailed):
            self._jobs.pop(life, None)
            self._unread[life] = event.attempt
        sent = self._station.append(self.partition, event)
        sent.add_done_callback(partial(self._appended, life, event))

    def _appended(self, life: Life, event: m.Event, sent: asyncio.Future[Acked]) -> None:
        if sent.cancelled() or (error := sent.exception()) is None:
            return
        log.error("run %s: %s could not be appended: %s", life[0], type(event).__name__, error)
        if isinstance(event, m.ModelReplied):
            attempt = self._station.clockwork.new_id()
            failure = m.RunError("internal", f"the reply could not be written to the log: {error}")
            self._append_of_model(life, m.ModelFailed(life[0], life[1], event.turn, attempt, failure))

    def _speak(self, run: Run, request: Request, event: dict[str, Any]) -> None:
        if run.opening.request.stream:
            record = stream_record(self._station.namespace, run, request, event)
            if record is not None:
                self._station.send(record)

    # --- publications ---------------------------------------------------------------------------------------------

    def _is_settled(self, due: Publication) -> bool:
        if not isinstance(due, NoteDue) and due in self._acked.get((due.run_id, due.life), ()):
            return True
        amo = isinstance(due, CallDue) and due.at_most_once
        return not amo and due.cause < max(self._done, self.state.done)

    def _publish(self, due: Publication) -> None:
        if not self.live or due in self._sending or self._is_settled(due):
            return
        if isinstance(due, NoteDue) and due.cause not in self.state.notes:
            return
        if isinstance(due, CallDue) and due.at_most_once and not self._may_publish(due):
            return
        record = self._record(due)
        if record is None:
            return
        self._sending.add(due)
        once = isinstance(due, CallDue) and due.at_most_once
        self._station.send(record, once).add_done_callback(partial(self._published, due))

    def _may_publish(self, due: CallDue) -> bool:
        """At most once: only the token that the log has accepted, and only once."""
        run = self.state.runs[due.run_id]
        call = run.call(due.call_id)
        if call is None or due.call_id in self._dispatching:
            return False
        if call.token is None:
            self._dispatching.add(due.call_id)
            event = m.CallDispatched(due.run_id, due.life, due.call_id, self._token)
            self._station.append(self.partition, event)
            return False
        if call.token == self._token:
            self._settle(due)  # even if no acknowledgement ever comes
            return True
        return False

    def _settle(self, due: CallDue | AnswerDue) -> None:
        self._acked.setdefault((due.run_id, due.life), set()).add(due)

    def _record(self, due: Publication) -> Outgoing | None:
        """What is to be sent, or None if it is no longer wanted or cannot be made."""
        try:
            return self._made(due)
        except Exception as error:
            log.exception("%s cannot be made", due)
            self._not_published(due, error)
            return None

    def _made(self, due: Publication) -> Outgoing | None:
        if isinstance(due, NoteDue):
            note = self.state.notes[due.cause]
            return response_record(self._station, note.run_id, note.reply_to, note_answer(note))
        run = self.state.runs.get(due.run_id)
        if run is None or run.life != due.life:
            return None
        if isinstance(due, CallDue):
            return call_record(self._station, self.partition, run, due.call_id)
        return response_record(self._station, run.run_id, run.addresses[due.index].reply_to, self._answer(run))

    def _answer(self, run: Run) -> bytes:
        life = (run.run_id, run.life)
        body = self._answered.get(life)
        if body is None:
            body = self._answered[life] = answer(run)
        return body

    def _published(self, due: Publication, sent: asyncio.Future[Acked]) -> None:
        self._sending.discard(due)
        if sent.cancelled():  # as good as lost: it may not count as published
            return
        if (error := sent.exception()) is not None:
            self._not_published(due, error)
            return
        if isinstance(due, NoteDue):
            self.state.notes.pop(due.cause, None)
            self.state.note_links.pop(due.cause, None)
            return
        run = self.state.runs.get(due.run_id)
        if run is not None and run.life == due.life:
            self._settle(due)
            self._close(run)

    def _not_published(self, due: Publication, error: BaseException) -> None:
        """Nothing was written, and sending it again as it is would not help."""
        log.error("%s could not be published: %s", due, error)
        if isinstance(due, CallDue):
            if due.at_most_once and isinstance(error, BrokerError):
                return  # it may have been: its deadline answers "outcome unknown"
            body = dump(m.ToolResult(f"the call could not be handed to a worker: {error}"))
            event = m.ToolReturned(due.run_id, due.life, due.call_id, "error", body)
            self._station.append(self.partition, event)
        elif isinstance(error, BrokerError):
            self._timers.arm(("again", due), self._station.clockwork.now() + 5 * AGAIN_S)
        elif isinstance(due, AnswerDue) and (run := self.state.runs.get(due.run_id)) is not None:
            self._answered[run.run_id, run.life] = answer(run, brief=True)
            self._publish(due)

    # --- the end of a run -------------------------------------------------------------------------------------------

    def _unanswered(self, run: Run) -> bool:
        return any(not self._is_settled(due) for due in effects.publications(run))

    def _close(self, run: Run) -> None:
        """Once it is answered, keep no more of a run than its answer, and of those not too many."""
        if run.open or self._unanswered(run):
            return
        life = (run.run_id, run.life)
        self._needed.pop(life, None)
        for call_id in [call_id for turn in run.turns for call_id in turn.calls]:
            self._timers.disarm(("call", *life, call_id))
        self._timers.disarm(("run", *life))
        if life in self._answered:  # else it was answered before our time, and may be asked for again
            run.turns.clear()
        self._acked[life] = {due for due in self._acked.get(life, ()) if isinstance(due, AnswerDue)}
        self._remembered[life] = None
        while len(self._remembered) > REMEMBERED:
            self._forget(next(iter(self._remembered)))

    def _forget(self, life: Life) -> None:
        del self._remembered[life]
        run = self.state.runs.get(life[0])
        if run is not None and run.life == life[1]:
            if self._unanswered(run):
                return  # somebody has asked for it again: it comes back when that is answered
            del self.state.runs[life[0]]
        self._answered.pop(life, None)
        self._acked.pop(life, None)

    # --- timers -------------------------------------------------------------------------------------------------------

    def _arm(self, run: Run) -> None:
        self._timers.arm(("run", run.run_id, run.life), run.opening.deadline + 0.001)
        if (batch := run.batch) is None:
            return
        for call_id, call in batch.calls.items():
            if call.due is not None and call.result is None and call.planned.deadline_s is not None:
                self._timers.arm(("call", run.run_id, run.life, call_id), run.deadline_of(call) + 0.001)

    def _ring(self, key: Hashable) -> None:
        """A time has come by our clock. Whether it has by the broker's, the fold will say; until then, again."""
        if not self.live or not isinstance(key, tuple):
            return
        if key[0] == "again":
            self._publish(key[1])
            return
        run = self.state.runs.get(key[1])
        if run is None or run.life != key[2] or not run.open or run.parked:
            return
        if key[0] == "run":
            event: m.Event = m.RunExpired(run.run_id, run.life, "the run's deadline has passed")
        elif (call := run.call(key[3])) is not None and call.result is None:
            reason = f"{call.planned.tool} had no result {call.planned.deadline_s:g} s after it was published"
            event = m.CallExpired(run.run_id, run.life, key[3], reason)
        else:
            return
        self._station.append(self.partition, event)
        self._timers.arm(key, self._station.clockwork.now() + AGAIN_S)

    # --- the commit -------------------------------------------------------------------------------------------------

    def commit(self, metadata_kept: bool) -> Commit | None:
        """What may be committed now; None while silent."""
        if not self.live or self.state.next_request is None:
            return None
        low, next_request = self._low()
        if not metadata_kept:
            link = self.state.link if self.state.link is not None else self.state.began
            low = min(low, link)
        return Commit(low, self._done_now(), next_request)

    def _low(self) -> tuple[int, int]:
        """The oldest event that is still needed, and `next_request` as of there."""
        firsts = [
            (run.first, run.next_as_of_first) for run in self.state.runs.values() if run.open or self._unanswered(run)
        ]
        firsts += [(offset, self.state.note_links[offset]) for offset in self.state.notes]
        return min(firsts, default=(self.state.position, self.state.next_request or 0))

    def _wanted(self) -> Iterator[Publication]:
        for run in self._needed.values():
            yield from effects.publications(run)
        for cause in self.state.notes:
            yield NoteDue(cause)

    def _done_now(self) -> int:
        wanted = (
            due.cause
            for due in self._wanted()
            if not (isinstance(due, CallDue) and due.at_most_once) and not self._is_settled(due)
        )
        return min(wanted, default=self.state.position)
