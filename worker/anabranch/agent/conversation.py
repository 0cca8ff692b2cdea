"""The body of the next model call, from the fold of a run. PURE.

After a reply with calls comes one user message: first the results, one per id, in the order of the calls,
then nothing. Replies go back as the bytes that they came as; a result is read here for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

import orjson

from anabranch.agent.answer import UNREADABLE, last_words, result_of
from anabranch.agent.caching import Breakpoints, Mark, breakpoints, is_worth, marked
from anabranch.agent.dropping import FULL, STEP, Dropped, dropped, is_small, words_for
from anabranch.agent.programmatic import called_by_code, container_of, direct, offered
from anabranch.agent.referring import content_elsewhere
from anabranch.agent.state import Call, Result, Run, Turn
from anabranch.agent.verbatim import items, members, written
from anabranch.bodies import MAX_DEPTH, depth_of, read
from anabranch.errors import InvalidRequest, WireError
from anabranch.messages import Content, RunRequest, ToolResult
from anabranch.specs import AgentSpec, ToolSpec

HINT = (
    "When you need several tools and none of them needs another's result, "
    "call them all together in one turn: they run in parallel."
)
_MARK = b',"content":['
_EDITING = "context-management-2025-06-27"
_THINKING = ("thinking", "redacted_thinking")


Found = Mapping[str, bytes]
"""What was fetched from the store and opened, by what stands in its place: all that `agent.large.needed` names."""
_NOTHING: Final[Found] = {}


def request_body(
    run: Run, agent: AgentSpec, tools: list[ToolSpec], found: Found = _NOTHING, model: str | None = None
) -> bytes:
    """The JSON of `POST /v1/messages` for the turn that the run owes, as a stream; for `model`, or the agent's own.

    `betas`, if there are any, come first: `anthropic_model.py` makes a header of them.
    Raises `InvalidRequest` if the messages that the request refers to cannot be any.
    """
    request = run.opening.request
    parallel = agent.parallel_tool_calls and request.parallel_tool_calls is not False
    opening, asked = _opening(request, found), model or agent.model
    told, called = offered(agent, tools), direct(agent, tools)
    points = breakpoints(agent, opening, goes_on=bool(told))
    options = {name: value for name, value in agent.options.items() if name != "betas"}
    body: dict[str, Any] = {"max_tokens": agent.max_tokens, **_editing(run, agent), **options}
    if betas := _betas(agent, body):
        body = {"betas": betas, **body}
    body |= {"model": asked, "stream": True}
    if told:
        body["tools"] = told
        if choice := _tool_choice(agent, called, run.turn, parallel):
            body["tool_choice"] = choice
    if system := _system(agent, bool(called) and parallel):
        body["system"] = system
    if points.system is not None and (system or told):
        (system or told)[-1]["cache_control"] = points.system
    if (container := container_of(run, body.get("container"), partial(_last_said, run, found))) is not None:
        body["container"] = container
    body.pop("messages", None)
    out = dropped(run, agent)
    # last: what was sent before is how the next one begins
    body["messages"] = _messages(run, opening, points, out, found, lambda turn: (turn.model or agent.model) == asked)
    return orjson.dumps(body)


def _last_said(run: Run, found: Found) -> list[bytes]:
    """The content of the last assistant message, a reply each."""
    return [content_of(turn.body, found) for turn in last_words(run)] if run.turns else []


def _system(agent: AgentSpec, hint: bool) -> list[dict[str, Any]]:
    parts = [agent.system] if agent.system else []
    if hint and agent.parallel_hint:
        parts.append(HINT)
    return [{"type": "text", "text": "\n\n".join(parts)}] if parts else []


def _tool_choice(agent: AgentSpec, tools: set[str], turn: int, parallel: bool) -> dict[str, Any] | None:
    """A forced choice holds for the first turn: after that the model must be free to answer.

    A tool that nobody has registered cannot be forced: the provider would refuse the request.
    """
    wanted = agent.tool_choice
    if wanted == "none":
        return {"type": "none"}
    choice: dict[str, Any] = {"type": "auto"}
    if turn == 1 and wanted == "any":
        choice = {"type": "any"}
    elif turn == 1 and wanted in tools:
        choice = {"type": "tool", "name": wanted}
    if not parallel:
        choice["disable_parallel_tool_use"] = True
    return None if choice == {"type": "auto"} else choice


def _editing(run: Run, agent: AgentSpec) -> dict[str, Any]:
    """What asks the provider to leave out old results, but none of the last batch."""
    if agent.context != "provider":
        return {}
    calls = max((len(turn.calls) for turn in run.turns[-1:]), default=0)
    edit: dict[str, Any] = {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": max(3, calls)}}
    if (window := agent.context_window) is not None:
        edit["trigger"] = {"type": "input_tokens", "value": int(FULL * window)}
        edit["clear_at_least"] = {"type": "input_tokens", "value": int(STEP * window)}
    return {"context_management": {"edits": [edit]}}


def _betas(agent: AgentSpec, body: Mapping[str, Any]) -> list[str]:
    """The agent's own, and those without which the provider refuses what the request holds. They stand first in it."""
    betas = list(agent.options.get("betas") or [])
    return betas if "context_management" not in body or _EDITING in betas else [*betas, _EDITING]


