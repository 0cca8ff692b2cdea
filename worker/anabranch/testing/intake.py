"""What the API asks of a request before it looks at its fields: headers, size, JSON.

Pure. It must never look into the conversation: `rules` does. The server calls it first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from anabranch.testing.refusal import refuse

Json = Any  # a client's request, not ours

MAX_BODY = 32 * 1024 * 1024
"""Bytes; a larger one is answered with 413."""

_LARGE_NUMBER = re.compile(rb"\d{19}")


def check_headers(headers: Mapping[str, str]) -> None:
    """A key in `x-api-key` or `Authorization`, and a version of the API."""
    if not headers.get("x-api-key") and not headers.get("authorization"):
        refuse("x-api-key header is required", "authentication_error")
    if not headers.get("anthropic-version"):
        refuse("anthropic-version: header is required")


def check_betas(headers: Mapping[str, str], request: Mapping[str, Json]) -> None:
    """What only a beta has needs its header."""
    told = headers.get("anthropic-beta", "")
    for field, beta in _BETAS.items():
        if field in request and beta not in told:
            refuse(f"{field}: Extra inputs are not permitted")


_BETAS = {"context_management": "context-management-2025-06-27"}


def parse(data: bytes) -> dict[str, Json]:
    """The body as an object. Integers keep all their digits, so that tests can compare them."""
    try:
        # orjson is quick, and turns integers past 64 bits into floats.
        request = _parse_exactly(data) if _LARGE_NUMBER.search(data) else orjson.loads(data)
    except (ValueError, RecursionError) as error:
        refuse(f"The request body is not valid JSON: {error}")
    if not isinstance(request, dict):
        refuse("The request body is not valid JSON: Input should be an object")
    return request


def _parse_exactly(data: bytes) -> Json:
    return json.loads(data, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
