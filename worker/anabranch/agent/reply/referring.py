"""A reply whose content is not in the log as it is: in the store, or sealed. What then stands in the log. PURE.

It is the provider's message with `content_ref` or `content_sealed` first, in the place of its content, and with the
inputs of its calls, so that a call can be published without a look at the content: each as it is, or by a reference of
its own; of a sealed reply each sealed. How a request refers says `messages.py`, and how a result does `log_events.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

import orjson

from anabranch.agent.reply.verbatim import members, written
from anabranch.fields import Json

Input = dict[str, Json] | str
"""The arguments of a call, or what stands in their place."""

_FIRST: Final = re.compile(rb'\{"content_ref":"(sha256:[0-9a-f]{64};[0-9]{1,12})"')
_ELSEWHERE: Final = b'{"content_'
_REF: Final = b'{"content_ref":"'
_SEALED: Final = b'{"content_sealed":"'
_KNOWN: Final = ("id", "type", "role", "model", "stop_reason", "stop_sequence", "usage")
"""What of a sealed message stays readable. Other fields may come to hold texts, so they are not kept."""


def content_ref_of(body: bytes) -> str | None:
    """Where the content of a reply lies, if it is not in its body."""
    found = _FIRST.match(body) if body.startswith(_REF) else None
    return found.group(1).decode() if found is not None else None


def content_sealed_of(body: bytes) -> str | None:
    """The sealed content of a reply: a seal, or the reference to one."""
    if not body.startswith(_SEALED):
        return None
    return body[len(_SEALED) : body.find(b'"', len(_SEALED))].decode()


def content_elsewhere(body: bytes) -> str | None:
    """What stands in the place of a reply's content, if it is not there."""
    return content_sealed_of(body) or content_ref_of(body) if body.startswith(_ELSEWHERE) else None


def referring(body: bytes, reference: str, inputs: Mapping[str, Input]) -> bytes:
    """The `body` of a reply with `reference` in the place of its content. `inputs` are by tool_use id."""
    head = {"content_ref": orjson.dumps(reference).decode()}
    head |= {name: value for name, value in members(body.decode()).items() if name not in ("content", "content_ref")}
    named = {key: {"input_ref" if isinstance(value, str) else "input": value} for key, value in inputs.items()}
    # Integers of any size, which orjson does not write.
    return written({**head, "inputs": json.dumps(named, separators=(",", ":"))}).encode()


def sealed_reply(body: bytes, sealed: str, inputs: Mapping[str, str]) -> bytes:
    """The `body` of a reply with its content and its `inputs` sealed."""
    told = members(body.decode())
    head = {"content_sealed": orjson.dumps(sealed).decode()}
    head |= {name: told[name] for name in _KNOWN if name in told}
    if told.get("container", "null") != "null":  # the next request names it, and it names no text
        head["container"] = written({k: v for k, v in members(told["container"]).items() if k in ("id", "expires_at")})
    named = {key: {"input_sealed": value} for key, value in inputs.items()}
    return written({**head, "inputs": orjson.dumps(named).decode()}).encode()


def inputs_of(body: bytes) -> dict[str, Input]:
    """The inputs of the calls of a reply that is not as the provider sent it, by tool_use id."""
    named = json.loads(body)["inputs"]
    return {key: value.get("input", value.get("input_ref", value.get("input_sealed"))) for key, value in named.items()}
