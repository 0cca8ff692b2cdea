"""What an agent's requests begin with: its model and options, its tools, its system prompt. PURE.

All of it stands before the conversation and is the same from request to request, but for a few things, which `Kind`
names. So it is written once for each kind, and goes out as the same bytes: the provider's cache asks for no less.
`conversation.py` puts the conversation behind it. Must never: know a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from anabranch.agent.prompt.caching import MARKS, Breakpoints, Kept, breakpoints, marks_in
from anabranch.agent.prompt.dropping import FULL, STEP
from anabranch.agent.prompt.programmatic import direct, offered
from anabranch.fields import Json
from anabranch.messages import RunRequest
from anabranch.registry import Registry
from anabranch.specs import AgentSpec, ToolSpec

HINT: Final = (
    "When you need several tools and none of them needs another's result, "
    "call them all together in one turn: they run in parallel."
)
_EDITING: Final = "context-management-2025-06-27"


class Kind(NamedTuple):
    """Which of an agent's requests one is: for `model`, the `first` of its run or a later one, with `parallel` calls or
    one at a time. `mark` is the breakpoint behind tools and system prompt, `calls` how many the last turn made.
    """

    model: str
    first: bool = True
    parallel: bool = True
    mark: Kept | None = None
    calls: int = 0


class Offer:
    """What `agent`, with these `tools`, tells a model of itself."""

    def __init__(self, agent: AgentSpec, tools: Sequence[ToolSpec]) -> None:
        self.agent = agent
        self.container: Final[Json] = agent.options.get("container")
        self._told, self._direct = offered(agent, tools), direct(tools)
        self._points = breakpoints(agent, (), goes_on=bool(self._told))
        self._heads: dict[Kind, bytes] = {}

    def is_parallel(self, request: RunRequest) -> bool:
        """Whether a turn of the run may make more than one call."""
        return self.agent.parallel_tool_calls and request.parallel_tool_calls is not False

    def points(self, opening: Sequence[dict[str, Any]]) -> Breakpoints:
        """Where a request has its breakpoints that begins with the messages `opening`."""
        own = marks_in(opening)
        return breakpoints(self.agent, own, goes_on=bool(self._told)) if own else self._points

    def head(self, kind: Kind, container: Json) -> bytes:
        """The JSON up to the messages, which are still to be written, like the brace that ends it. `container` is where
        the provider runs code: the agent's own one, or the run's.
        """
        if container is not self.container:
            return self._written(kind, container)
        if (known := self._heads.get(kind)) is None:
            known = self._heads[kind] = self._written(kind, container)
        return known

    def _written(self, kind: Kind, container: Json) -> bytes:
        agent = self.agent
        options = {name: value for name, value in agent.options.items() if name != "betas"}
        body: dict[str, Any] = {"max_tokens": agent.max_tokens, **_editing(agent, kind.calls), **options}
        if betas := _betas(agent, body):
            body = {"betas": betas, **body}
        body |= {"model": kind.model, "stream": True}
        told, system = list(self._told), _system(agent, bool(self._direct) and kind.parallel)
        if kind.mark is not None and (last := system or told):
            last[-1] = {**last[-1], "cache_control": MARKS[kind.mark]}
        if told:
            body["tools"] = told
            if choice := _tool_choice(agent, self._direct, kind):
                body["tool_choice"] = choice
        if system:
            body["system"] = system
        if container is not None:
            body["container"] = container
        body.pop("messages", None)
        return orjson.dumps(body)[:-1] + b',"messages":'


class Offers:
    """Those of the agents in a registry, as their tools are now."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._made: dict[tuple[str, str], tuple[Offer, list[ToolSpec | None]]] = {}

    def of(self, name: str, revision: str) -> Offer | None:
        """None if the registry has no such agent."""
        key = (name, revision)
        agent = self.registry.revisions.get(key)
        if agent is None:
            self._made.pop(key, None)
            return None
        tools = list(map(self.registry.tools.get, agent.tools))
        if (made := self._made.get(key)) is None or made[0].agent is not agent or made[1] != tools:
            made = self._made[key] = Offer(agent, [tool for tool in tools if tool is not None]), tools
        return made[0]


def _system(agent: AgentSpec, hint: bool) -> list[dict[str, Any]]:
    parts = [agent.system] if agent.system else []
    if hint and agent.parallel_hint:
        parts.append(HINT)
    return [{"type": "text", "text": "\n\n".join(parts)}] if parts else []


def _tool_choice(agent: AgentSpec, tools: set[str], kind: Kind) -> dict[str, Any] | None:
    """A forced choice holds for the first turn: after that the model must be free to answer.

    A tool that nobody has registered cannot be forced: the provider would refuse the request.
    """
    wanted = agent.tool_choice
    if wanted == "none":
        return {"type": "none"}
    choice: dict[str, Any] = {"type": "auto"}
    if kind.first and wanted == "any":
        choice = {"type": "any"}
    elif kind.first and wanted in tools:
        choice = {"type": "tool", "name": wanted}
    if not kind.parallel:
        choice["disable_parallel_tool_use"] = True
    return None if choice == {"type": "auto"} else choice


def _editing(agent: AgentSpec, calls: int) -> dict[str, Any]:
    """What asks the provider to leave out old results, but none of the last batch, of so many calls."""
    if agent.context != "provider":
        return {}
    edit: dict[str, Any] = {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": max(3, calls)}}
    if (window := agent.context_window) is not None:
        edit["trigger"] = {"type": "input_tokens", "value": int(FULL * window)}
        edit["clear_at_least"] = {"type": "input_tokens", "value": int(STEP * window)}
    return {"context_management": {"edits": [edit]}}


def _betas(agent: AgentSpec, body: Mapping[str, Any]) -> list[str]:
    """The agent's own, and those without which the provider refuses what the request holds. They stand first in it."""
    betas = list(agent.options.get("betas") or [])
    return betas if "context_management" not in body or _EDITING in betas else [*betas, _EDITING]
