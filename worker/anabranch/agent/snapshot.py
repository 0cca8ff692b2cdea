"""A run said again in one place, so that its older events are no longer needed. PURE.

A snapshot is written in parts of at most `PART` bytes, or fewer if a setting says so: the first holds the run
without its replies and results, and these follow as pieces of text, byte for byte as they came. `owner.py`
appends the parts when dead bytes outweigh live ones; `collecting.py` puts them together again, and decides
whether the whole counts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from pydantic import TypeAdapter

from anabranch import log_events as e
from anabranch.agent.state import Call, Run, Turn
from anabranch.errors import WireError

PART: Final = 512 * 1024
_ESCAPED: Final = 6
"""How many bytes JSON may need to write one."""
_MARGIN: Final = 2048
_RUN: Final[TypeAdapter[Run]] = TypeAdapter(Run)
_UNREADABLE: Final = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


def write(run: Run, part_bytes: int = PART) -> list[bytes]:
    """The parts of a snapshot of `run`, each a JSON body of at most `part_bytes` (4,096 at least)."""
    bodies: list[bytes] = []
    head = _RUN.dump_json(_without_bodies(run, bodies))
    pieces = [orjson.dumps(piece) for piece in _pieces([head, *bodies], (part_bytes - _MARGIN) // _ESCAPED)]
    parts: list[list[bytes]] = [[]]
    room = part_bytes - _MARGIN
    for piece in pieces:
        if parts[-1] and len(piece) > room:
            parts.append([])
            room = part_bytes - _MARGIN
        parts[-1].append(piece)
        room -= len(piece) + 1
    return [b'{"pieces":[' + b",".join(part) + b"]}" for part in parts]


def read(event: e.RunSnapshot, parts: Sequence[bytes]) -> Run:
    """The run of a whole snapshot, its parts in order; `event` is the last of them. Raises `WireError`."""
    where = f"a snapshot of run {event.run_id} as of {event.as_of}"
    if event.schema is not None:
        raise WireError(f"{where} is of a version that is not known here, {event.schema[:128]!r}")
    try:
        bodies = _bodies(piece for part in parts for piece in orjson.loads(part)["pieces"])
        run = _with_bodies(_RUN.validate_json(bodies[0]), bodies[1:])
    except _UNREADABLE as error:
        raise WireError(f"{where} cannot be read: {error!r}"[:500]) from None
    if (run.run_id, run.life) != (event.run_id, event.life):
        raise WireError(f"{where} speaks of another: {run.run_id[:128]!r}, life {run.life[:40]!r}")
    return run


def _without_bodies(run: Run, bodies: list[bytes]) -> Run:
    """The run with a number in the place of each reply and result, which go to `bodies`."""

    def taken(body: bytes) -> bytes:
        bodies.append(body)
        return str(len(bodies) - 1).encode()

    def call(it: Call) -> Call:
        result = it.result
        if result is not None and result.body is not None:
            result = replace(result, body=taken(result.body))
        return replace(it, result=result)

    turns = [
        replace(turn, body=taken(turn.body), inputs=None, calls={key: call(it) for key, it in turn.calls.items()})
        for turn in run.turns
    ]
    return replace(run, turns=turns)


def _with_bodies(run: Run, bodies: list[bytes]) -> Run:
    def call(it: Call) -> Call:
        if it.result is None or it.result.body is None:
            return it
        return replace(it, result=replace(it.result, body=bodies[int(it.result.body)]))

    def turn(it: Turn) -> Turn:
        calls = {key: call(value) for key, value in it.calls.items()}
        return replace(it, body=bodies[int(it.body)], calls=calls)

    return replace(run, turns=[turn(it) for it in run.turns])


def _pieces(bodies: Sequence[bytes], most: int) -> Iterator[list[Any]]:
    """`[number of the body, at most so many of its bytes as text]`, or with a third item if they are base64."""
    for number, body in enumerate(bodies):
        for start in range(0, max(1, len(body)), most):
            chunk = body[start : start + most]
            try:
                yield [number, chunk.decode("utf-8")]
            except UnicodeDecodeError:
                yield [number, base64.b64encode(chunk).decode(), "b64"]


def _bodies(pieces: Iterator[list[Any]]) -> list[bytes]:
    bodies: list[bytearray] = []
    for number, text, *coding in pieces:
        if number == len(bodies):
            bodies.append(bytearray())
        bodies[number] += base64.b64decode(text) if coding else text.encode()
    return [bytes(body) for body in bodies]