def _messages(
    run: Run,
    opening: list[dict[str, Any]],
    points: Breakpoints,
    out: Dropped,
    found: Found,
    is_own: Callable[[Turn], bool],
) -> list[dict[str, Any]]:
    """The conversation as one model has it: without what other models thought, which it could not read.

    So what a model is sent of earlier turns never changes, whichever models made them: its own thinking would be void
    otherwise. See decision 15. What is left `out` is decided by decision 16.
    """
    contents = [content_of(turn.body, found) for turn in run.turns]
    marks = _marks(run, points, contents)
    messages = marked(opening, marks.get(_OPENING)) if points.anchor is not None and is_worth(opening) else opening
    paused: list[bytes] = []
    last = len(run.turns) - 1
    for number, (turn, content) in enumerate(zip(run.turns, contents, strict=True)):
        paused.append(content if is_own(turn) and number >= out.thoughts else without_thinking(content))
        if turn.outcome == "pause" and number < last:
            continue
        if (joined := _joined(paused)) != b"[]":  # of a pause, thinking may have been all
            messages.append({"role": "assistant", "content": orjson.Fragment(joined)})
        paused = []
        if turn.calls:
            results = _results(turn, content, found, marks.get(number), number < out.results)
            messages.append({"role": "user", "content": results})
    return messages


_OPENING: Final = -1


def _marks(run: Run, points: Breakpoints, contents: Sequence[bytes]) -> dict[int, Mark]:
    """By turn, those whose results end in a breakpoint; as if the run's first messages were a turn before the first."""
    batches = (number for number in reversed(range(len(run.turns))) if _markable(run.turns[number], contents[number]))
    placed = zip(chain(batches, [_OPENING]), (points.tail, points.anchor), strict=False)
    return {number: mark for number, mark in placed if mark is not None}


def _markable(turn: Turn, content: bytes) -> list[str]:
    """The ids of the calls whose results may be a breakpoint: not those that code has made."""
    ids = [call.planned.tool_use_id for call in turn.calls.values()]
    by_code = called_by_code(content) if ids else ()
    return [tool_use_id for tool_use_id in ids if tool_use_id not in by_code]


def _opening(request: RunRequest, found: Found) -> list[dict[str, Any]]:
    if request.messages_ref is not None:
        return _messages_in(found[request.messages_ref], f"messages_ref: {request.messages_ref}")
    if request.messages_sealed is not None:
        return _messages_in(found[request.messages_sealed], "messages_sealed: it")
    if request.messages is not None:
        return list(request.messages)
    return [{"role": "user", "content": request.input}]


def _messages_in(data: bytes, where: str) -> list[dict[str, Any]]:
    """What the client has put into the store, or sealed, is looked at as closely as if it had been in its request."""
    try:
        messages = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise InvalidRequest(f"{where} must be a list of messages that is not empty")
    if depth_of(messages) > MAX_DEPTH:
        raise InvalidRequest(f"{where} nests deeper than {MAX_DEPTH} levels")
    return messages


