"""What a provider's `anthropic-ratelimit-*` headers say is left of its limits. PURE.

Called by `anthropic_model.py`. The headers stand at https://docs.claude.com/en/api/rate-limits; whatever is missing or
no number counts as not said. `-reset`, when a limit will be whole again, tells nothing more: limits refill evenly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from anabranch.agent.model.seam import Left, Quota

_PREFIX = "anthropic-ratelimit-"


def left_of(headers: Mapping[str, str]) -> Left | None:
    """What they say; None if they say nothing of limits. The names of `headers` are in small letters."""
    if not any(name.startswith(_PREFIX) for name in headers):
        return None
    left = Left(_quota(headers, "requests"), _quota(headers, "input-tokens"), _quota(headers, "output-tokens"))
    return None if left == Left() else left


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds. A time of day counts from the response's own `date`: our clock may be another; rubbish is not said."""
    milliseconds = _number(headers, "retry-after-ms")
    seconds = _number(headers, "retry-after") if milliseconds is None else milliseconds / 1000
    if seconds is None and (at := _time(headers, "retry-after")) and (now := _time(headers, "date")):
        seconds = max(0.0, at - now)
    return seconds if seconds is not None and seconds < 1e7 else None


def _time(headers: Mapping[str, str], name: str) -> float | None:
    """A date of HTTP in epoch seconds."""
    try:
        return parsedate_to_datetime(headers.get(name, "")).timestamp()
    except (ValueError, OverflowError):
        return None


def _quota(headers: Mapping[str, str], name: str) -> Quota:
    return Quota(_number(headers, f"{_PREFIX}{name}-limit"), _number(headers, f"{_PREFIX}{name}-remaining"))


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        number = float(headers.get(name, ""))
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
