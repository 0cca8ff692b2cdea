"""What travels beside the log's events: requests, tool calls, responses, and what a model says while it speaks.

Frozen values and nothing else: no I/O, no clock, and no import of ours but `fields.py`. `codec` turns them into
records and back; `schemas/` is generated from them (`contract/records.py`). Times are epoch seconds as floats,
durations are seconds, sizes are bytes, offsets are ints. `log_events.py` has what the run log says.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from anabranch.fields import Blocks, Content, Json, Lane, Name, Partition, Positive, Reference, Seal, Sealed, says
from anabranch.values import frozen

Status = Literal["completed", "failed", "cancelled", "expired"]
DeltaType = Literal["text", "thinking", "tool_use", "tool_input", "end", "discarded"]

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
    messages: Annotated[Blocks | None, says("Instead of input: a conversation to go on with")] = None
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
    cancel: Annotated[Literal[True] | None, says("End the run of run_id; nothing else here counts then")] = None


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


# --- what answers and events of the log have in common ------------------------------------------------


@frozen()
class Usage:
    """Tokens and money of one model call, or the sum of several."""

    input_tokens: Annotated[int, says("Tokens read at full price")] = 0
    output_tokens: Annotated[int, says("Tokens written")] = 0
    cache_read_input_tokens: Annotated[int, says("Tokens read from the cache")] = 0
    cache_creation_input_tokens: Annotated[int, says("Tokens written to the cache")] = 0
    cost_usd: Annotated[float | None, says("Dollars; null: nobody knows, for a model has no price")] = 0.0

    @property
    def prompt_tokens(self) -> int:
        """All that were read: at full price, from the cache, or into it."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_creation_input_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            None if self.cost_usd is None or other.cost_usd is None else self.cost_usd + other.cost_usd,
        )


@frozen()
class RunError:
    """Why something failed."""

    code: Annotated[str, says("For programs")]
    message: Annotated[str, says("For people")]
    message_sealed: Annotated[Seal | None, says("What message says, sealed; that is then a word in its place")] = None


# --- agent.responses ----------------------------------------------------------------------------------


@frozen()
class TotalUsage(Usage):
    """Over all turns; `discarded` counts, in the same fields, what was paid for and thrown away."""

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
