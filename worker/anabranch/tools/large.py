"""Inputs and results that are not in their records as they are: too large, and in the store; or sealed.

An input is fetched and opened when its call is about to run, and not before. What cannot be had or kept costs only its
call. Called by `serving.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import orjson

from anabranch.bodies import dump, nests_deeper, read
from anabranch.errors import TooLarge, WireError
from anabranch.fields import Content, Json
from anabranch.log_events import ToolResult
from anabranch.messages import ToolCall
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.store import Store
from anabranch.topics import BODY_BYTES

MAX_INPUT_DEPTH = 150
LEAST_S = 1.0
"""How long the store is tried at least, in seconds: the deadline of a call may be past when it has its result."""


async def input_of(store: Store, call: ToolCall, now: float, sealing: Sealing = NO_SEALING) -> dict[str, Json]:
    """The arguments of a call, wherever they lie. Raises `StoreError`, or `WireError` if they are no object."""
    if call.input is not None:
        return call.input
    if call.input_sealed is not None:
        where, left = "input_sealed: it", _left(call, now)
        data = await sealing.open("input", call.input_sealed, call.tenant, call.run_id, left)
    else:
        where, reference = f"input_ref: {call.input_ref}", call.input_ref or ""
        data = await store.get(reference, call.tenant, _left(call, now))
    try:
        arguments = read(dict[str, Json], data)
    except WireError as error:
        raise WireError(f"{where} is not a JSON object: {error}") from None
    refuse_depth(arguments, data)
    return arguments


def refuse_depth(arguments: dict[str, Json] | None, said: bytes | None) -> None:
    """Raises `WireError` for arguments that nest too deeply to be read by others. They stand in `said`."""
    if nests_deeper(arguments, said or b"", MAX_INPUT_DEPTH):
        raise WireError(f"input: nests deeper than {MAX_INPUT_DEPTH} levels")


def size_of(content: Content | None) -> int:
    """How many letters there are in a result, about: it has no fewer bytes than that."""
    if isinstance(content, str):
        return len(content)
    return sum(map(_letters, content or ()))


def _letters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_letters, inside))


async def body_of(store: Store, result: ToolResult, call: ToolCall, now: float, sealing: Sealing = NO_SEALING) -> bytes:
    """The body of `tool.returned`: the result, or where its content lies; sealed, if the call was. Raises `TooLarge`,
    `StoreError`.
    """
    if call.input_sealed is not None:
        return await _sealed(sealing, result, call, _left(call, now))
    if store.is_set and size_of(result.content) > BODY_BYTES:  # not written out twice
        return await _referring(store, result, call, _left(call, now))
    body = dump(result)
    if store.takes(len(body)):
        return await _referring(store, result, call, _left(call, now), body if len(body) <= BODY_BYTES else None)
    return _fitting(body)


async def _referring(
    store: Store, result: ToolResult, call: ToolCall, within_s: float, inline: bytes | None = None
) -> bytes:
    """`inline` is the body that goes into the record if the store cannot be had."""
    reference = await store.put_if(orjson.dumps(result.content), call.tenant, within_s, fits=inline is not None)
    if reference is None and inline is not None:
        return inline
    return dump(replace(result, content=None, content_ref=reference))


async def _sealed(sealing: Sealing, result: ToolResult, call: ToolCall, within_s: float) -> bytes:
    sealer = await sealing.sealer(call.tenant, call.run_id, within_s)
    sealed = await sealing.seal(sealer, "result", orjson.dumps(result.content), call.tenant, within_s)
    return _fitting(dump(replace(result, content=None, content_sealed=sealed)))


def _fitting(body: bytes) -> bytes:
    if len(body) > BODY_BYTES:
        mend = "give the tool a lower max_result, or the workers a store (ANABRANCH_STORE)"
        raise TooLarge(f"{len(body)} bytes, of {BODY_BYTES} at most: {mend}")
    return body


def _left(call: ToolCall, now: float) -> float:
    left = call.deadline - now
    return max(LEAST_S, left) if math.isfinite(left) else LEAST_S
