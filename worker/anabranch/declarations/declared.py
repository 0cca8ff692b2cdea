"""The values that declarations are made of: Limit, Call, Tool, Agent, and the keywords of a tool.

Frozen, and checked when they are made. Must never know an App. `app` makes them and hands them on to users and to
the tool executor, who import them from there.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast, get_args

from anabranch import units
from anabranch.declarations import definition
from anabranch.declarations.callers import check_callers
from anabranch.declarations.definition import QUEUE_PATTERN, TOOL_PATTERN, Place
from anabranch.declarations.schema import Arguments
from anabranch.errors import AnabranchError, DefinitionError
from anabranch.fields import Delivery, Json, Lane, OnError
from anabranch.specs import AgentSpec, LimitSpec, Per, ToolSpec

RunIn = Literal["loop", "thread", "process"]
ToolRef = str | Callable[..., Any]
"""A tool, by its name or by the decorated function."""

AT_MOST_ONCE_GRACE_S = 60.0
"""What a call that must not be repeated has beyond its timeout, if its deadline is not declared."""


class Retryable(AnabranchError):
    """Raised by a tool for an error that may pass; `after` is how many seconds (or "5m") the next try waits. It takes
    what a `retry-after` header says as it stands, a date too.
    """

    def __init__(self, message: str, after: float | str | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else _seconds("Retryable", after)


class RateLimited(AnabranchError):
    """Raised by a tool when its API asks for a pause of `after` seconds (or "5m"), as a 429 with `retry-after` does:
    that header's value may be given as it stands, a date too.

    The tool's limit lets nothing through on this worker for so long; the call goes back to waiting, within its
    deadline, and uses up no retry. So it is for what the API refuses to everybody: for what it refuses to one account
    or record alone, raise `Retryable(after=...)`, which holds up no other call.
    """

    def __init__(self, message: str = "the API asks for a pause", after: float | str = 1.0) -> None:
        super().__init__(message)
        self.after = _seconds("RateLimited", after)


def _seconds(error: str, after: float | str) -> float:
    try:
        return _until(after) if isinstance(after, str) and after.strip().endswith("GMT") else units.duration(after)
    except (ValueError, OverflowError) as refused:
        raise ValueError(f"{error}(after={after!r}): give the seconds to wait, 0 or more ({refused})") from None


def _until(date: str) -> float:
    """How long it is until a date of HTTP, by our clock."""
    from email.utils import parsedate_to_datetime

    return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget that the tools of one API share, over all workers: "50/s", "600/m", "1/min" or calls a second.

    `concurrency` is calls at once. With `per="tenant"` each tenant has a budget of this size to itself.
    """

    name: str
    rate: str | float
    concurrency: int | None = None
    per: Per | None = None

    def __post_init__(self) -> None:
        with Place.of_frame(f"limit {self.name!r}", sys._getframe(2)).named():
            definition.check_name("limit", self.name)
            definition.paced("rate", self.rate)
            if self.concurrency is not None:
                definition.whole("concurrency", self.concurrency, 1)
            if self.per is not None:
                definition.one_of("per", self.per, get_args(Per))

    def spec(self, queue: str) -> LimitSpec:
        """What all workers are told of it, and of the queue that its tools are in."""
        return LimitSpec(self.name, queue, self.per_second, self.concurrency, self.per)

    @property
    def per_second(self) -> float:
        return units.rate(self.rate)


_TOOL_LOG = logging.getLogger("anabranch.tool")


class _CallLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the call's fields to each record, beside those that the tool gives."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **(kwargs.get("extra") or {})}}


