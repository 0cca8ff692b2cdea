"""What the fold has made of a partition's log: its runs, their turns, their calls.

Plain values that only `fold` changes. Everything here follows from the log alone, so two workers that read
the same records hold the same state. Replies and results stay bytes. `at` is always the broker's time of an
event in epoch seconds, `offset` its place in the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from anabranch.fields import Json, Lane
from anabranch.log_events import Opening, PlannedCall, ReplyOutcome, RequestNoted, ResultOutcome
from anabranch.messages import ReplyTo, RunError, Status, Usage
from anabranch.values import frozen

Life = tuple[str, str]
"""One life of a run, as whoever keeps something of it names it: the run's id, and `Run.life`."""


class Nexts(NamedTuple):
    """Where something is among the requests of both lanes: which is the next; None: nothing read so far tells."""

    interactive: int | None = None
    bulk: int | None = None

    def of(self, lane: Lane) -> int | None:
        return self.bulk if lane == "bulk" else self.interactive

    def after(self, lane: Lane, request_offset: int) -> Nexts:
        """Once this request has been taken up."""
        reached = request_offset + 1
        return Nexts(self.interactive, reached) if lane == "bulk" else Nexts(reached, self.bulk)

    def or_else(self, told: Nexts) -> Nexts:
        """What is not told here, from there."""
        (interactive, bulk), (other, other_bulk) = self, told
        return Nexts(other if interactive is None else interactive, other_bulk if bulk is None else bulk)

    def is_past(self, others: Nexts) -> bool:
        """Whether no request below `others` is still to come."""
        (interactive, bulk), (other, other_bulk) = self, others
        return (other is None or (interactive is not None and interactive >= other)) and (
            other_bulk is None or (bulk is not None and bulk >= other_bulk)
        )


@frozen()
class Cancel:
    """A cancel that stands `before` some requests, of which not all are taken up: its run's may be among them.

    `offset` and `at` are those of the event that said it last, and `nexts` is as of there.
    """

    before: Nexts
    reason: str
    offset: int
    at: float
    nexts: Nexts

    def is_of(self, lane: Lane, request_offset: int) -> bool:
        before = self.before.of(lane)
        return before is not None and request_offset < before


@frozen()
class Result:
    """What a call came to: a tool's `body`, or a `text` that the fold gives in a tool's stead."""

    outcome: ResultOutcome
    at: float
    body: bytes | None = None
    text: str | None = None

    @property
    def failed(self) -> bool:
        return self.outcome != "ok"


@frozen()
class HandOff:
    """Somebody who lost a partition goes on with a call for `for_s` seconds from the event at `offset` on, which is of
    `at`; a snapshot of before does not say when that was (0).
    """

    worker: str
    offset: int
    for_s: float
    at: float = 0.0

    def left_s(self, at: float) -> float:
        """What is left of it by the broker's time `at`: it does not begin anew with each owner who reads it."""
        return max(0.0, self.for_s - max(0.0, at - self.at)) if self.at else self.for_s


@dataclass(slots=True)
class Call:
    """One call of a batch. `due` is the offset that made its publication due; None: it waits for others."""

    planned: PlannedCall
    due: int | None = None
    due_at: float = 0.0
    dispatch: int = 1
    token: str | None = None
    hand_off: HandOff | None = None
    result: Result | None = None

    @property
    def failed(self) -> bool:
        return self.result is not None and self.result.failed


@dataclass(slots=True)
class Turn:
    """A reply that won, and the calls that it asked for, by call id and in their order. `model` made it, None: the
    agent's own.
    """

    number: int
    attempt: str
    outcome: ReplyOutcome
    body: bytes
    replied_at: float
    calls: dict[str, Call] = field(default_factory=dict)
    finished_at: float | None = None
    inputs: Mapping[str, dict[str, Json] | str] | None = field(default=None, compare=False)  # as `body` has them
    usage: Usage = field(default_factory=Usage)
    model: str | None = None


@frozen()
class Ending:
    """How a run ended, and where. Without an error a failed run's code is in its last reply's stop reason."""

    status: Status
    offset: int
    at: float
    error: RunError | None = None


@frozen()
class Address:
    """Somebody who wants the answer. `cause` is the offset that made it due, once the run has ended."""

    reply_to: ReplyTo | None
    cause: int | None = None


