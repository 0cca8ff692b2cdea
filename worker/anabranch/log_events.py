"""The events of the run log, `agent.log`, and what their bodies hold.

Frozen values and nothing else: no I/O and no clock. `codec` turns them into records and back, `agent/fold.py` says what
each of them changes; `schemas/` is generated from their bodies (`contract/records.py`). Times are epoch seconds as
floats, durations are seconds, sizes are bytes, offsets are ints. `messages.py` has what travels on the other topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Final, Literal

from pydantic import Field

from anabranch.fields import Content, Delivery, Json, Lane, OnError, Partition, Positive, Reference, Seal, Sealed, says
from anabranch.messages import ReplyTo, RunError, RunRequest, Usage
from anabranch.values import frozen

ReplyOutcome = Literal["calls", "final", "pause", "stopped"]
ResultOutcome = Literal["ok", "error", "timeout", "unknown"]
NoteCode = Literal["rejected", "moved", "duplicate", "cancelled"]

# --- requests that were taken up --------------------------------------------------------------------------


@frozen()
class RunLimits:
    """The limits of one run, decided at its admission."""

    max_turns: Annotated[int, says("How many turns the run may take")]
    max_cost_usd: Annotated[float | None, says("How many dollars; null: no limit")] = None


@frozen()
class Opening:
    """The body of `run.requested`. `deadline` and `requested_at` are epoch seconds."""

    request: Annotated[RunRequest, says("The request as it was admitted")]
    revision: Annotated[str, says("The agent's revision that the run keeps")]
    deadline: Annotated[float, Field(allow_inf_nan=False), says("Epoch seconds")]
    limits: Annotated[RunLimits, says("The run's own limits")]
    requested_at: Annotated[float, says("Epoch seconds of the request's record")]


@frozen()
class RunRequested:
    """`after` and `after_bulk` are the lanes' next requests that it presumes; None: whatever the bulk lane's is.

    `trace` is the `traceparent` of the run's trace, if it has one. `opening_json` is the opening as it is written, if
    whoever made the event has just done so; it does not travel, and `size` is its length in bytes.
    """

    run_id: str
    life: str
    after: int
    request_offset: int
    opening: Opening
    size: int = 0
    lane: Lane = "interactive"
    after_bulk: int | None = None
    trace: str | None = None
    opening_json: bytes | None = field(default=None, compare=False)


@frozen()
class RequestNoted:
    """A request that opened no run. `error` is null, or what its answer will say; it presumes as `RunRequested`."""

    run_id: str
    life: str
    after: int
    request_offset: int
    code: NoteCode
    error: RunError | None = None
    reply_to: ReplyTo | None = None
    lane: Lane = "interactive"
    after_bulk: int | None = None
    trace: str | None = None


# --- the model's replies ---------------------------------------------------------------------------------


@frozen()
class Tried:
    """An attempt of a model call, or several that are told as one, of which the first is described."""

    model: Annotated[str, says("Which model was asked")]
    at: Annotated[float, says("Epoch seconds when it began, by the worker's clock")]
    took_s: Annotated[float, says("Until it was over, in seconds")]
    failure: Annotated[str | None, says("rate_limit, overload, server, transport, ...; null: it replied")] = None
    reason: Annotated[str | None, says("Why it came to nothing")] = None
    times: Annotated[int, says("So many attempts, the first of which began at `at`")] = 1


@frozen()
class AttemptUsage(Usage):
    """What an attempt used, as an event's header says it; the fields that come on top are the event's."""

    model: Annotated[str | None, says("Which model was asked; null: the agent's own")] = None
    tried: Annotated[tuple[Tried, ...] | None, says("The attempts that no event named before, this one last")] = None

    @classmethod
    def of(cls, usage: Usage, model: str | None, tried: tuple[Tried, ...]) -> AttemptUsage:
        counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens)
        return cls(*counts, usage.cache_creation_input_tokens, usage.cost_usd, model, tried or None)


@frozen()
class ModelFailure(RunError):
    """The body of `model.failed`."""

    tried: Annotated[tuple[Tried, ...] | None, says("The attempts that no event named before")] = None


@frozen()
class PlannedCall:
    """One entry of a reply's plan. `after` holds call ids; `rejected` is the text of an error result."""

    call_id: Annotated[str, says("<run_id>/<turn>.<attempt>/<index>; opaque to all others")]
    tool_use_id: Annotated[str, says("The model's id of the call")]
    tool: Annotated[str, says("The tool's name")]
    queue: Annotated[str | None, says("Where the call is published; null if it is rejected")] = None
    key: Annotated[str | None, says("The record's key: the call id, or a hash of the serial key")] = None
    delivery: Annotated[Delivery, says("What a crash may do to the call")] = "at_least_once"
    deadline_s: Annotated[Positive | None, says("Seconds from publication; null: the run's deadline")] = None
    on_error: Annotated[OnError, says("abort: an error of this call ends the run")] = "return"
    after: Annotated[list[str], says("Call ids of the same batch that must have their results first")] = field(
        default_factory=list
    )
    rejected: Annotated[str | None, says("Why the call is not run: the text of its error result")] = None
    partition: Annotated[Partition | None, says("Of the queue; null: by the key")] = None
    rejected_sealed: Annotated[Seal | None, says("What rejected says, sealed; that is then a word in its place")] = None


