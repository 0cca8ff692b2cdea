"""What travels: requests, events of the run log, tool calls, responses.

Frozen values and nothing else: no I/O, no clock, and no import of ours. `codec` turns them into
records and back; `schemas/` is generated from them (`contract.BODIES`). Times are epoch seconds as floats,
durations are seconds, sizes are bytes, offsets are ints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from anabranch.values import frozen

NAME_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
REFERENCE_PATTERN = r"^sha256:[0-9a-f]{64};[0-9]{1,12}$"
Reference = Annotated[str, Field(pattern=REFERENCE_PATTERN)]
"""What lies in the store and not in the record: the hash and the size of its bytes (`references.py`)."""
SEAL_PATTERN = r"^[A-Za-z0-9._-]{1,64};[A-Za-z0-9+/]+={0,2}$"
Seal = Annotated[str, Field(pattern=SEAL_PATTERN)]
"""What only who has the tenant's key can read: the key's id and the ciphertext (`seals.py`)."""
Sealed = Annotated[str, Field(pattern=f"{REFERENCE_PATTERN}|{SEAL_PATTERN}")]
"""A seal, or a reference to one."""
_NAME = re.compile(NAME_PATTERN, re.ASCII)


def says(text: str) -> Any:
    """What the schemas tell of a field."""
    return Field(description=text)


Json = Any  # JSON that is not ours: a model's input, a tool's schema, a user's metadata
Content = str | list[dict[str, Json]]
Partition = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Delivery = Literal["at_least_once", "at_most_once"]
OnError = Literal["return", "abort"]
ReplyOutcome = Literal["calls", "final", "pause", "stopped"]
ResultOutcome = Literal["ok", "error", "timeout", "unknown"]
NoteCode = Literal["rejected", "moved", "duplicate", "cancelled"]
Lane = Literal["interactive", "bulk"]
Status = Literal["completed", "failed", "cancelled", "expired"]


def is_name(text: str) -> bool:
    """Whether `text` can be a run id, a tenant or the name of something."""
    return _NAME.fullmatch(text) is not None


# --- lanes ----------------------------------------------------------------------------------------

LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")
_BULK: Final = "bulk."


def life_of(lane: Lane, request_offset: int) -> str:
    """A request's offset, behind its lane's name unless that is `interactive`: the life of the run that it opens."""
    return f"{_BULK}{request_offset}" if lane == "bulk" else str(request_offset)


def lane_of(life: str) -> Lane:
    """The lane that a run came by."""
    return "bulk" if life.startswith(_BULK) else "interactive"


# --- agent.requests, agent.requests.bulk ------------------------------------------------------------


@frozen()
class ReplyTo:
    """The partition of `agent.responses` that a client reads."""

    partition: Annotated[Partition, says("A partition of agent.responses and of agent.stream")]


@frozen()
class RunRequest:
    """The body of a record in `agent.requests`: run an agent, or (`cancel`) stop a run."""

    run_id: Annotated[Name | None, says("Chosen by the client; the same one again joins the open run")] = None
    agent: Annotated[Name | None, says("The name of a registered agent")] = None
    input: Annotated[Content | None, says("The first user message: text, or content blocks")] = None
    messages: Annotated[list[dict[str, Json]] | None, says("Instead of input: a conversation to go on with")] = None
    messages_ref: Annotated[Reference | None, says("Instead of both: the messages, a JSON list in the store")] = None
    messages_sealed: Annotated[Sealed | None, says("Instead of these: the messages, sealed")] = None
    tenant: Annotated[Name | None, says("Whose run it is, for fairness and limits")] = None
    deadline_s: Annotated[Positive | None, says("Seconds from admission; past it the run ends as expired")] = None
    max_turns: Annotated[Annotated[int, Field(ge=1)] | None, says("Fewer turns than the agent allows")] = None
    max_cost_usd: Annotated[Positive | None, says("Fewer dollars than the agent allows")] = None
    parallel_tool_calls: Annotated[bool | None, says("false: the model may make one call a turn")] = None
    metadata: Annotated[dict[str, Json] | None, says("Up to 4 kB, echoed in the response")] = None
    metadata_sealed: Annotated[Seal | None, says("Instead of metadata: the same, sealed")] = None
    reply_to: Annotated[ReplyTo | None, says("The client's inbox; default: by run id")] = None
    stream: Annotated[bool | None, says("true: what the model says goes to agent.stream as it speaks")] = None
    stream_thinking: Annotated[bool | None, says("true: with stream, what it thinks goes there, too")] = None
    cancel: Annotated[Literal[True] | None, says("With run_id alone: end that run")] = None


# --- agent.log --------------------------------------------------------------------------------------


@frozen()
class Usage:
    """Tokens and money of one model call, or the sum of several."""

    input_tokens: Annotated[int, says("Tokens read at full price")] = 0
    output_tokens: Annotated[int, says("Tokens written")] = 0
    cache_read_input_tokens: Annotated[int, says("Tokens read from the cache")] = 0
    cache_creation_input_tokens: Annotated[int, says("Tokens written to the cache")] = 0
    cost_usd: Annotated[float | None, says("Dollars; null: nobody knows, for a model has no price")] = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            None if self.cost_usd is None or other.cost_usd is None else self.cost_usd + other.cost_usd,
        )


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
    partition: Annotated[Partition | None, says("Of the queue: a home of the tool's limit; null: by the key")] = None
    rejected_sealed: Annotated[Seal | None, says("What rejected says, sealed; that is then a word in its place")] = None


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
class ToolReturned:
    """`body` is a `ToolResult` in JSON; it stays bytes until the next model call needs it."""

    run_id: str
    life: str
    call_id: str
    outcome: ResultOutcome
    body: bytes


SEALED: Final = "(sealed)"
"""What stands where a text would be, for whoever has no key."""
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
class ModelHandedOff:
    run_id: str
    life: str
    turn: int
    worker: str
    for_s: float


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


@frozen()
class PartitionReleased:
    done: int


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


# --- tool.calls.<queue> -------------------------------------------------------------------------------


@frozen()
class ReplyTopic:
    """Where a tool worker appends the result."""

    topic: Annotated[str, says("The full name of the run log")]
    partition: Annotated[Partition, says("The run's partition; to be used as it is")]


@frozen(kw_only=True)
class ToolCall:
    """The body of a record in `tool.calls.<queue>`, `input` or what is in its place. `deadline` is epoch seconds."""

    call_id: Annotated[str, says("Opaque, at most 200 characters")]
    run_id: Annotated[Name, says("The run that wants the result")]
    agent: Annotated[Name, says("Its agent")]
    tenant: Annotated[str | None, says("Its tenant")] = None
    lane: Annotated[Lane | None, says("The lane that the run came by; null: interactive")] = None
    tool: Annotated[str, says("The tool's name")]
    input: Annotated[dict[str, Json] | None, says("The arguments; they fit the tool's input_schema")] = None
    input_ref: Annotated[Reference | None, says("Instead of input: the arguments, a JSON object in the store")] = None
    input_sealed: Annotated[Sealed | None, says("Instead of both: the arguments, a JSON object, sealed")] = None
    dispatch: Annotated[int, says("1, and one more each time that a lost call is published again; 0: an early start")]
    deadline: Annotated[float, says("Epoch seconds; past it nobody waits for the result")]
    idempotency_key: Annotated[str, says("The same for every dispatch and try")]
    reply: Annotated[ReplyTopic, says("Where the result belongs")]


# --- agent.responses ----------------------------------------------------------------------------------


@frozen()
class RunError:
    """Why something failed."""

    code: Annotated[str, says("For programs")]
    message: Annotated[str, says("For people")]
    message_sealed: Annotated[Seal | None, says("What message says, sealed; that is then a word in its place")] = None


@frozen()
class ModelFailure(RunError):
    """The body of `model.failed`."""

    tried: Annotated[tuple[Tried, ...] | None, says("The attempts that no event named before")] = None


@frozen()
class TotalUsage:
    """Over all turns; `discarded` counts, in the same fields, what was paid for and thrown away."""

    input_tokens: Annotated[int, says("Tokens read at full price")] = 0
    output_tokens: Annotated[int, says("Tokens written")] = 0
    cache_read_input_tokens: Annotated[int, says("Tokens read from the cache")] = 0
    cache_creation_input_tokens: Annotated[int, says("Tokens written to the cache")] = 0
    cost_usd: Annotated[float | None, says("Dollars; null: nobody knows, for a model has no price")] = 0.0
    discarded: Annotated[Usage, says("What was paid for and thrown away")] = field(default_factory=Usage)


@frozen()
class CallCounts:
    total: Annotated[int, says("All calls, rejected ones too")] = 0
    failed: Annotated[int, says("Those with an error result")] = 0
    batches: Annotated[int, says("Turns that made calls")] = 0
    widest: Annotated[int, says("The most calls in one turn")] = 0


@frozen()
class Timing:
    """Seconds. `tools_sequential_s` is what the calls would have taken one after another."""

    queued_s: Annotated[float, says("From request to admission")] = 0.0
    model_s: Annotated[float, says("Waiting for the model")] = 0.0
    tools_s: Annotated[float, says("Waiting for batches")] = 0.0
    wall_s: Annotated[float, says("From request to end")] = 0.0
    tools_sequential_s: Annotated[float, says("The calls' execution times, added up")] = 0.0


@frozen()
class RunResponse:
    """The body of a record in `agent.responses`."""

    run_id: Annotated[str, says("The run")]
    agent: Annotated[str | None, says("Its agent; null if the request was rejected")]
    revision: Annotated[str | None, says("The agent's revision")]
    status: Annotated[Status, says("How it ended")]
    output: Annotated[str | None, says("The final text of a completed run")] = None
    content: Annotated[list[dict[str, Json]] | None, says("The final blocks, verbatim, if they are more than text")] = (
        None
    )
    content_ref: Annotated[Reference | None, says("Instead of both: all final blocks, a JSON list in the store")] = None
    stop_reason: Annotated[str | None, says("The provider's word, verbatim")] = None
    error: Annotated[RunError | None, says("null if the run completed")] = None
    usage: Annotated[TotalUsage, says("Over all turns")] = field(default_factory=TotalUsage)
    turns: Annotated[int, says("How many replies the model gave")] = 0
    calls: Annotated[CallCounts, says("Tool calls")] = field(default_factory=CallCounts)
    timing: Annotated[Timing, says("Durations")] = field(default_factory=Timing)
    metadata: Annotated[dict[str, Json] | None, says("That of the request")] = None
    content_sealed: Annotated[
        list[Sealed] | None, says("Instead of all these: the final blocks, each a JSON list of some, sealed")
    ] = None
    metadata_sealed: Annotated[Seal | None, says("That of the request")] = None


# --- agent.stream ---------------------------------------------------------------------------------------

DeltaType = Literal["text", "thinking", "tool_use", "tool_input", "end", "discarded"]


@frozen()
class StreamDelta:
    """The body of a record in `agent.stream`: a piece of what the model says in one attempt at a turn."""

    run_id: Annotated[str, says("The run")]
    turn: Annotated[int, says("The turn, from 1")]
    attempt: Annotated[str, says("Which model call of the turn; another one starts anew")]
    type: Annotated[DeltaType, says("What this is; end: all was said; discarded: none of it counts")]
    text: Annotated[str | None, says("The next piece of text, or of thinking")] = None
    tool: Annotated[str | None, says("The tool that is being called")] = None
    tool_use_id: Annotated[str | None, says("The model's id of that call")] = None
    text_sealed: Annotated[Seal | None, says("Instead of text: the same as a JSON string, sealed")] = None
    number: Annotated[int, says("From 0 in each attempt, one more a record; what is missing was dropped")] = 0
    index: Annotated[int | None, says("The content block of the reply that it belongs to, from 0")] = None
    input: Annotated[Json, says("Of tool_input: the arguments; null if they are no JSON, or very long")] = None
    input_sealed: Annotated[Seal | None, says("Instead of input: the same, sealed")] = None
