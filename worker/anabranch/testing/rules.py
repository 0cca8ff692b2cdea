"""What the API refuses in a request: its fields, one by one, and then the rules that span them.

Pure: a request in, `Refused` or nothing out. It must never repair a request. The server calls it for every
request, and `conversation` and `declarations` keep the rules of messages and of tools.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from anabranch.testing.conversation import check_conversation, check_system
from anabranch.testing.declarations import check_breakpoints, check_tool_choice, check_tools
from anabranch.testing.refusal import refuse

Json = Any  # a client's request, not ours


def check_message(request: Mapping[str, Json], models: Collection[str]) -> None:
    """Refuse a body of `POST /v1/messages` that the API would refuse."""
    _check_fields(request, _MESSAGE_FIELDS, required=("model", "max_tokens", "messages"))
    if request["max_tokens"] < 1:
        refuse("max_tokens: Input should be greater than or equal to 1")
    _check_content(request, models)


def check_count(request: Mapping[str, Json], models: Collection[str]) -> None:
    """Refuse a body of `POST /v1/messages/count_tokens` that the API would refuse."""
    _check_fields(request, _COUNT_FIELDS, required=("model", "messages"))
    _check_content(request, models)


def _check_content(request: Mapping[str, Json], models: Collection[str]) -> None:
    if request["model"] not in models:
        refuse(f"model: {request['model']}")
    tools = request.get("tools", [])
    check_system(request.get("system", ""))
    check_tools(tools)
    check_tool_choice(request.get("tool_choice"), tools)
    check_conversation(request["messages"])
    check_breakpoints(request)


Check = tuple[Callable[[Json], bool], str]


def _is(kind: type | tuple[type, ...], what: str) -> Check:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool), what


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check[0](value), check[1]


def _are_texts(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_TEXT = _is(str, "a valid string")
_OBJECT = _is(dict, "an object")
_LIST = _is(list, "a valid list")
_ANYTHING: Check = (lambda value: True, "")

_COMMON: dict[str, Check] = {
    "model": (lambda value: isinstance(value, str) and value != "", "a non-empty string"),
    "messages": _LIST,
    "system": _is((str, list), "a string or a list of text blocks"),
    "tools": _LIST,
    "tool_choice": _OBJECT,
    "thinking": _OBJECT,
    "output_config": _OBJECT,
    "cache_control": _or_null(_OBJECT),
    "speed": _or_null(_TEXT),
    "user_profile_id": _TEXT,
    "workspace_id": _TEXT,
}

# What only a beta has is let through unseen: no script depends on it.
_BETA = ("billing_policy", "compaction", "context_management", "fallback_credit_token", "fallbacks",
         "mcp_servers", "thread")  # fmt: skip

_MESSAGE_FIELDS: dict[str, Check] = {
    **_COMMON,
    **dict.fromkeys(_BETA, _ANYTHING),
    "max_tokens": _is(int, "a valid integer"),
    "stream": (lambda value: isinstance(value, bool), "a valid boolean"),
    "stop_sequences": (_are_texts, "a list of strings"),
    "metadata": _OBJECT,
    "container": _ANYTHING,
    "diagnostics": _or_null(_OBJECT),
    "inference_geo": _or_null(_TEXT),
    "service_tier": _TEXT,
}

_COUNT_FIELDS: dict[str, Check] = {**_COMMON, **dict.fromkeys(_BETA, _ANYTHING)}

_GONE = frozenset({"temperature", "top_p", "top_k"})


def _check_fields(request: Mapping[str, Json], known: Mapping[str, Check], required: tuple[str, ...]) -> None:
    for name in required:
        if name not in request:
            refuse(f"{name}: Field required")
    for name, value in request.items():
        if name in _GONE:
            refuse(f"{name}: `{name}` is not supported by this model; remove it")
        check = known.get(name)
        if check is None:
            refuse(f"{name}: Extra inputs are not permitted")
        if not check[0](value):
            refuse(f"{name}: Input should be {check[1]}")
