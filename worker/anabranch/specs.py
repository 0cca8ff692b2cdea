"""What the registry holds: tools, their limits, agents, and the workers that are alive.

Frozen values like those of `messages`, and nothing else. A tool or a limit is described by its name, an agent by its
name and revision; a run keeps the revision that it was admitted with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from anabranch.fields import Delivery, Json, OnError, Positive, says

Role = Literal["agent", "tool"]
Per = Literal["tenant"]
Caching = Literal["5m", "1h", "off"]
Context = Literal["fail", "drop_tool_results", "provider"]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """`tool/<name>`: what agents need to know of a tool. `max_result` is bytes; durations are seconds."""

    name: Annotated[str, says("What agents call it")]
    queue: Annotated[str, says("Its calls are in tool.calls.<queue>")]
    description: Annotated[str, says("Told to the model")]
    input_schema: Annotated[dict[str, Json], says("JSON Schema of the arguments")]
    timeout_s: Annotated[float, says("For each try")] = 10.0
    deadline_s: Annotated[float | None, says("From publication, waiting and retries included; null: the run's")] = None
    limit: Annotated[str | None, says("The budget it shares")] = None
    delivery: Annotated[Delivery, says("What a crash may do to a call")] = "at_least_once"
    serial_key: Annotated[str | None, says("Calls with the same value of this argument run in order")] = None
    read_only: Annotated[bool, says("Safe to repeat")] = False
    after: Annotated[list[str], says("Tools of the same batch that go first")] = field(default_factory=list)
    on_error: Annotated[OnError, says("abort: an error ends the run")] = "return"
    max_result: Annotated[int, says("Bytes; longer results are cut")] = 262_144
    allowed_callers: Annotated[list[str], says("direct, or code_execution_...; empty: direct")] = field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """`limit/<name>`: a budget that tools of one queue share. All agree on it, for its homes follow from it."""

    name: Annotated[str, says("What tools call it")]
    queue: Annotated[str, says("All its tools are in tool.calls.<queue>")]
    per_second: Annotated[Positive, says("Calls a second, over all workers")]
    concurrency: Annotated[Annotated[int, Field(ge=1)] | None, says("Calls at once, over all workers")] = None
    per: Annotated[Per | None, says("tenant: each tenant has a budget of its own")] = None


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Defaults of an agent's runs. `deadline_s` counts from the admission of a run."""

    max_turns: Annotated[int, says("Turns of a run")] = 20
    deadline_s: Annotated[float, says("Seconds from admission")] = 3600.0
    max_calls_per_turn: Annotated[int, says("Calls beyond it get an error result")] = 64
    max_cost_usd: Annotated[float | None, says("Dollars of a run; null: no limit")] = None


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """`agent/<name>@<revision>`; the revision is a hash of the rest.

    `tool_choice` is null (the model decides), `any`, `none`, or the name of the tool that is forced on the
    first turn. `parallel` adds the sentence that asks the model for parallel calls.
    """

    name: Annotated[str, says("What requests call it")]
    revision: Annotated[str, says("A hash of the rest")]
    model: Annotated[str, says("The provider's name of the model")]
    provider: Annotated[str, says("Whose API it is")] = "anthropic"
    system: Annotated[str, says("The system prompt")] = ""
    tools: Annotated[list[str], says("Names of tools")] = field(default_factory=list)
    limits: Annotated[AgentLimits, says("Limits of a run")] = field(default_factory=AgentLimits)
    max_tokens: Annotated[int, says("Of one reply")] = 8192
    tool_choice: Annotated[str | None, says("null, any, none or the name of a tool")] = None
    parallel_tool_calls: Annotated[bool, says("false: one call a turn")] = True
    parallel_hint: Annotated[bool, says("Ask the model for parallel calls")] = True
    context: Annotated[Context, says("What is done when a conversation no longer fits into it")] = "fail"
    context_window: Annotated[int | None, says("Tokens that the model's context holds; null: nobody knows")] = None
    caching: Annotated[Caching, says("How long the provider keeps what it has read")] = "5m"
    options: Annotated[dict[str, Json], says("Further fields of the provider's request")] = field(default_factory=dict)
    fallback: Annotated[str | None, says("The model that is asked while the other one cannot be had")] = None
    server_tools: Annotated[list[dict[str, Json]], says("Tools that the provider runs")] = field(default_factory=list)

    @property
    def models(self) -> tuple[str, ...]:
        """All that it may ask, its own first."""
        return (self.model,) if self.fallback is None else (self.model, self.fallback)

    early_start: Annotated[bool, says("Start read-only calls while the model still speaks")] = False


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """`worker/<id>`, written every few seconds; dead after 30 s without."""

    id: Annotated[str, says("The worker")]
    role: Annotated[Role, says("What it does")]
    version: Annotated[str, says("Of the package")]
    started_at: Annotated[float, says("Epoch seconds")]
    seen_at: Annotated[float, says("Epoch seconds")]
    queue: Annotated[str | None, says("A tool worker's queue")] = None
    running: Annotated[int, says("Model or tool calls in flight")] = 0
    oldest_waiting_s: Annotated[float, says("How long the oldest call that it has taken in has waited")] = 0.0
