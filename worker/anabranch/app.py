"""What a user writes: an App with its tools, limits and agents.

Declarations only: nothing here runs a tool, calls a model or speaks to Kafka, and importing it costs neither
client. A mistake is a `DefinitionError` at the line that makes it, and leaves the App as it was. Read by both
roles, the client and the commands.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from anabranch.declarations import definition
from anabranch.declarations.callers import check_called, check_server_tools
from anabranch.declarations.declared import (
    Agent,
    Call,
    Declared,
    Limit,
    RateLimited,
    RemoteOptions,
    Retryable,
    RunIn,
    Tool,
    ToolOptions,
    ToolRef,
)
from anabranch.declarations.definition import TOOL_PATTERN, Place
from anabranch.declarations.schema import check_schema, describe
from anabranch.errors import ConfigError, DefinitionError
from anabranch.fields import Json
from anabranch.prices import window_of
from anabranch.specs import AgentLimits, AgentSpec, LimitSpec, ToolSpec
from anabranch.topics import Namespace

if TYPE_CHECKING:
    from anabranch.client import Client
    from anabranch.keys import KeyProvider

__all__ = ["Agent", "App", "Call", "Limit", "RateLimited", "Retryable", "RunIn", "Tool"]

Function = TypeVar("Function", bound=Callable[..., Any])


class App:
    """The tools and agents of one namespace (the name in lower case, unless said). `keys` says where those come from
    that seal what tenants say, if not from ANABRANCH_KEYS: see `anabranch.keys`.
    """

    def __init__(self, name: str, *, namespace: str | None = None, keys: KeyProvider | None = None) -> None:
        self.name, self.keys = name, keys
        with Place.of_frame(f"App {name!r}", sys._getframe(1)).named():
            if not isinstance(name, str):
                raise DefinitionError("the name of an App is a text, such as App('shop')")
            self.namespace = name.lower() if namespace is None else namespace
            try:
                Namespace(self.namespace)
            except ConfigError as error:
                raise DefinitionError(f"{error}; change the name, or pass namespace=") from error
        self.tools: dict[str, Tool] = {}
        self.remote_tools: dict[str, ToolSpec] = {}
        self.agents: dict[str, Agent] = {}
        self.limits: dict[str, Limit] = {}

    def __repr__(self) -> str:
        return f"App({self.name!r}, namespace={self.namespace!r})"

    # --- what is there -------------------------------------------------------------------------------

    def tool_specs(self) -> list[ToolSpec]:
        """The tools of this App and the remote ones it declares."""
        return [*(tool.spec for tool in self.tools.values()), *self.remote_tools.values()]

    def agent_specs(self) -> list[AgentSpec]:
        return [agent.spec for agent in self.agents.values()]

    def limit_specs(self) -> list[LimitSpec]:
        """The limits that tools here use, remote ones too, each with its tools' queue."""
        queues = {spec.limit: spec.queue for spec in self.tool_specs() if spec.limit is not None}
        return [limit.spec(queues[name]) for name, limit in self.limits.items()]

    def queues(self) -> list[str]:
        """Every queue that a tool here is called through, those of remote tools too, sorted."""
        return sorted({spec.queue for spec in self.tool_specs()})

    def tools_of(self, queue: str) -> list[Tool]:
        """The tools that a worker of `queue` runs; none if they are all remote."""
        return [tool for tool in self.tools.values() if tool.spec.queue == queue]

    def client(self, **overrides: Any) -> Client:
        """A client of this App's namespace. `overrides` are the keywords of `Client.for_app`: `bootstrap`, `namespace`,
        `settings` (an `anabranch.config.Settings`, instead of those of the environment), `broker`.
        """
        from anabranch.client import Client

        return Client.for_app(self, **overrides)

    def check(self) -> None:
        """What can only be seen when all is declared. Each role calls it at its start; raises `DefinitionError`."""
        definition.check_order({spec.name: spec.after for spec in self.tool_specs()})
        for agent in self.agents.values():
            with agent.place.named():
                check_called(agent.spec, self.tool_specs())
        for tool in self.tools.values():
            if tool.run_in == "process":
                _check_importable(tool)

    # --- declarations ----------------------------------------------------------------------------------

    @overload
    def tool(self, function: Function, /) -> Function: ...

    @overload
    def tool(self, function: None = None, /, **options: Unpack[ToolOptions]) -> Callable[[Function], Function]: ...

    def tool(
        self, function: Function | None = None, /, **options: Unpack[ToolOptions]
    ) -> Function | Callable[[Function], Function]:
        """Makes a tool of a function, which stays what it was. `ToolOptions` has the keywords.

        Raises `DefinitionError`, with what to change, for what could not work at run time.
        """
        if unknown := options.keys() - ToolOptions.__annotations__.keys():
            raise TypeError(f"App.tool() got unexpected keyword arguments {sorted(unknown)}")
        declared = Declared(**options)
        frame = sys._getframe(1)
        namespace, caller = dict(frame.f_locals), Place.of_frame("", frame)

        def declare(function: Function) -> Function:
            with _place_of(function, caller).named():
                self._add(self._tool(function, declared, namespace))
            return function

        return declare if function is None else declare(function)

    def remote_tool(
        self, name: str, *, queue: str, schema: Mapping[str, Json] | str | Path, **options: Unpack[RemoteOptions]
    ) -> None:
        """Declares a tool that a worker elsewhere serves, perhaps in another language.

        `schema` is a JSON schema, or a path, relative to the caller's file, to a JSON file with one or with
        `{description, input_schema}`.
        """
        if unknown := options.keys() - RemoteOptions.__annotations__.keys():
            raise TypeError(f"App.remote_tool() got unexpected keyword arguments {sorted(unknown)}")
        declared = Declared(queue=queue, **options)
        place = Place.of_frame(f"remote tool {name!r}", sys._getframe(1))
        with place.named():
            input_schema, described = definition.read_schema(schema, place.folder)
            check_schema(input_schema)
            spec = declared.spec(name, declared.description or described, input_schema, self._named())
            self._check_new(spec, declared.limit)
            self.remote_tools[name] = spec
            self._remember(declared.limit)

    def agent(
        self,
        name: str,
        *,
        model: str,
        fallback: str | None = None,
        system: str | Path = "",
        tools: Sequence[ToolRef] = (),
        server_tools: Sequence[Mapping[str, Json]] = (),
        max_turns: int = 20,
        deadline: float | str = "1h",
        max_calls_per_turn: int = 64,
        max_cost_usd: float | None = None,
        max_tokens: int = 8192,
        tool_choice: str | None = None,
        parallel_tool_calls: bool = True,
        parallel_hint: bool = True,
        caching: bool | str = True,
        early_start: bool = False,
        context: str = "fail",
        context_window: int | None = None,
        **options: Json,
    ) -> Agent:
        """Declares an agent. `tools` may name tools of another App; `options` go to the model's API as they are.

        A run ends after `max_turns` replies, at its `deadline` (seconds, or "10m"), or once it has cost `max_cost_usd`.
        In a turn `max_calls_per_turn` calls are made; those beyond it get an error result, so raise it for an agent
        that fans out more.
        `system` is a text, or a path, relative to the caller's file, that ends in .md or .txt. `tool_choice` is None
        (the model decides), "any", "none", or the tool that is forced on the first turn. `server_tools` are those that
        the provider runs, as its API takes them: `{"type": "code_execution_20260120", "name": "code_execution"}`.
        `caching` has the provider keep what a run's turns have in common, for five minutes after each (True), for an
        hour ("1h"), or not (False). When a conversation outgrows the model's `context_window` (tokens; of known models
        it need not be said), `context` has the run "fail", leaves out old results ("drop_tool_results"), or has the
        "provider" do that.
        `fallback` is asked while the model cannot be had; it gets the same options, and none of the other's thinking.
        With `early_start`, calls of `read_only` tools begin while the model still speaks; those of a reply that breaks
        off have run for nothing.
        """
        place = Place.of_frame(f"agent {name!r}", sys._getframe(1))
        with place.named():
            definition.check_model(model)
            named = definition.tool_names("tools", tools, self._named())
            draft = AgentSpec(
                name=name,
                revision="",
                model=model,
                system=definition.read_system(system, place.folder),
                tools=named,
                limits=AgentLimits(
                    max_turns, definition.seconds("deadline", deadline), max_calls_per_turn, max_cost_usd
                ),
                max_tokens=max_tokens,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                parallel_hint=parallel_hint,
                caching=definition.caching(caching),
                context=definition.context(context, model, context_window),
                context_window=window_of(model) if context_window is None else context_window,
                options=options,
                fallback=fallback,
                early_start=early_start,
                server_tools=check_server_tools(server_tools, named),
            )
            definition.check_options(options, {f.name for cls in (AgentSpec, AgentLimits) for f in fields(cls)})
            definition.check_agent(draft)
            check_called(draft, self.tool_specs())
            if name in self.agents:
                raise DefinitionError("there is already an agent of this name: choose another one")
            agent = self.agents[name] = Agent(replace(draft, revision=definition.revision_of(draft)), place)
        return agent

    # --- how they are checked --------------------------------------------------------------------------

    def _tool(self, function: Callable[..., Any], declared: Declared, namespace: Mapping[str, Any]) -> Tool:
        _check_function(function)
        name = function.__name__ if declared.name is None else declared.name
        definition.check_name("tool name", name, TOOL_PATTERN)
        described = describe(function, tool=name, injected=Call, namespace=namespace)
        spec = declared.spec(name, declared.description or described.text, described.input_schema, self._named())
        return Tool(
            spec=spec,
            function=function,
            run_in=declared.run_in_of(function),
            retries=declared.retries,
            concurrency=declared.concurrency,
            limit=declared.limit,
            call_parameter=described.call_parameter,
            arguments=described.arguments,
        )

    def _add(self, tool: Tool) -> None:
        self._check_new(tool.spec, tool.limit)
        self.tools[tool.name] = tool
        self._remember(tool.limit)

    def _remember(self, limit: Limit | None) -> None:
        if limit is not None:
            self.limits[limit.name] = limit

    def _named(self) -> dict[Callable[..., Any], str]:
        return {tool.function: name for name, tool in self.tools.items()}

    def _check_new(self, spec: ToolSpec, limit: Limit | None) -> None:
        specs = self.tool_specs()
        if any(other.name == spec.name for other in specs):
            raise DefinitionError(f"there is already a tool {spec.name!r}: give one of them another name=")
        definition.check_order({other.name: other.after for other in [*specs, spec]})
        if limit is None:
            return
        known = self.limits.get(limit.name, limit)
        if known.spec(spec.queue) != limit.spec(spec.queue):
            raise DefinitionError(f"{limit} differs from {known}: use one Limit, or two names")
        for other in specs:
            if other.limit == limit.name and other.queue != spec.queue:
                raise DefinitionError(
                    f"the limit {limit.name!r} is used in the queue {other.queue!r} by {other.name!r}, and here in "
                    f"{spec.queue!r}: all tools of a limit must be in one queue"
                )


def _place_of(function: object, caller: Place) -> Place:
    """Where a function begins; what is none is looked for where it was handed over."""
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    return (
        Place(f"tool {name}", code.co_filename, code.co_firstlineno) if code else replace(caller, what=f"tool {name}")
    )


def _check_function(function: object) -> None:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise DefinitionError(f"a tool is a function, not a {type(function).__name__}: wrap it in a `def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError("it is a generator (it has a `yield`), but a tool returns one result: return a list")


def _check_importable(tool: Tool) -> None:
    try:
        pickle.dumps(tool.function)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError) as error:
        raise DefinitionError(
            f"the tool {tool.name!r} has run_in='process', but another process could not import its function "
            f"({error}): put @app.tool above all other decorators, at the top of a module"
        ) from error