@frozen()
class ModelReplied:
    """`body` is the provider's message, verbatim. `code` is why the run ends, if the body does not say it. `model` made
    it, None: the agent's own.

    `inputs` are those of its calls by tool_use id, if whoever made the event has just read them, and `plan_json` is the
    plan as it is written; they do not travel. `tried` are the attempts that no event has named before, this one last;
    empty if there was no other.
    """

    run_id: str
    life: str
    turn: int
    attempt: str
    outcome: ReplyOutcome
    plan: tuple[PlannedCall, ...]
    usage: Usage
    body: bytes
    inputs: Mapping[str, dict[str, Json]] | None = field(default=None, compare=False)
    plan_json: bytes | None = field(default=None, compare=False)
    code: str | None = None
    model: str | None = None
    tried: tuple[Tried, ...] = ()


@frozen()
class ModelFailed:
    """`tried` are the attempts that no event has named before."""

    run_id: str
    life: str
    turn: int
    attempt: str
    error: RunError
    tried: tuple[Tried, ...] = ()


@frozen()
class ModelDiscarded:
    """An attempt that came to nothing, and what was paid for it; `model` and `tried` are as in `ModelReplied`."""

    run_id: str
    life: str
    turn: int
    attempt: str
    usage: Usage
    reason: str
    model: str | None = None
    tried: tuple[Tried, ...] = ()


@frozen()
class ModelHandedOff:
    run_id: str
    life: str
    turn: int
    worker: str
    for_s: float


# --- calls of tools --------------------------------------------------------------------------------------


@frozen()
class ToolReturned:
    """`body` is a `ToolResult` in JSON; it stays bytes until the next model call needs it."""

    run_id: str
    life: str
    call_id: str
    outcome: ResultOutcome
    body: bytes


OUTCOME_UNKNOWN: Final = (
    "outcome unknown: the worker that had this call was lost. It may or may not have taken effect, "
    "and it is not repeated. Check before you try again."
)
"""What the model is told of an at-most-once call that may have been executed, or not."""


@frozen()
class ToolResult:
    """The body of `tool.returned`: `content`, or what is in its place. Times are epoch seconds."""

    content: Annotated[Content | None, says("What the model gets: text, or content blocks")] = None
    started_at: Annotated[float | None, says("Epoch seconds")] = None
    finished_at: Annotated[float | None, says("Epoch seconds")] = None
    tries: Annotated[int, says("How many times the call was tried, from 1")] = 1
    worker: Annotated[str | None, says("Who executed it")] = None
    content_ref: Annotated[Reference | None, says("Instead of content: the content, JSON in the store")] = None
    content_sealed: Annotated[Sealed | None, says("Instead of both: the content, JSON, sealed")] = None


@frozen()
class CallsHandedOff:
    """Names no run: a tool worker tells a partition which of its calls it goes on with."""

    worker: str
    for_s: float
    calls: tuple[str, ...]


@frozen()
class CallLost:
    """`handoff` is the offset of the hand-off whose time is up."""

    run_id: str
    life: str
    call_id: str
    handoff: int


@frozen()
class CallExpired:
    run_id: str
    life: str
    call_id: str
    reason: str


@frozen()
class CallDispatched:
    run_id: str
    life: str
    call_id: str
    token: str


# --- the end of a run, and the partition -----------------------------------------------------------------


@frozen()
class RunCancelled:
    """The only event that may name no life: a client does not know it.

    `before` and `before_bulk` are where the cancel stands among the requests of each lane: requests for the run that
    lie below, and are not taken up yet, shall open none that goes on.
    """

    run_id: str
    life: str | None
    reason: str
    before: int | None = None
    before_bulk: int | None = None


@frozen()
class RunExpired:
    """`attempt` is the model call that nobody waits for any more, if there was one, and `usage` what it had used."""

    run_id: str
    life: str
    reason: str
    attempt: str | None = None
    usage: Usage | None = None
    model: str | None = None
    tried: tuple[Tried, ...] = ()


@frozen()
class PartitionReleased:
    done: int


@frozen()
class RunSnapshot:
    """One of the `parts` of a run as it was at `as_of`, said again. `author` is who wrote it.

    `schema` names the body's version, if it is another than ours. `next_request` and `next_bulk` are as of there.
    """

    run_id: str
    life: str
    as_of: int
    next_request: int
    part: int
    parts: int
    author: str
    body: bytes
    schema: str | None = None
    next_bulk: int | None = None


@frozen()
class UnknownEvent:
    """A type of a later version, or one whose body cannot be read: it parks its run."""

    type: str
    run_id: str | None
    life: str | None
    reason: str


Event = (
    RunRequested
    | RequestNoted
    | ModelReplied
    | ModelFailed
    | ModelDiscarded
    | ToolReturned
    | ModelHandedOff
    | CallsHandedOff
    | CallLost
    | CallExpired
    | CallDispatched
    | PartitionReleased
    | RunCancelled
    | RunExpired
    | RunSnapshot
    | UnknownEvent
)
