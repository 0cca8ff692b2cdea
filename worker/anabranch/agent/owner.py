"""The owner of one partition: folds its log, and does what the fold wants done.

Silent until it has folded up to the end that was captured when the partition was assigned; from there on it
performs an effect if the fold still wants it, it is not in flight here, and every record of ours that could
settle it has been read back. It decides nothing about a run: it appends, and the fold decides. `worker.py`
feeds it; `agent/admission/admission.py` takes the requests up, `agent/model/calling.py` makes the model calls,
`handed_off.py` knows those of others, `publishing.py` publishes the rest, and `answered.py` lets go of what is over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from anabranch import log_events as e
from anabranch.agent import cleaning, deadlines, effects, fold
from anabranch.agent.admission.room import Held, Room
from anabranch.agent.alarms import Alarms
from anabranch.agent.answered import REMEMBERED, Closing
from anabranch.agent.cleaning import Cleaner
from anabranch.agent.commit import Commit
from anabranch.agent.deadlines import Moment
from anabranch.agent.effects import NoteDue
from anabranch.agent.handed_off import HandedOff
from anabranch.agent.model.calling import ModelCalls
from anabranch.agent.needed import Needed
from anabranch.agent.publishing import Publisher
from anabranch.agent.reach import Reach
from anabranch.agent.reading import event_in
from anabranch.agent.state import Life, Nexts, Partition, Run
from anabranch.agent.station import Station
from anabranch.agent.telemetry.audience import Audience
from anabranch.agent.telemetry.tally import waiting_call
from anabranch.codec import Record
from anabranch.kafka.sent import Acked, Sent
from anabranch.values import frozen

log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
HEADERS: Final = 300
"""Bytes of a record beside its body, about."""


class _Acknowledged(NamedTuple):
    """An event of ours of which the broker has said where it lies, and when that was, in epoch seconds."""

    event: e.Event
    size: int
    at: float


@frozen()
class Hooks:
    """What an owner tells its worker: that it is live, that it must know the log's end to go on, that it waits for a
    commit. `may_act` says whether the group still counts us in, as far as we know.
    """

    on_live: Callable[[Owner], None]
    on_time_up: Callable[[Owner, Moment], None]
    may_act: Callable[[], bool]
    commit_soon: Callable[[], None]


class Owner:
    """See the module. `calls` outlives it: they are the process's, not the fold's."""

    def __init__(self, partition: int, station: Station, calls: ModelCalls, hooks: Hooks) -> None:
        self.partition, self._station, self._calls, self._hooks = partition, station, calls, hooks
        self.state = Partition()
        self.live = False
        self.on_link: Callable[[], None] = lambda: None  # hears of each event that takes a request up
        self._giving_up = False
        self._first = Nexts()  # the oldest requests that may not have been taken up
        self._end = 0
        self._needed = Needed()
        self._publisher = Publisher(partition, station, self.state)
        age_s, now = station.settings.snapshot_age_s, station.clockwork.now
        self.reach = Reach(self.state, self._needed, self._publisher.is_settled, age_s, now, hooks.commit_soon)
        self._alarms = Alarms(station.clockwork, self._ring)
        self._told: set[Moment] = set()  # what the broker has not acknowledged
        self._handed_off = HandedOff(station, self._alarms)
        self._closing = Closing(self.state, self._needed, self.reach, self._publisher, self._alarms)
        self._publisher.on_settled = self._closing.close
        self._acked: dict[int, _Acknowledged] = {}  # events of ours that have not been read back
        self._cleaner = Cleaner(station.settings)
        self._said_again: Sent | None = None
        self._audience = Audience(partition, station)
        self._parked: set[Life] = set()
        room = Room(station.settings.max_partition_bytes, freed=station.room.freed, within=station.room)
        self.held = Held(room)

    # --- assignment -----------------------------------------------------------------------------------------

    def begin(self, commit: Commit | None, log_begin: int, end: int, requests: Nexts) -> int:
        """Before all else, and once: fold from the commit or the log's start. Returns the offset to read from;
        `requests` are the oldest that may not have been taken up.
        """
        low = max(commit.low, log_begin) if commit is not None else log_begin
        self.state.began = self.state.position = low
        self._first = requests
        if commit is not None:
            self._publisher.done = commit.done
            bulk = max(requests.bulk or 0, commit.bulk_reached, commit.next_bulk)
            self._first = Nexts(max(requests.interactive or 0, commit.next_request), bulk)
            if commit.low >= log_begin:  # else it was of a record that is gone: the log itself must tell
                self.state.tell(*commit.nexts)
        self._calls.begin()
        position = self.resume(end)
        self._audience.begin(end)
        return position

    def resume(self, end: int) -> int:
        """Go on with the fold there is; silent up to `end`. Returns the offset to read from."""
        self._end = end
        self._audience.begin(self.state.position)
        self.live = self._giving_up = False
        self._acked.clear()
        self._handed_off.read_on.clear()
        self._calls.wanted = self._wanted_call
        self._calls.begin_early = self._publisher.early.begin
        self._station.heard[self.partition] = self.acknowledged
        return self.state.position

    def suspend(self) -> None:
        """The partition is no longer ours: start nothing more. What is in flight goes on."""
        self.live = self._giving_up = False
        self._alarms.clear()
        self._publisher.stop()

    def drop(self) -> None:
        """It did not come back: forget the fold, and give its room back."""
        self.suspend()
        self._calls.wanted = lambda life, turn: None
        self._station.heard.pop(self.partition, None)
        self.held.clear()

    def caught_up(self, position: int) -> None:
        """Everything below `position` has been read."""
        self.state.position = max(self.state.position, position)
        if not self.live and self.state.position >= self._end:
            self._go_live()

    def _go_live(self) -> None:
        self.live = True
        self.state.tell(*self._first)
        for run in list(self.state.runs.values()):
            self._act(run)
        for offset in list(self.state.notes):
            self._publisher.publish(NoteDue(offset))
        self._audience.live()
        self._hooks.on_live(self)

    # --- giving the partition up: start nothing more, and tell the next owner what goes on ----------------------

    def give_up(self) -> None:
        """From here on only what has been folded is published."""
        self._giving_up = self.live
        self._alarms.clear()

    @property
    def has_dispatches_to_read(self) -> bool:
        return self._giving_up and self._publisher.dispatching

    def under_way(self) -> list[Sent]:
        """The publications that are not acknowledged."""
        return self._publisher.under_way()

    def hand_off(self, for_s: float) -> list[Sent]:
        """Append who goes on with what, and how far the publications are done."""
        sent = self._calls.hand_off(for_s)
        if self.live:
            sent.append(self._station.append(self.partition, e.PartitionReleased(self.reach.done())))
        return sent

    # --- folding ----------------------------------------------------------------------------------------------

    def fold(self, records: Sequence[Record]) -> None:
        """Fold what was read, and what is known to follow it, then act on the runs that they spoke of."""
        touched: dict[Life, Run] = {}
        station, partition, runs, done = self._station, self.partition, self.state.runs, self._publisher.done
        for record in records:
            if (offset := record.offset) >= self.state.position:
                known = self._acked.pop(offset, None) if self._acked else None
                event = event_in(record, station, partition, runs, done) if known is None else known.event
                self._fold_event(event, offset, record.timestamp / 1000, len(record.value or b""), touched)
        while self._acked and (known := self._acked.pop(self.state.position, None)) is not None:
            self._fold_event(known.event, self.state.position, known.at, known.size, touched)
        self._act_on(touched)

    def acknowledged(self, event: e.Event, size: int, acked: Acked) -> None:
        """The broker has an event of ours, of `size` bytes. Once it is the very next to be read, it counts as read."""
        if not self.live or self._giving_up or acked.offset is None or acked.at_ms is None:
            return
        if acked.offset >= self.state.position:
            self._acked[acked.offset] = _Acknowledged(event, size, acked.at_ms / 1000)
            if acked.offset == self.state.position:
                self.fold(())

    def _act_on(self, touched: dict[Life, Run]) -> None:
        if self.reach.asked:
            self.reach.let_go()
        if self.live:
            for run in touched.values():
                self._act(run)
            if self._handed_off.read_on:
                self._go_on_after_time_up()
        else:
            self.caught_up(self.state.position)

    def _fold_event(self, event: e.Event | None, offset: int, at: float, size: int, touched: dict[Life, Run]) -> None:
        """Fold it, tell whoever has to know, and note which runs are to be acted on then."""
        self._cleaner.size.add(offset, size + HEADERS)
        if event is None:
            fold.apply(self.state, None, offset, at)
            return
        before = self.state.runs.get(getattr(event, "run_id", ""))
        waiting = waiting_call(before, event) if before is not None else None
        run = fold.apply(self.state, event, offset, at)
        self._audience.folded(event, run, waiting, offset, at, self.live)
        if self._publisher.early.speaking:
            self._publisher.early.read(event)
        if self.state.defects:
            self._say_defects(event)
        if before is not None and before is not run:
            self._replaced(before)
        is_result = type(event) is e.ToolReturned
        if not is_result:
            self._heed(event, run, offset, touched)
        if run is not None:
            self.held.account(run)
            if run.stirred >= offset or not is_result:  # else its siblings are waited for, or it is over
                self._needed.folded(run)
                touched[run.run_id, run.life] = run
                if run.parked:
                    self._parked.add((run.run_id, run.life))

    def _heed(self, event: e.Event, run: Run | None, offset: int, touched: dict[Life, Run]) -> None:
        """What its kind asks for."""
        match event:
            case e.ModelReplied() | e.ModelFailed():
                self._calls.read_back(event, run)
            case e.RunRequested():
                self.on_link()
            case e.RequestNoted():
                self.on_link()
                if self.live and event.code == "rejected":
                    self._publisher.publish(NoteDue(offset))
            case e.CallDispatched():
                self._publisher.read_back(event)
            case e.CallsHandedOff():
                held = [run for call in event.calls if (run := self.state.runs.get(fold.run_of(call))) is not None]
                touched.update({(run.run_id, run.life): run for run in held})
            case e.UnknownEvent():
                what = self._about(event)
                parked = f"run {event.run_id} is parked" if run is not None and run.parked else "of no open run"
                log.error("offset %d: %s: %s", offset, event.reason, parked, extra=what)

    def _say_defects(self, event: e.Event) -> None:
        for defect in self.state.defects:
            log.critical("partition %d: %s", self.partition, defect, extra=self._about(event))
        self.state.defects.clear()

    def _about(self, event: e.Event) -> dict[str, object]:
        """What a log record of it is about."""
        return {"partition": self.partition, "run_id": getattr(event, "run_id", None)}

    def _replaced(self, run: Run) -> None:
        """Another life of it was opened: whatever this one still wanted is wanted no more."""
        life = (run.run_id, run.life)
        self._needed.drop(life)
        self._parked.discard(life)
        self._publisher.early.drop(life)
        self._calls.drop(life)

    @property
    def parked_runs(self) -> int:
        return len(self._parked)

    # --- acting -------------------------------------------------------------------------------------------------

    def _act(self, run: Run) -> None:
        """Whatever the fold wants of this run, and nobody here is doing yet."""
        call = effects.model_due(run)
        if not self._giving_up:
            self._calls.tell_surplus(run)
            if call is None or not run.hand_offs or self._may_call(run):
                self._calls.want(run, call)
        if call is None:
            for due in effects.publications(run):
                self._publisher.publish(due, may_dispatch=not self._giving_up)
        if self._publisher.early.speaking:
            self._publisher.early.look_at(run)
        if run.ending is not None:
            self._closing.close(run)
        elif not run.parked:
            for moment, when in deadlines.moments(run):
                self._alarms.at(moment, when)
            for moment, left_s in deadlines.handed_off(run, self.state.at):
                if self._alarms.after(moment, left_s):
                    self._station.meters.hand_offs.count("call", "waited")

    def _may_call(self, run: Run) -> bool:
        """Whether nobody else may still be on the call that was handed off; ours goes on in any case."""
        is_ours = self._calls.has((run.run_id, run.life), run.turn)
        return is_ours or self._handed_off.may_call(run, self.state)

    def _wanted_call(self, life: Life, turn: int) -> Run | None:
        """The run that owes this model call, if we may make it."""
        run = self.state.runs.get(life[0])
        if run is None or run.life != life[1] or not run.owed or run.turn != turn:
            return None
        if not self.live or self._giving_up:
            return None
        if not self._hooks.may_act():  # if the session turns out to be ours still, it has to be made after all
            self._alarms.after(Moment("again", *life), AGAIN_S)
            return None
        return run

    # --- timers -------------------------------------------------------------------------------------------------------

    def _ring(self, moment: Moment) -> None:
        """A time has come by our clock. Whether it has by the broker's, the fold will say; until then, again."""
        run = self.state.runs.get(moment.run_id)
        if not self.live or self._giving_up or run is None or run.life != moment.life or not run.open or run.parked:
            return
        if moment.what == "again":
            self._act(run)
        elif moment.what == "model":
            if self._handed_off.is_waited_for(run, moment):
                self._hooks.on_time_up(self, moment)
        elif (event := deadlines.event_at(run, moment)) is not None:
            if isinstance(event, e.RunExpired):
                event = self._calls.cut_short_by(event)
            if self._hooks.may_act():
                self._tell(moment, event)
            self._alarms.after(moment, AGAIN_S)

    def _tell(self, moment: Moment, event: e.Event) -> None:
        """Append it, unless it is on its way: while Kafka is gone that lasts, and copies would fill the memory."""
        if moment not in self._told:
            self._told.add(moment)
            sent = self._station.append(self.partition, event)
            sent.add_done_callback(lambda _: self._told.discard(moment))

    def read_on(self, moment: Moment, end: int) -> None:
        """The time of a hand-off is up, and the log ended at `end` then: up to there a reply may still stand."""
        self._handed_off.time_is_up(moment, end)
        self._go_on_after_time_up()

    def _go_on_after_time_up(self) -> None:
        if self.live:
            for run in self._handed_off.without_reply(self.state):
                self._act(run)

    # --- the commit -------------------------------------------------------------------------------------------------

    def commit(self, metadata_kept: bool) -> Commit | None:
        """What may be committed now; None while silent."""
        if not self.live or self.state.next_request is None:
            return None
        return self.reach.commit(metadata_kept)

    def committed(self, low: int) -> None:
        """The next owner will begin at `low`: what lies below is of interest to nobody any more."""
        state = self.state
        state.began = max(state.began, low)
        self.reach.committed(low)
        self._cleaner.size.forget_before(low)
        state.spent = [spent for spent in state.spent if spent.opened >= low]
        if len(state.last) > 2 * len(state.runs) + REMEMBERED:
            state.last = {run_id: offset for run_id, offset in state.last.items() if offset >= state.began}

    def clean(self, age_s: float) -> None:
        """Say open runs again, if the log from low on is mostly dead, or about to be eaten by retention; but not while
        the last of what was said so is on its way to a broker.
        """
        if not self.live or self._giving_up or not (self._said_again is None or self._said_again.done()):
            return
        now, station = self._station.clockwork.now(), self._station
        low, part_bytes = self.reach.low()[0], station.settings.snapshot_part_bytes
        runs, is_due = self._cleaner.choose(self._needed, low, self.held.open_bytes, now, age_s)
        for event in cleaning.snapshots(self.state, runs, station.worker_id, part_bytes):
            self._said_again = station.append(self.partition, event)
        for cancel in cleaning.cancels(self.state, math.inf if is_due else now - age_s):
            self._said_again = station.append(self.partition, cancel)
