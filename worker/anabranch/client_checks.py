"""What a client refuses before anything is sent, each as an `InvalidRequest` that names the field.

Responsible for: values that JSON would turn into others, or that no worker would see. Must never: repeat what
`bodies.read_request` checks. Called by: `client.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import cast

from anabranch.bodies import dump
from anabranch.errors import InvalidRequest, WireError
from anabranch.fields import LANES, NAME_SAID, Json, Lane, is_name
from anabranch.messages import RunRequest
from anabranch.units import UnitError, duration


def seconds(deadline: float | str) -> float:
    """The deadline of a run."""
    try:
        given = duration(deadline)
    except UnitError as error:
        raise InvalidRequest(f"deadline: {error}") from None
    if not given:
        raise InvalidRequest(f"deadline: {deadline!r} leaves no time: give more than 0, or None for the agent's own")
    return given


def dollars(most: float) -> float:
    """What a run may cost: NaN and the infinities would be written as null, which is no limit at all."""
    if isinstance(most, float) and not math.isfinite(most):
        raise InvalidRequest(f"max_cost_usd: {most!r} must be a number above 0, or None for the agent's own limit")
    return most


def an_object(metadata: Mapping[str, Json]) -> dict[str, Json]:
    """The metadata of a run."""
    if not isinstance(cast(object, metadata), Mapping):
        raise InvalidRequest(f"metadata: must be a dict, not {type(metadata).__name__}")
    return dict(metadata)


def lane(name: Lane) -> Lane:
    """The lane of a request."""
    if name not in LANES:
        raise InvalidRequest(f"lane: {name!r} must be one of {', '.join(map(repr, LANES))}")
    return name


def a_run(run_id: str) -> str:
    """The id of a run."""
    if not isinstance(cast(object, run_id), str) or not is_name(run_id):
        raise InvalidRequest(f"run_id: {run_id!r} must be the id of a run, {NAME_SAID}")
    return run_id


def moment(since: float | None) -> None:
    """From when on events are told."""
    if since is not None and (type(since) not in (int, float) or not math.isfinite(since)):
        raise InvalidRequest(f"since: {since!r} must be a time in epoch seconds, as time.time() tells it")


def cancel(run_id: str, reason: str) -> None:
    """What a cancel says: it is in the log before its request is looked at."""
    a_run(run_id)
    if not isinstance(cast(object, reason), str | None):
        raise InvalidRequest(f"reason: {reason!r} must be a text")
    _check_writable("reason", reason)


def written(request: RunRequest) -> bytes:
    """The body of a request."""
    try:
        body = dump(request)
    except WireError:
        for field in fields(request):
            _check_writable(field.name, getattr(request, field.name))
        raise
    for said in ("input", "messages", "metadata"):
        _check_kept(said, getattr(request, said))
    return body


def _check_writable(field: str, value: Json) -> None:
    try:
        dump(value)
    except WireError as error:
        raise InvalidRequest(f"{field}: {error}") from None


def _check_kept(path: str, value: Json) -> None:
    """Refuse what can be written, but as something else: whoever reads it back would not find what was given."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_kept(f"{path}.{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_kept(f"{path}.{place}", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{path}: {value!r} is no number of JSON: leave it out, or write None or a text")
    elif not isinstance(value, str | int | float | None):
        raise InvalidRequest(
            f"{path}: a {type(value).__name__} is no value of JSON: make it a text, a number, a list or a dict"
        )
