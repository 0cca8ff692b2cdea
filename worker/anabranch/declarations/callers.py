"""Who may call a tool: the model itself, or code that the provider runs for it; and the provider's own tools.

Pure. What the provider would refuse is refused where it is declared. Must never know an App: `app` calls this, and the
agent role, which offers a tool to those callers alone that its agent has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from anabranch.errors import DefinitionError
from anabranch.fields import Json
from anabranch.specs import AgentSpec, ToolSpec

DIRECT: Final = "direct"
_CODE: Final = re.compile(r"code_execution_\d{8}")
_CLIENTS_OWN: Final = ("bash_", "text_editor_", "computer_", "memory_", "browser_")
"""Tools whose form is the provider's, and which nobody but the client can run."""


def callers_of(tool: ToolSpec, agent: AgentSpec) -> list[str]:
    """Which callers of the agent's may call the tool: not the model itself, unless the tool says so or says nothing."""
    return [caller for caller in tool.allowed_callers or [DIRECT] if caller == DIRECT or caller in _code_of(agent)]


def is_direct(tool: ToolSpec) -> bool:
    """Whether the model may call it outside of code."""
    return not tool.allowed_callers or DIRECT in tool.allowed_callers


def _code_of(agent: AgentSpec) -> list[str]:
    return [str(tool.get("type")) for tool in agent.server_tools if _CODE.fullmatch(str(tool.get("type")))]


def check_callers(values: Sequence[str]) -> list[str]:
    """`allowed_callers` of a tool."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise DefinitionError(f"allowed_callers={values!r} must be a list, such as ['code_execution_20260120']")
    for value in values:
        if not isinstance(value, str) or not (value == DIRECT or _CODE.fullmatch(value)):
            raise DefinitionError(
                f"allowed_callers has {value!r}: write 'direct', or the type of a code execution tool, such as "
                "'code_execution_20260120'"
            )
        if values.count(value) > 1:
            raise DefinitionError(f"allowed_callers names {value!r} twice: leave one out")
    return list(values)


def check_server_tools(values: Sequence[Mapping[str, Json]], tools: Sequence[str]) -> list[dict[str, Json]]:
    """`server_tools` of an agent that also has `tools`."""
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise DefinitionError(
            f"server_tools={values!r} must be a list, such as "
            "[{'type': 'code_execution_20260120', 'name': 'code_execution'}]"
        )
    names: list[object] = list(tools)
    for value in values:
        _check_server_tool(value)
        name = value.get("name", value.get("mcp_server_name"))
        if name in names:
            raise DefinitionError(f"two tools are called {name!r}: the model could not tell them apart")
        names.append(name)
    return [dict(value) for value in values]


def _check_server_tool(value: Any) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise DefinitionError(f"server_tools has {value!r}: each is what the model's API takes, with a 'type'")
    if value["type"] == "custom" or "input_schema" in value:
        raise DefinitionError(
            f"server_tools has {value!r}, which nobody would run: make a function a tool by @app.tool"
        )
    if value["type"].startswith(_CLIENTS_OWN):
        raise DefinitionError(
            f"server_tools has {value['type']!r}, whose calls the provider leaves to its client: make a function a "
            "tool by @app.tool"
        )
    try:
        orjson.dumps(dict(value))
    except (orjson.JSONEncodeError, TypeError) as error:
        raise DefinitionError(f"server_tools has {value!r}, which must be JSON: {error}") from error


def check_called(agent: AgentSpec, tools: Iterable[ToolSpec]) -> None:
    """What the provider refuses of an agent whose tools code may call, as far as the tools are known."""
    for tool in tools:
        if tool.name not in agent.tools:
            continue
        callers = callers_of(tool, agent)
        if not callers:
            raise DefinitionError(
                f"the tool {tool.name!r} may be called by {' and '.join(tool.allowed_callers)} alone, which the agent "
                f"does not have: add server_tools=[{{'type': {tool.allowed_callers[0]!r}, 'name': 'code_execution'}}]"
            )
        if agent.tool_choice == tool.name and not is_direct(tool):
            raise DefinitionError(
                f"tool_choice={tool.name!r} forces a call, but only code may call that tool: leave it out, or add "
                "'direct' to the tool's allowed_callers"
            )
        if not agent.parallel_tool_calls and callers != [DIRECT]:
            raise DefinitionError(
                f"parallel_tool_calls=False allows one call a turn, but code may call {tool.name!r}, and how often it "
                "does cannot be limited: leave it out, or take the code out of the tool's allowed_callers"
            )
