"""Calls that the model makes from code of its own: who may call a tool, and the container that the code runs in. PURE.

The provider runs the code, and stops it at each call; the calls come and are served like any other. What it insists on
then is kept here: the container's id in the next request, and no cache breakpoint on the results of such calls. See
https://platform.claude.com/docs/en/agents-and-tools/tool-use/programmatic-tool-calling. Called by `offer.py` and
`conversation.py`, and by admission, which refuses what the provider would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson

from anabranch.agent.reply.content import head_of
from anabranch.agent.reply.verbatim import members
from anabranch.agent.state import Run
from anabranch.declarations.callers import DIRECT, callers_of, is_direct
from anabranch.errors import InvalidRequest
from anabranch.fields import Json
from anabranch.messages import RunRequest
from anabranch.specs import AgentSpec, ToolSpec


def offered(agent: AgentSpec, tools: Iterable[ToolSpec]) -> list[dict[str, Json]]:
    """What a request says of the tools: the provider's own first, and of ours those that the agent has a caller for."""
    told: list[dict[str, Json]] = [dict(tool) for tool in agent.server_tools]
    for tool in tools:
        callers = callers_of(tool, agent)
        if callers:
            about = {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            told.append(about if callers == [DIRECT] else {**about, "allowed_callers": callers})
    return told


def direct(tools: Iterable[ToolSpec]) -> set[str]:
    """The names of the tools that the model may call outside of code."""
    return {tool.name for tool in tools if is_direct(tool)}


def check_request(request: RunRequest, agent: AgentSpec, tool: Callable[[str], ToolSpec | None]) -> None:
    """Raises `InvalidRequest` if the run may make one call a turn, and code may call tools: no provider limits that."""
    if agent.parallel_tool_calls and request.parallel_tool_calls is not False:
        return
    for name in agent.tools:
        if (spec := tool(name)) is not None and any(caller != DIRECT for caller in callers_of(spec, agent)):
            raise InvalidRequest(
                f"parallel_tool_calls: is false, but code may call the tool {name!r} of agent {agent.name!r}, and how "
                "often it does cannot be limited: leave it out, or use an agent without server tools that run code"
            )


def container_of(run: Run, given: Json, said: Callable[[], list[bytes]]) -> Json:
    """What the next request says of the container; `given` is what the agent's options say. None: nothing.

    One that was past its time when the call became due is left out, for the provider would refuse it, unless code that
    waits is in it: then the provider says what becomes of that. `said` is the content of the last assistant message.
    """
    found = None
    for turn in reversed(run.turns):
        if (found := _container(turn.body)) is not None:
            break
    if found is None or (_expired(found, run.owed_at) and not any(map(_waits, said()))):
        return given
    return {**given, "id": found["id"]} if isinstance(given, Mapping) else found["id"]


def _container(body: bytes) -> dict[str, Any] | None:
    """What a reply says of its container. Only what stands before the content is read: the field stands there."""
    head = head_of(body)
    if b'"container"' not in head:
        return None
    try:
        found = orjson.loads(members(head.decode()).get("container", "null"))
    except (ValueError, TypeError, IndexError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("id"), str) else None


def _expired(container: Mapping[str, Any], at: float) -> bool:
    try:
        return datetime.fromisoformat(container["expires_at"]).timestamp() <= at
    except (KeyError, TypeError, ValueError):
        return False  # it does not say when


def _waits(content: bytes) -> bool:
    """Whether code waits for results, or is still to be run."""
    if called_by_code(content):
        return True
    if b'"server_tool_use"' not in content:
        return False
    blocks = [block for block in orjson.loads(content) if isinstance(block, dict)]
    done = {block.get("tool_use_id") for block in blocks if str(block.get("type")).endswith("_tool_result")}
    return any(block.get("type") == "server_tool_use" and block.get("id") not in done for block in blocks)


def called_by_code(content: bytes) -> frozenset[str]:
    """The ids of the calls in a reply's content that code has made."""
    if b'"caller"' not in content:
        return frozenset()
    return frozenset(
        str(block.get("id"))
        for block in orjson.loads(content)
        if isinstance(block, dict) and block.get("type") == "tool_use" and _is_code(block.get("caller"))
    )


def _is_code(caller: Any) -> bool:
    return isinstance(caller, dict) and caller.get("type") not in (None, DIRECT)