@dataclass(frozen=True, slots=True)
class Call:
    """What a tool may know of the call that it serves, through a parameter annotated `Call`.

    `deadline` is epoch seconds. `attempt` is the number of this try, from 1; `dispatch` is more than 1 when the
    call was lost and published again. The idempotency key is the same for all of them. `log` writes to the
    logger `anabranch.tool`, with these fields on each record.
    """

    id: str
    run_id: str
    tool: str
    dispatch: int = 1
    attempt: int = 1
    deadline: float = float("inf")
    tenant: str | None = None
    idempotency_key: str = ""
    lane: Lane = "interactive"
    log: logging.LoggerAdapter[logging.Logger] = field(
        default=cast("logging.LoggerAdapter[logging.Logger]", None), repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.idempotency_key:
            object.__setattr__(self, "idempotency_key", self.id)
        if cast(object, self.log) is None:
            extra = {
                "call_id": self.id,
                "run_id": self.run_id,
                "tool": self.tool,
                "dispatch": self.dispatch,
                "attempt": self.attempt,
                "tenant": self.tenant,
            }
            object.__setattr__(self, "log", _CallLog(_TOOL_LOG, extra))


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of this App. `spec` is what agents know of it; the rest is for the worker that runs it."""

    spec: ToolSpec
    function: Callable[..., Any]
    run_in: RunIn
    retries: int
    concurrency: int | None
    limit: Limit | None
    call_parameter: str | None
    arguments: Arguments

    @property
    def name(self) -> str:
        return self.spec.name

    def bind(self, input: Mapping[str, Json], call: Callable[[], Call]) -> dict[str, Any]:
        """The function's keyword arguments, typed; `call` makes the `Call` of a tool that takes one.

        Raises `ArgumentsError` with a message for the model.
        """
        bound = self.arguments.bind(input)
        if self.call_parameter:
            bound[self.call_parameter] = call()
        return bound


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent of this App, and where it is declared."""

    spec: AgentSpec
    place: Place = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.spec.name


class _Common(TypedDict, total=False):
    timeout: float | str
    deadline: float | str | None
    limit: Limit | None
    serial_key: str | None
    read_only: bool
    delivery: Delivery
    after: Sequence[ToolRef]
    on_error: OnError
    max_result: int | str
    allowed_callers: Sequence[str]


class ToolOptions(_Common, total=False):
    """The keywords of `App.tool`; durations are seconds or "10s", sizes bytes or "32kB".

    With `on_error="abort"` the run ends when a call of the tool fails, or does not fit its schema: what is under way
    comes to its end unheard, and what waits for others is not run. A call that is not run because one that it comes
    `after` has failed gets an error result, and aborts nothing: it has not failed itself.
    """

    queue: str
    name: str | None
    description: str | None
    concurrency: int | None
    retries: int
    run_in: RunIn | None


class RemoteOptions(_Common, total=False):
    """The keywords of `App.remote_tool` besides the queue and the schema."""

    description: str | None


@dataclass(frozen=True, slots=True)
class Declared:
    """The keywords of a tool with their defaults; `spec` checks them."""

    queue: str = "default"
    name: str | None = None
    description: str | None = None
    limit: Limit | None = None
    concurrency: int | None = None
    read_only: bool = False
    timeout: float | str = 10.0
    deadline: float | str | None = None
    retries: int = 0
    serial_key: str | None = None
    delivery: Delivery = "at_least_once"
    after: Sequence[ToolRef] = ()
    on_error: OnError = "return"
    run_in: RunIn | None = None
    max_result: int | str = "256kB"
    allowed_callers: Sequence[str] = ()

    def spec(self, name: str, description: str | None, schema: dict[str, Json], known: Mapping[Any, str]) -> ToolSpec:
        self._check(name, description)
        arguments = list(schema.get("properties", {}))
        if self.serial_key is not None and self.serial_key not in arguments:
            raise DefinitionError(f"serial_key={self.serial_key!r} is none of {arguments}")
        timeout_s = definition.seconds("timeout", self.timeout)
        grace_s = timeout_s + AT_MOST_ONCE_GRACE_S if self.delivery == "at_most_once" else None
        return ToolSpec(
            name=name,
            queue=self.queue,
            description=(description or "").strip() or name.replace("_", " "),
            input_schema=schema,
            timeout_s=timeout_s,
            deadline_s=grace_s if self.deadline is None else definition.seconds("deadline", self.deadline),
            limit=self.limit.name if self.limit else None,
            delivery=self.delivery,
            serial_key=self.serial_key,
            read_only=self.read_only,
            after=definition.tool_names("after", self.after, known),
            on_error=self.on_error,
            max_result=definition.size("max_result", self.max_result),
            allowed_callers=check_callers(self.allowed_callers),
        )

    def _check(self, name: str, description: str | None) -> None:
        definition.check_name("tool name", name, TOOL_PATTERN)
        definition.check_name("queue", self.queue, QUEUE_PATTERN)
        definition.one_of("delivery", self.delivery, get_args(Delivery))
        definition.one_of("on_error", self.on_error, get_args(OnError))
        definition.boolean("read_only", self.read_only)
        definition.whole("retries", self.retries, 0)
        if self.concurrency is not None:
            definition.whole("concurrency", self.concurrency, 1)
        if self.limit is not None and not isinstance(self.limit, Limit):
            raise DefinitionError(f"limit={self.limit!r} must be a Limit, such as Limit('crm', '50/s')")
        if self.delivery == "at_most_once" and self.retries:
            raise DefinitionError(
                f"retries={self.retries} contradicts delivery='at_most_once', which never starts a call twice: drop one"
            )
        if description is not None and not isinstance(description, str):
            raise DefinitionError(f"description={description!r} must be a text")
        definition.text("the description", description or "")

    def run_in_of(self, function: Callable[..., Any]) -> RunIn:
        coroutine = inspect.iscoroutinefunction(function)
        run_in = self.run_in if self.run_in is not None else ("loop" if coroutine else "thread")
        definition.one_of("run_in", run_in, get_args(RunIn))
        if coroutine and run_in != "loop":
            raise DefinitionError(f"run_in={run_in!r} is for plain functions: drop `async`, or drop run_in")
        local = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
        if run_in == "process" and local:
            raise DefinitionError(
                "run_in='process' needs a function that another process can import: move it to the top of its module"
            )
        return run_in
