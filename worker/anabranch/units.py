"""Reads the units that people write: durations ("1h"), rates ("600/m") and sizes ("32kB").

Pure, and knows no setting: whoever asks says in its own error where the value stood. Must never guess: what
has two readings is refused. Called by the declarations in `app` and by `config`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Final

from anabranch.errors import AnabranchError

Number = int | float

_SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_BYTES: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    **dict.fromkeys(("k", "kb", "kib"), 1024),
    **dict.fromkeys(("m", "mb", "mib"), 1024**2),
    **dict.fromkeys(("g", "gb", "gib"), 1024**3),
}

_NUMBER: Final = r"(?:\d+(?:_\d+)*(?:\.\d+)?|\.\d+)"
MOST: Final = sys.float_info.max
_PART: Final = re.compile(rf"({_NUMBER})\s*(ms|s|min|m|h|d)\s*", re.ASCII)
_PLAIN: Final = re.compile(_NUMBER, re.ASCII)
_RATE: Final = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})?\s*(ms|s|min|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(rf"({_NUMBER})\s*([a-z]*)", re.ASCII)


class UnitError(AnabranchError, ValueError):
    """A text that is no duration, rate or size."""


def duration(value: Number | str) -> float:
    """Seconds: a plain number, or a text such as "250ms", "10s", "5m", "1h30m", "7d". Never negative."""
    hint = 'write seconds as a number, or a text such as "250ms", "10s", "5m", "1h30m" or "7d"'
    if not isinstance(value, str):
        return _finite(value, "duration", hint)
    text = value.strip()
    if _PLAIN.fullmatch(text):
        return _finite(float(text), "duration", hint)
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text):
        raise UnitError(f"{value!r} is no duration: {hint}")
    seconds = math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)
    return _finite(seconds, "duration", hint)


def rate(value: Number | str) -> float:
    """How many a second: a plain number, or a text such as "50/s", "600/m", "5/10s". Always above 0."""
    hint = 'write how many a second as a number, or a text such as "50/s", "600/m" or "5/10s"'
    if not isinstance(value, str):
        per_second = _finite(value, "rate", hint)
    elif _PLAIN.fullmatch(value.strip()):
        per_second = _finite(float(value), "rate", hint)
    elif match := _RATE.fullmatch(value.strip()):
        many, periods, unit = match.groups()
        period = float(periods or 1) * _SECONDS[unit]
        per_second = _finite(float(many) / period if period else math.inf, "rate", hint)
    else:
        raise UnitError(f"{value!r} is no rate: {hint}")
    if per_second <= 0:
        raise UnitError(f"the rate {value!r} must be more than 0: {hint}")
    return per_second


def size(value: int | str) -> int:
    """Bytes: a whole number, or a text such as "500B", "32kB", "1MB"; a kB is 1024 bytes. Never negative."""
    hint = 'write bytes as a whole number, or a text such as "32kB" (32,768 bytes) or "1MB"'
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UnitError(f"{value!r} is no size: {hint}")
        return value
    match = _SIZE.fullmatch(value.strip().lower())
    if match is None or match[2] not in _BYTES:
        raise UnitError(f"{value!r} is no size: {hint}")
    count = float(match[1]) * _BYTES[match[2]]
    if count != int(count):
        raise UnitError(f"{value!r} is no whole number of bytes: {hint}")
    return int(count)


def _finite(value: Number, what: str, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnitError(f"{value!r} is no {what}: {hint}")
    if value < 0 or value > MOST or math.isnan(value):
        raise UnitError(f"the {what} {value!r} must be a finite number that is not negative: {hint}")
    return float(value)
