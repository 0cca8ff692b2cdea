"""The body of the next model call, from the fold of a run. PURE.

After a reply with calls comes one user message: first the results, one per id, in the order of the calls,
then nothing. Replies go back as the bytes that they came as; a result is read here for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson

from anabranch.agent.answer import last_words
from anabranch.agent.prompt.caching import MARKS, Breakpoints, Kept, is_worth, marked
from anabranch.agent.prompt.dropping import Dropped, dropped, is_small, words_for
from anabranch.agent.prompt.offer import Kind, Offer
from anabranch.agent.prompt.programmatic import called_by_code, container_of
from anabranch.agent.reply.content import NOTHING, Found, content_of, without_blanks, without_thinking
from anabranch.agent.results import UNREADABLE, result_of, unreadable
from anabranch.agent.state import Call, Result, Run, Turn
from anabranch.bodies import MAX_DEPTH, depth_of, read, refuse_messages
from anabranch.errors import InvalidRequest, WireError
from anabranch.fields import Content
from anabranch.log_events import ToolResult
from anabranch.messages import RunRequest
from anabranch.result_blocks import is_taken


def request_body(run: Run, offer: Offer, found: Found = NOTHING, model: str | None = None) -> bytes:
    """The JSON of `POST /v1/messages` for the turn that the run owes, as a stream; for `model`, or the agent's own.

    `betas`, if there are any, come first: `agent/model/anthropic_model.py` makes a header of them.
    Raises `InvalidRequest` if the messages that the request refers to cannot be any.
    """
    request, agent = run.opening.request, offer.agent
    opening, asked = _opening(request, found), model or agent.model
    points, out = offer.points(opening), dropped(run, agent)
    calls = len(run.turns[-1].calls) if run.turns and agent.context == "provider" else 0
    kind = Kind(asked, run.turn == 1, offer.is_parallel(request), points.system, calls)
    head = offer.head(kind, container_of(run, offer.container, partial(_last_said, run, found)))
    # last: what was sent before is how the next one begins
    messages = _messages(run, opening, points, out, found, lambda turn: (turn.model or agent.model) == asked)
    return b"%b%b}" % (head, orjson.dumps(messages))


def _last_said(run: Run, found: Found) -> list[bytes]:
    """The content of the last assistant message, a reply each."""
    return [content_of(turn.body, found) for turn in last_words(run)] if run.turns else []


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
    marks, first = _marks(run, points, contents)
    messages = marked(opening, first) if points.anchor is not None and is_worth(opening) else opening
    paused: list[bytes] = []
    last = len(run.turns) - 1
    for number, turn in enumerate(run.turns):
        content = without_blanks(contents[number])
        paused.append(content if is_own(turn) and number >= out.thoughts else without_thinking(content))
        if turn.outcome == "pause" and number < last:
            continue
        if (joined := _joined(paused)) != b"[]":  # of a pause, thinking or blanks may have been all
            messages.append({"role": "assistant", "content": orjson.Fragment(joined)})
        paused = []
        if turn.calls:
            results = _results(turn, found, marks.get(number), number < out.results)
            messages.append({"role": "user", "content": results})
    return messages


def _marks(run: Run, points: Breakpoints, contents: Sequence[bytes]) -> tuple[dict[int, tuple[str, Kept]], Kept | None]:
    """By turn, of which call the result is a breakpoint, and which one; and that of the run's first messages, as if
    they were a turn before the first.
    """
    placed: dict[int, tuple[str, Kept]] = {}
    kept, then = points.tail, points.anchor
    for number in range(len(run.turns) - 1, -1, -1):
        if kept is None and then is None:
            break
        if (tool_use_id := _last_markable(run.turns[number], contents[number])) is not None:
            if kept is not None:
                placed[number] = tool_use_id, kept
            kept, then = then, None
    return placed, kept


def _last_markable(turn: Turn, content: bytes) -> str | None:
    """The id of the last call whose result may be a breakpoint: none that code has made."""
    if not turn.calls:
        return None
    by_code = called_by_code(content)
    for call in reversed(turn.calls.values()):
        if call.planned.tool_use_id not in by_code:
            return call.planned.tool_use_id
    return None


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
        messages: list[dict[str, Any]] = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from None
    try:
        refuse_messages(messages)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where} is no conversation: {error}") from None
    if depth_of(messages) > MAX_DEPTH:
        raise InvalidRequest(f"{where} nests deeper than {MAX_DEPTH} levels")
    return messages


def _joined(lists: list[bytes]) -> bytes:
    return lists[0] if len(lists) == 1 else b"[" + b",".join(part[1:-1] for part in lists if part != b"[]") + b"]"


def _results(turn: Turn, found: Found, mark: tuple[str, Kept] | None, left_out: bool) -> list[dict[str, Any]]:
    blocks = [_result(call, found, left_out) for call in turn.calls.values()]
    if mark is not None:
        tool_use_id, kept = mark
        next(block for block in blocks if block["tool_use_id"] == tool_use_id)["cache_control"] = MARKS[kept]
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
    if (told := result_of(result.body)) is None:
        return unreadable(result.body), True
    content = _content(told, found)
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
    if isinstance(content, list):
        blocks = [_bare(block) for block in content]
        fits = all(map(is_taken, blocks)) and _is_writable(blocks)
        content = blocks if fits else json.dumps(content, ensure_ascii=False)
    if failed and not isinstance(content, str):
        content = "\n".join(block["text"] for block in content if block["type"] == "text")
    if failed and not str(content).strip():
        return "the tool failed and did not say why"
    return content or ""


def _bare(block: dict[str, Any]) -> dict[str, Any]:
    """A block without fields that say nothing, and without breakpoints: those of all results so far would soon be more
    than the provider takes in one request.
    """
    said = {name: value for name, value in block.items() if value is not None and name != "cache_control"}
    for name, inner in said.items():
        if isinstance(inner, list) and name == "content":
            said[name] = [_bare(each) if isinstance(each, dict) else each for each in inner]
        elif isinstance(inner, dict) and name == "source":
            said[name] = _bare(inner)
    return said


def _is_writable(content: list[dict[str, Any]]) -> bool:
    try:
        orjson.dumps(content)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return False
    return True