@dataclass(slots=True)
class Run:
    """One life of a run. It is open until `ending`; `first`, of `first_at`, is the oldest event that it needs."""

    run_id: str
    life: str
    first: int
    next_as_of_first: int
    opened_at: float
    opening: Opening
    turn: int = 1
    owed: bool = True
    owed_at: float = 0.0
    owed_offset: int = 0
    turns: list[Turn] = field(default_factory=list)
    hand_offs: dict[str, HandOff] = field(default_factory=dict)
    addresses: list[Address] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    discarded: Usage = field(default_factory=Usage)
    discards: set[str] = field(default_factory=set)  # the attempts that are in `discarded`
    first_at: float = 0.0
    model_s: float = 0.0
    tools_s: float = 0.0
    size: int = 0
    stirred: int = field(default=0, compare=False)  # where something last became due
    ending: Ending | None = None
    parked: str | None = None
    bulk_as_of_first: int | None = field(default=None, compare=False)  # how much is known depends on where one began
    trace: str | None = None  # the `traceparent` of its trace; opaque to the fold

    @property
    def nexts_as_of_first(self) -> Nexts:
        return Nexts(self.next_as_of_first, self.bulk_as_of_first)

    @property
    def open(self) -> bool:
        return self.ending is None

    @property
    def batch(self) -> Turn | None:
        """The turn whose calls are out, if any."""
        return self.turns[-1] if self.turns and not self.owed and self.ending is None else None

    def call(self, call_id: str) -> Call | None:
        """The call of that id in the batch that is out."""
        if self.owed or self.ending is not None or not self.turns:
            return None
        return self.turns[-1].calls.get(call_id)

    def deadline_of(self, call: Call) -> float:
        """When a published call is past its time, in epoch seconds."""
        own = call.planned.deadline_s
        return self.opening.deadline if own is None else min(self.opening.deadline, call.due_at + own)


class SpentCancel(NamedTuple):
    """A cancel at `offset`, with the lanes' next requests as of there, that ended a run which was `opened` after it.
    Whoever begins to fold between the two would take that run for an open one.
    """

    offset: int
    nexts: Nexts
    opened: int


@dataclass(slots=True)
class Collecting:
    """The parts of a snapshot that have come so far; `offset` is the last one's."""

    author: str
    as_of: int
    offset: int
    parts: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Partition:
    """A partition of the run log, folded up to `position`, from `began` on; `at` is when its last event was written.

    `next_request` is the interactive lane's; `link` and `bulk_link` are where either lane's last moved, and `told` is
    what they were when they were first known. `notes` are the rejected requests by their event's offset, and
    `note_links` the lanes' next requests as of there; runs that have ended stay in `runs` until the owner forgets them.
    `last` is where each run's last event lies, from `began` on, whether it counted or not.
    """

    began: int = 0
    position: int = 0
    next_request: int | None = None
    link: int | None = None
    done: int = 0
    runs: dict[str, Run] = field(default_factory=dict)
    notes: dict[int, RequestNoted] = field(default_factory=dict)
    note_links: dict[int, Nexts] = field(default_factory=dict)
    cancels: dict[str, Cancel] = field(default_factory=dict)  # by run, those said last at the end
    spent: list[SpentCancel] = field(default_factory=list, compare=False)  # for the owner, which forgets them
    last: dict[str, int] = field(default_factory=dict, compare=False)  # like the position, it always moves
    collecting: dict[str, Collecting] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list, compare=False)  # for the owner to tell, and to clear
    next_bulk: int | None = None
    bulk_link: int | None = None
    told: Nexts = field(default=Nexts(), compare=False)
    at: float = field(default=0.0, compare=False)

    @property
    def nexts(self) -> Nexts:
        return Nexts(self.next_request, self.next_bulk)

    def waiting_cancels(self) -> Iterator[tuple[str, Cancel]]:
        """Those whose request may still come; the fold forgets the others one by one."""
        nexts = self.nexts
        return ((run_id, cancel) for run_id, cancel in self.cancels.items() if not nexts.is_past(cancel.before))

    def tell(self, interactive: int | None, bulk: int | None) -> None:
        """What the lanes' next requests are, as far as that is not known."""
        if self.next_request is not None and self.next_bulk is not None and None not in self.told:
            return
        nexts = Nexts(interactive, bulk)
        self.told = self.told.or_else(nexts)
        self.next_request, self.next_bulk = self.nexts.or_else(nexts)
