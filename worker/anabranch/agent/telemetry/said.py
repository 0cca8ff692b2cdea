"""What was said to the model and by it, in the form of the GenAI conventions. PURE.

Asked only where content may be told. The provider's blocks become parts: `text`, `tool_call`, `tool_call_response`;
of any other kind only its name is told. Called by: `traces.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from anabranch.fields import Json


def messages_of(request: bytes) -> str | None:
    """`gen_ai.input.messages` of a request's body, as JSON."""
    messages = _read(request).get("messages")
    return _dump([_message(message) for message in messages]) if isinstance(messages, list) else None


def instructions_of(request: bytes) -> str | None:
    """`gen_ai.system_instructions` of a request's body, as JSON."""
    system = _read(request).get("system")
    return _dump(_parts(system)) if system else None


def words(reply: bytes) -> str:
    """`gen_ai.output.messages` of a reply, as JSON."""
    message = _read(reply)
    told = _message({"role": "assistant", **message})
    return _dump([{**told, "finish_reason": message.get("stop_reason")}])


def _read(body: bytes) -> dict[str, Json]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _dump(value: Json) -> str:
    return orjson.dumps(value, default=str).decode()


def _message(message: Json) -> Json:
    role = message.get("role", "") if isinstance(message, dict) else ""
    return {"role": role, "parts": _parts(message.get("content") if isinstance(message, dict) else message)}


def _parts(content: Json) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    blocks: Iterable[Json] = content if isinstance(content, list) else []
    return [_part(block) for block in blocks if isinstance(block, dict)]


def _part(block: dict[str, Json]) -> Json:
    match block.get("type"):
        case "text":
            return {"type": "text", "content": block.get("text")}
        case "tool_use":
            return {
                "type": "tool_call",
                "id": block.get("id"),
                "name": block.get("name"),
                "arguments": block.get("input"),
            }
        case "tool_result":
            return {
                "type": "tool_call_response",
                "id": block.get("tool_use_id"),
                "response": block.get("content"),
            }
        case other:
            return {"type": other}
