"""A reply whose content lies in the store: what then stands in the log. PURE.

It is the provider's message with `content_ref` first, in the place of its content, and with the inputs of its
calls, so that a call can be published without a look into the store: each as it is, or by a reference of its own.
Of other bodies, results and requests, `messages.py` says how they refer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

import orjson

from anabranch.agent.verbatim import members, written
from anabranch.messages import Json

Input = dict[str, Json] | str
"""The arguments of a call, or the reference to them."""

_FIRST: Final = re.compile(rb'\{"content_ref":"(sha256:[0-9a-f]{64};[0-9]{1,12})"')


def content_ref_of(body: bytes) -> str | None:
    """Where the content of a reply lies, if it is not in its body."""
    found = _FIRST.match(body)
    return found.group(1).decode() if found is not None else None


def referring(body: bytes, reference: str, inputs: Mapping[str, Input]) -> bytes:
    """The `body` of a reply with `reference` in the place of its content. `inputs` are by tool_use id."""
    head = {"content_ref": orjson.dumps(reference).decode()}
    head |= {name: value for name, value in members(body.decode()).items() if name not in ("content", "content_ref")}
    named = {key: {"input_ref" if isinstance(value, str) else "input": value} for key, value in inputs.items()}
    # Integers of any size, which orjson does not write.
    return written({**head, "inputs": json.dumps(named, separators=(",", ":"))}).encode()


def inputs_of(body: bytes) -> dict[str, Input]:
    """The inputs of the calls of a reply that `referring` has made, by tool_use id."""
    named = json.loads(body)["inputs"]
    return {key: value.get("input", value.get("input_ref")) for key, value in named.items()}