def content_of(body: bytes, found: Found = _NOTHING) -> bytes:
    """The content of a reply, as the bytes of a JSON list."""
    if (elsewhere := content_elsewhere(body)) is not None:
        return found[elsewhere]
    head, mark, tail = body.partition(_MARK)
    if mark and tail.endswith(b"]}") and _is_whole(head + b"}"):
        return b"[" + tail[:-1]
    return members(body.decode())["content"].encode()


def without_thinking(content: bytes) -> bytes:
    """A list of blocks without those that think; the others stay the bytes that they are."""
    if b"thinking" not in content:
        return content
    kept = [block for block in items(content.decode()) if not _thinks(json.loads(block))]
    return f"[{','.join(kept)}]".encode()


def _thinks(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in _THINKING


def without_thoughts(body: bytes) -> bytes:
    """A request without anything that was thought; the rest stays the bytes that it is."""
    fields = members(body.decode())
    kept = [message for message in map(_without_thoughts, items(fields["messages"])) if message is not None]
    return written({**fields, "messages": f"[{','.join(kept)}]"}).encode()


def _without_thoughts(message: str) -> str | None:
    """None if it was all thinking."""
    fields = members(message)
    content = without_thinking(fields["content"].encode()).decode() if fields["content"][0] == "[" else ""
    return None if content == "[]" else written({**fields, "content": content}) if content else message


def _is_whole(head: bytes) -> bool:
    """Whether the mark was the message's own, and not one inside something."""
    try:
        orjson.loads(head)
    except orjson.JSONDecodeError:
        return False
    return True


def _joined(lists: list[bytes]) -> bytes:
    return lists[0] if len(lists) == 1 else b"[" + b",".join(part[1:-1] for part in lists if part != b"[]") + b"]"


def _results(turn: Turn, content: bytes, found: Found, mark: Mark | None, left_out: bool) -> list[dict[str, Any]]:
    blocks = [_result(call, found, left_out) for call in turn.calls.values()]
    if mark is not None and (markable := _markable(turn, content)):
        next(block for block in blocks if block["tool_use_id"] == markable[-1])["cache_control"] = mark
    return blocks


def _result(call: Call, found: Found, left_out: bool) -> dict[str, Any]:
    result = call.result
    assert result is not None, "a batch is sent back only when it is complete"
    told = not left_out or is_small(result)
    content, failed = _said(call, result, found) if told else (words_for(call), result.failed)
    block: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": call.planned.tool_use_id,
        "content": _fit(content, failed),
    }
    if failed:
        block["is_error"] = True
    return block


def _said(call: Call, result: Result, found: Found) -> tuple[Content, bool]:
    """What a call came to, and whether it failed."""
    if result.body is None and (sealed := call.planned.rejected_sealed) is not None:
        return orjson.loads(found[sealed]), True
    if result.body is None:
        return result.text or "", result.failed
    told = result_of(result.body)
    content = None if told is None else _content(told, found)
    return (UNREADABLE, True) if content is None else (content, result.failed)


def _content(result: ToolResult, found: Found) -> Content | None:
    """What a result says, wherever it lies; None if it is nothing that a result can say."""
    if (elsewhere := result.content_ref or result.content_sealed) is None:
        return result.content
    if elsewhere not in found:
        return None
    try:
        return read(ToolResult, b'{"content":' + found[elsewhere] + b"}").content
    except WireError:
        return None


def _fit(content: Content, failed: bool) -> Content:
    """Content that the provider takes: blocks of the types that a result may have, errors never empty."""
    if isinstance(content, list) and not (all(map(_is_block, content)) and _is_writable(content)):
        content = json.dumps(content, ensure_ascii=False)
    if failed and not isinstance(content, str):
        content = "\n".join(block["text"] for block in content if block["type"] == "text")
    if failed and not str(content).strip():
        return "the tool failed and did not say why"
    return content or ""


def _is_block(block: dict[str, Any]) -> bool:
    """Whether it has the one field without which the provider refuses the whole conversation."""
    match block.get("type"):
        case "text":
            return isinstance(block.get("text"), str) and bool(block["text"].strip())
        case "image" | "document":
            return isinstance(block.get("source"), dict)
        case "search_result":
            return isinstance(block.get("source"), str) and isinstance(block.get("content"), list)
        case _:
            return False


def _is_writable(content: list[dict[str, Any]]) -> bool:
    try:
        orjson.dumps(content)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return False
    return True
