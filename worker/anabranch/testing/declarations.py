"""What the API refuses in the tools of a request, in `tool_choice`, and in its cache breakpoints.

Pure: `Refused` or nothing. It must never look at the conversation except to count breakpoints. `rules` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from jsonschema_rs import ValidationError, meta

from anabranch.testing.refusal import refuse

Json = Any  # a client's request, not ours

MAX_BREAKPOINTS = 4
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}\Z")
_CODE = re.compile(r"code_execution_\d{8}\Z")
_TOOL_FIELDS = frozenset({
    "type", "name", "description", "input_schema", "cache_control", "strict", "defer_loading",
    "allowed_callers", "eager_input_streaming", "input_examples",
})  # fmt: skip


def check_tools(tools: Sequence[Json]) -> None:
    """Names, duplicates, and the schemas of the tools that the client runs; the provider's own are let be."""
    names: set[str] = set()
    types = {tool.get("type") for tool in tools if isinstance(tool, dict)}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            refuse(f"tools.{index}: Input should be an object")
        if tool.get("type") in (None, "custom"):
            _check_custom(f"tools.{index}.custom", tool)
            _check_callers(f"tools.{index}.custom", tool, types)
        name = tool.get("name")
        if isinstance(name, str):
            if name in names:
                refuse(f"tools: Tool names must be unique: {name!r} is there twice.")
            names.add(name)


def _check_custom(where: str, tool: Mapping[str, Json]) -> None:
    for name in ("name", "input_schema"):
        if name not in tool:
            refuse(f"{where}.{name}: Field required")
    for name in tool.keys() - _TOOL_FIELDS:
        refuse(f"{where}.{name}: Extra inputs are not permitted")
    if not isinstance(tool["name"], str) or not _NAME.match(tool["name"]):
        refuse(f"{where}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$', not {tool['name']!r}")
    if not isinstance(tool.get("description", ""), str):
        refuse(f"{where}.description: Input should be a valid string")
    _check_schema(f"{where}.input_schema", tool["input_schema"])


def _check_callers(where: str, tool: Mapping[str, Json], types: Collection[Json]) -> None:
    callers = tool.get("allowed_callers", ["direct"])
    if not isinstance(callers, list) or not callers:
        refuse(f"{where}.allowed_callers: Input should be a list that is not empty")
    for caller in callers:
        if caller != "direct" and not _CODE.match(str(caller)):
            refuse(f"{where}.allowed_callers: Input should be 'direct' or 'code_execution_...', not {caller!r}")
        if caller != "direct" and caller not in types:
            refuse(f"{where}.allowed_callers: {caller!r} is none of the tools of the request")
    if tool.get("strict") and callers != ["direct"]:
        refuse(f"{where}.strict: is not supported for tools that code may call")


def _check_schema(where: str, schema: Json) -> None:
    if not isinstance(schema, dict):
        refuse(f"{where}: Input should be an object")
    if schema.get("type") != "object":
        refuse(f"{where}.type: Input should be 'object'")
    if not schema.keys().isdisjoint(("oneOf", "allOf", "anyOf")):
        refuse(f"{where}: input_schema does not support oneOf, allOf, or anyOf at the top level")
    if mistake := _mistake_in(orjson.dumps(schema)):
        refuse(
            f"{where}: JSON schema is invalid. It must match JSON Schema draft 2020-12 "
            f"(https://json-schema.org/draft/2020-12): {mistake}"
        )


@lru_cache(maxsize=4096)
def _mistake_in(schema: bytes) -> str:
    """What is wrong with a schema, or "". Cached: an agent sends the same tools with every turn."""
    try:
        meta.validate(orjson.loads(schema))
    except ValidationError as error:
        return f"{'.'.join(map(str, error.instance_path))}: {error.message}"
    except ValueError as error:
        return str(error)
    return ""


def check_tool_choice(choice: Mapping[str, Json] | None, tools: Sequence[Mapping[str, Json]]) -> None:
    """`auto`, `any`, `none`, or a tool that is there."""
    if choice is None:
        return
    type_ = choice.get("type")
    if type_ not in ("auto", "any", "none", "tool"):
        refuse(f"tool_choice.type: Input should be 'auto', 'any', 'none' or 'tool', not {type_!r}")
    allowed = {"type"} | ({"disable_parallel_tool_use"} if type_ != "none" else set())
    for name in choice.keys() - allowed - ({"name"} if type_ == "tool" else set()):
        refuse(f"tool_choice.{type_}.{name}: Extra inputs are not permitted")
    if not isinstance(choice.get("disable_parallel_tool_use", False), bool):
        refuse(f"tool_choice.{type_}.disable_parallel_tool_use: Input should be a valid boolean")
    if type_ in ("any", "tool") and not tools:
        refuse("tool_choice: `tool_choice` may only be specified while providing `tools`.")
    if type_ == "tool" and choice.get("name") not in [tool.get("name") for tool in tools]:
        refuse(f"tool_choice.tool.name: Tool {choice.get('name')!r} not found in provided tools")
    for tool in tools:
        callers = tool.get("allowed_callers", ["direct"])
        if callers != ["direct"] and choice.get("disable_parallel_tool_use"):
            refuse("tool_choice.disable_parallel_tool_use: is not supported for tools that code may call")
        if "direct" not in callers and type_ == "tool" and tool.get("name") == choice.get("name"):
            refuse(f"tool_choice.tool.name: Tool {tool['name']!r} may be called by code alone, and cannot be forced")


def check_breakpoints(request: Mapping[str, Json]) -> None:
    """At most four `cache_control`, wherever they are; the automatic one at the top counts too."""
    marks = [mark for mark in _marks(request) if mark is not None]
    for mark in marks:
        if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
            refuse(f"cache_control: Input should be {{'type': 'ephemeral'}}, not {mark!r}")
        if mark.get("ttl", "5m") not in ("5m", "1h"):
            refuse(f"cache_control.ttl: Input should be '5m' or '1h', not {mark['ttl']!r}")
    if len(marks) > MAX_BREAKPOINTS:
        refuse(f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(marks)}.")


def _marks(request: Mapping[str, Json]) -> Iterator[Json]:
    yield request.get("cache_control")
    yield from (tool.get("cache_control") for tool in request.get("tools", ()))
    yield from _marks_in(request.get("system"))
    for message in request["messages"]:
        yield from _marks_in(message["content"])


def _marks_in(content: Json) -> Iterator[Json]:
    if not isinstance(content, list):
        return
    for block in content:
        if isinstance(block, dict):
            yield block.get("cache_control")
            yield from _marks_in(block.get("content"))
