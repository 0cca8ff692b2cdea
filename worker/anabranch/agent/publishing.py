"""The publications of one fold: tool calls and answers, each made until the broker has it.

A publication is settled by its acknowledgement, or by lying below *done*, which an owner before us has told.
At-most-once calls follow `call.dispatched` alone: only the token that the log has accepted publishes, once,
and never again. `Owner` says what the fold wants; nothing is decided about a run here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from anabranch import log_events as e
from anabranch.agent.answer import answer, brief_answer, note_answer
from anabranch.agent.early import Early
from anabranch.agent.effects import AnswerDue, CallDue, NoteDue, Publication, wanted
from anabranch.agent.large import is_for_the_store, large_answer
from anabranch.agent.outbox import call_record, response_record
from anabranch.agent.state import Life, Partition, Run
from anabranch.agent.station import Station
from anabranch.agent.telemetry.traces import AgentTraces, answer_header
from anabranch.bodies import dump
from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, StoreUnavailable
from anabranch.kafka.sent import Sent

log = logging.getLogger(__name__)

AGAIN_S: Final = 5.0


class Publisher:
    """See the module. `done` is what an owner before us has told; `on_settled` hears of each run one of whose
    publications has been acknowledged.
    """

    def __init__(self, partition: int, station: Station, state: Partition) -> None:
        self._partition, self._station, self._state = partition, station, state
        self.done = 0
        self.on_settled: Callable[[Run], None] = lambda run: None
        self._token = station.clockwork.new_id()  # of this process and takeover
        self._sending: dict[Publication, Sent] = {}
        self._acked: dict[Life, set[Publication]] = {}
        self._dispatching: set[str] = set()
        self._answers: dict[Life, bytes] = {}
        self._again: dict[Publication, asyncio.TimerHandle] = {}
        self._shortened: dict[Publication, str] = {}  # what could not be published as it was, and why
        self.early = Early(partition, station, state)
        self._storing: set[asyncio.Task[None]] = set()  # those of `_sending` that wait for the store

    # --- what is settled ------------------------------------------------------------------------------------------

    def is_settled(self, due: Publication) -> bool:
        if not isinstance(due, NoteDue) and due in self._acked.get((due.run_id, due.life), ()):
            return True
        if due.cause >= self.done and due.cause >= self._state.done:
            return False
        return not (isinstance(due, CallDue) and due.at_most_once)

    def under_way(self) -> list[Sent]:
        """What has been sent, and not been acknowledged."""
        return list(self._sending.values())

    @property
    def dispatching(self) -> bool:
        """Whether a `call.dispatched` of ours has not been read back."""
        return bool(self._dispatching)

    def read_back(self, event: e.CallDispatched) -> None:
        self._dispatching.discard(event.call_id)

    def has_answer(self, life: Life) -> bool:
        return life in self._answers

    def answer_bytes(self, life: Life) -> int:
        return len(self._answers.get(life, b""))

    def keep_answers_only(self, run: Run) -> None:
        """The run is over: what its calls came to is of no more interest, nor an answer that was asked for again."""
        life = (run.run_id, run.life)
        acked = self._acked.get(life, ())
        self._acked[life] = {due for due in wanted(run) if due in acked}

    def forget(self, life: Life) -> None:
        self._answers.pop(life, None)
        self._acked.pop(life, None)

    def stop(self) -> None:
        for timer in self._again.values():
            timer.cancel()
        self._again.clear()
        for task in self._storing:
            task.cancel()

    # --- publishing -------------------------------------------------------------------------------------------------

    def publish(self, due: Publication, may_dispatch: bool = True) -> None:
        """Send it, unless it is settled or under way."""
        if due in self._sending or self.is_settled(due):
            return
        if isinstance(due, NoteDue) and due.cause not in self._state.notes:
            return
        if isinstance(due, CallDue) and due.at_most_once and not self._dispatched(due, may_dispatch):
            return
        early = self.early.claim(due) if self.early.speaking and isinstance(due, CallDue) else None
        sent = early or self._sent(due)
        if sent is not None:
            self._sending[due] = sent
            if early is None and self._station.traces is not None and not isinstance(due, NoteDue):
                sent.add_done_callback(partial(self._trace, self._station.traces, due, self._station.clockwork.now()))
            sent.add_done_callback(partial(self._published, due))

    def _sent(self, due: Publication) -> Sent | None:
        """Sent, or None if it is no longer wanted or cannot be made."""
        try:
            if isinstance(due, NoteDue):
                note = self._state.notes[due.cause]
                body = note_answer(note)
                record = response_record(self._station, note.run_id, note.reply_to, body, note.trace)
                return self._station.send(record)
            run = self._state.runs.get(due.run_id)
            if run is None or run.life != due.life:
                return None
            if isinstance(due, CallDue):
                return self._call_sent(run, due)
            if (why := self._shortened.get(due)) is not None:
                self._answers[run.run_id, run.life] = brief_answer(run, why)
            elif self._is_large(run):
                return self._stored_and_sent(run, due)
            return self._station.send(self._response(run, due, self._answer(run)))
        except Exception as error:
            log.exception("%s cannot be made", due, extra=self._about(due))
            self._not_published(due, error)
            return None

    def _call_sent(self, run: Run, due: CallDue) -> Sent | None:
        call = run.call(due.call_id)
        if call is None or (queue := call.planned.queue) is None:
            return None
        record = call_record(self._station, self._partition, run, call)
        self._station.meters.calls_published.count(queue)
        self._station.saturation.published(queue)
        return self._station.send(record, due.at_most_once)

    def _dispatched(self, due: CallDue, may_dispatch: bool) -> bool:
        """At most once: the log is asked for it, and whether our token is the one that it has accepted is told once."""
        call = self._state.runs[due.run_id].call(due.call_id)
        if call is None or due.call_id in self._dispatching:
            return False
        if call.token is None and may_dispatch:
            self._dispatching.add(due.call_id)
            event = e.CallDispatched(due.run_id, due.life, due.call_id, self._token)
            self._station.append(self._partition, event)
        if call.token != self._token:
            return False
        self._settle(due)  # even if no acknowledgement ever comes
        return True

    def _settle(self, due: CallDue | AnswerDue) -> None:
        self._acked.setdefault((due.run_id, due.life), set()).add(due)

    def _response(self, run: Run, due: AnswerDue, body: bytes) -> Outgoing:
        reply_to = run.addresses[due.address].reply_to
        trace = None if run.trace is None else answer_header(self._station.traces, run, due.address)
        return response_record(self._station, run.run_id, reply_to, body, trace)

    def _is_large(self, run: Run) -> bool:
        """Whether its answer has to be put into the store, and is not known to be there."""
        return not self.has_answer((run.run_id, run.life)) and is_for_the_store(self._station.store, run)

    def _stored_and_sent(self, run: Run, due: AnswerDue) -> Sent:
        """What is large goes into the store, and the answer names it."""
        sent = Sent()
        storing = asyncio.create_task(self._send_large(run, due, sent), name=f"large answer of {due.run_id}")
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        storing.add_done_callback(lambda task: sent.cancel() if task.cancelled() else None)
        return sent

    async def _send_large(self, run: Run, due: AnswerDue, sent: Sent) -> None:
        try:
            body = self._answers[run.run_id, run.life] = await large_answer(self._station.store, run)
            sent.succeed(await self._station.send(self._response(run, due, body)))
        except Exception as error:  # noqa: BLE001 - `_published` decides what becomes of it
            sent.fail(error)

    def _answer(self, run: Run) -> bytes:
        life = (run.run_id, run.life)
        if (body := self._answers.get(life)) is None:
            body = self._answers[life] = answer(run)
        return body

    def _published(self, due: Publication, sent: Sent) -> None:
        self._sending.pop(due, None)
        if not sent.is_written:  # or cancelled: as good as lost, and it may not count as published
            if (error := sent.exception()) is not None:
                self._not_published(due, error)
            return
        if isinstance(due, NoteDue):
            self._state.notes.pop(due.cause, None)
            self._state.note_links.pop(due.cause, None)
            return
        run = self._state.runs.get(due.run_id)
        if run is not None and run.life == due.life:
            self._settle(due)
            self.on_settled(run)
        if self._shortened:
            self._shortened.pop(due, None)

    def _about(self, due: Publication) -> dict[str, object]:
        """What a log record of it is about."""
        named = due._asdict()
        return {"partition": self._partition, "run_id": named.get("run_id"), "call_id": named.get("call_id")}

    def _trace(self, traces: AgentTraces, due: CallDue | AnswerDue, began: float, sent: Sent) -> None:
        run = self._state.runs.get(due.run_id)
        if sent.is_written and run is not None and run.life == due.life:
            traces.published(run, due, began, sent.result())

    def _not_published(self, due: Publication, error: BaseException) -> None:
        """Nothing was written, and sending it again as it is would not help."""
        log.error("%s could not be published: %s", due, error, extra=self._about(due))
        if isinstance(due, CallDue):
            if due.at_most_once and isinstance(error, BrokerError):
                return  # it may have been: its deadline answers "outcome unknown"
            why = "Kafka does not take it" if isinstance(error, BrokerError) else str(error)
            body = dump(e.ToolResult(f"the call could not be handed to a worker: {why}"))
            event = e.ToolReturned(due.run_id, due.life, due.call_id, "error", body)
            self._station.append(self._partition, event)
        elif isinstance(error, BrokerError | StoreUnavailable):
            self._again[due] = asyncio.get_running_loop().call_later(AGAIN_S, self._try_again, due)
        elif isinstance(due, AnswerDue) and due not in self._shortened:
            self._shortened[due] = str(error)  # if what is left cannot be published either, somebody has to look
            self.publish(due)

    def _try_again(self, due: Publication) -> None:
        self._again.pop(due, None)
        self.publish(due)
