"""What the API refuses in `messages` and `system`: roles, blocks, and the pairing of calls and results.

The law that it keeps: after an assistant message with `tool_use` blocks comes one user message with one
`tool_result` for each id, results before any other block.

Pure: `Refused` or nothing. It must never repair or reorder. `rules` calls it; signatures of thinking blocks are
the server's to remember (`signatures`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

from anabranch.testing.containers import called_by_code
from anabranch.testing.refusal import refuse

Json = Any  # a client's messages, not ours
Block = dict[str, Json]

_ID = re.compile(r"[a-zA-Z0-9_-]+\Z")
_FIELDS = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller", "toolset_name"}),
    "tool_result": frozenset({
        "type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name",
    }),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "cache_control", "citations", "title", "context"}),
    "search_result": frozenset({"type", "source", "title", "content", "cache_control", "citations"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
}  # fmt: skip
"""What blocks may hold. Types that are not listed are let through: the provider has more of them than we know."""

_LONGEST_NAME = 200
"""What the model calls a tool that it has made up; names of tools that are there are shorter."""
_ONLY_ASSISTANT = frozenset({"tool_use", "thinking", "redacted_thinking"})
_IN_RESULTS = frozenset({"text", "image", "search_result", "document", "tool_reference", "browser_state"})


class _Turn(NamedTuple):
    """A message with its place, its content always as blocks."""

    where: str
    role: str
    blocks: list[Block]

    def ids(self, type_: str, key: str) -> list[str]:
        return [block[key] for block in self.blocks if block["type"] == type_]


def check_system(system: Json) -> None:
    """A string, or text blocks that are not empty."""
    for index, block in enumerate([] if isinstance(system, str) else system):
        where = f"system.{index}"
        if not isinstance(block, dict) or block.get("type") != "text":
            refuse(f"{where}: Input should be a text block")
        _check_block(where, block)


def check_conversation(messages: Sequence[Json]) -> None:
    """Every rule of `messages`, in the order in which the API complains."""
    if not messages:
        refuse("messages: at least one message is required")
    turns = [_turn(f"messages.{index}", message) for index, message in enumerate(messages)]
    if turns[0].role != "user":
        refuse('messages: first message must use the "user" role')
    _check_not_empty(turns)
    for turn in turns:
        for index, block in enumerate(turn.blocks):
            _check_place(turn, index, block)
            _check_block(f"{turn.where}.content.{index}", block)
    _check_unique_ids(turns)
    _check_pairs(turns)


def _turn(where: str, message: Json) -> _Turn:
    if not isinstance(message, dict):
        refuse(f"{where}: Input should be an object")
    for name in ("role", "content"):
        if name not in message:
            refuse(f"{where}.{name}: Field required")
    for name in message.keys() - {"role", "content"}:
        refuse(f"{where}.{name}: Extra inputs are not permitted")
    role, content = message["role"], message["content"]
    if role not in ("user", "assistant", "system"):
        refuse(f"{where}.role: Input should be 'user', 'assistant' or 'system', not {role!r}")
    return _Turn(where, role, _blocks(f"{where}.content", content))


def _blocks(where: str, content: Json) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        refuse(f"{where}: Input should be a valid string or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            refuse(f"{where}.{index}: Input should be an object with a `type`")
    return content


def _check_not_empty(turns: Sequence[_Turn]) -> None:
    for turn in turns:
        last_words = turn is turns[-1] and turn.role == "assistant"
        if not turn.blocks and not last_words:
            refuse(
                f"{turn.where}: all messages must have non-empty content "
                "except for the optional final assistant message"
            )


def _check_place(turn: _Turn, index: int, block: Block) -> None:
    type_ = block["type"]
    if type_ in _ONLY_ASSISTANT and turn.role != "assistant":
        refuse(f"{turn.where}: `{type_}` blocks can only be in `assistant` messages")
    if type_ == "tool_result" and turn.role != "user":
        refuse(f"{turn.where}: `tool_result` blocks can only be in `user` messages")
    if turn.role == "system" and type_ != "text":
        refuse(f"{turn.where}.content.{index}: Input should be a text block")


def _check_block(where: str, block: Block) -> None:
    type_ = block["type"]
    _check_fields(where, block)
    if type_ == "text":
        _check_text(where, block)
    elif type_ == "tool_use":
        _check_tool_use(f"{where}.tool_use", block)
    elif type_ == "tool_result":
        _check_tool_result(where, block)
    elif type_ == "thinking":
        _check_string(f"{where}.thinking", block, "thinking")
        _check_string(f"{where}.thinking", block, "signature")


def _check_fields(where: str, block: Block) -> None:
    type_ = block["type"]
    for name in block.keys() - _FIELDS.get(type_, block.keys()):
        refuse(f"{where}.{type_}.{name}: Extra inputs are not permitted")


def _check_string(where: str, block: Block, name: str) -> None:
    if name not in block:
        refuse(f"{where}.{name}: Field required")
    if not isinstance(block[name], str):
        refuse(f"{where}.{name}: Input should be a valid string")


def _check_text(where: str, block: Block) -> None:
    _check_string(f"{where}.text", block, "text")
    if not block["text"]:
        refuse(f"{where}: text content blocks must be non-empty")
    if not block["text"].strip():
        refuse(f"{where}: text content blocks must contain non-whitespace text")


def _check_tool_use(where: str, block: Block) -> None:
    _check_string(where, block, "id")
    _check_string(where, block, "name")
    if not _ID.match(block["id"]):
        refuse(f"{where}.id: String should match pattern '^[a-zA-Z0-9_-]+$', not {block['id']!r}")
    if not block["name"]:
        refuse(f"{where}.name: String should have at least 1 character")
    if len(block["name"]) > _LONGEST_NAME:
        refuse(f"{where}.name: String should have at most {_LONGEST_NAME} characters")
    if not isinstance(block.get("input"), dict):
        refuse(f"{where}.input: Input should be an object")


def _check_tool_result(where: str, block: Block) -> None:
    _check_string(f"{where}.tool_result", block, "tool_use_id")
    if not isinstance(block.get("is_error", False), bool):
        refuse(f"{where}.tool_result.is_error: Input should be a valid boolean")
    content = block.get("content")
    inner = [] if content is None else _blocks(f"{where}.tool_result.content", content)
    if block.get("is_error"):
        _check_error_content(where, inner)
    # A string may be blank; the rules of text blocks are for blocks.
    for index, part in enumerate(inner if isinstance(content, list) else []):
        place = f"{where}.tool_result.content.{index}"
        if part["type"] not in _IN_RESULTS:
            refuse(f"{place}: Input tag {part['type']!r} does not match any of the expected tags")
        _check_fields(place, part)
        if part["type"] == "text" and part.get("text") == "":
            refuse(f"{place}: text content blocks must be non-empty")


def _check_error_content(where: str, inner: Sequence[Block]) -> None:
    if not any(part.get("text", True) for part in inner):
        refuse(f"{where}: content cannot be empty if `is_error` is true")
    if any(part["type"] != "text" for part in inner):
        refuse(f"{where}: all content must be type `text` if `is_error` is true")


def _check_unique_ids(turns: Sequence[_Turn]) -> None:
    seen: set[str] = set()
    for turn in turns:
        for id_ in turn.ids("tool_use", "id"):
            if id_ in seen:
                refuse(f"{turn.where}: `tool_use` ids must be unique: {id_} is there twice")
            seen.add(id_)


def _check_pairs(turns: list[_Turn]) -> None:
    """Each message against the one that follows, as sent: messages of one role are not merged before this."""
    nobody = _Turn("", "", [])
    for turn, following in pairwise([nobody, *turns, nobody]):
        _check_results(turn, following)
        _check_answered(turn, following)
        _check_code(turn, following)


def _check_results(turn: _Turn, following: _Turn) -> None:
    asked = set(turn.ids("tool_use", "id"))
    seen: set[str] = set()
    for id_ in following.ids("tool_result", "tool_use_id"):
        if id_ not in asked:
            refuse(
                f"{following.where}: unexpected `tool_use_id` found in `tool_result` blocks: {id_}. Each "
                "`tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        if id_ in seen:
            refuse(
                f"{following.where}: each tool_use must have a single result. "
                f"Found multiple `tool_result` blocks with id: {id_}"
            )
        seen.add(id_)


def _check_answered(turn: _Turn, following: _Turn) -> None:
    leading = set(_leading_results(following))
    missing = [id_ for id_ in turn.ids("tool_use", "id") if id_ not in leading]
    late = set(following.ids("tool_result", "tool_use_id")) - leading
    if missing or late:
        hint = " `tool_result` blocks must come before any other block of their message." if late else ""
        refuse(
            f"{turn.where}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in "
            f"the next message.{hint}"
        )


def _check_code(turn: _Turn, following: _Turn) -> None:
    """Code that waits hears results and nothing else, and what it hears is no part of a prompt that could be cached."""
    asked = {block["id"] for block in turn.blocks if called_by_code(block)}
    if not asked:
        return
    for index, block in enumerate(following.blocks):
        where = f"{following.where}.content.{index}"
        if block["type"] != "tool_result":
            refuse(f"{where}: only `tool_result` blocks may answer calls that code has made, not {block['type']!r}")
        if block["tool_use_id"] in asked and block.get("cache_control") is not None:
            refuse(f"{where}.cache_control: may not be set on the result of a call that code has made")


def _leading_results(turn: _Turn) -> Iterator[str]:
    results = takewhile(lambda block: block["type"] == "tool_result", turn.blocks)
    return (block["tool_use_id"] for block in results)
