"""The limits a minute that the API enforces, and what it counted: for scripts that test how a client bears them.

Pure: the time is given. A limit is a bucket that holds a period's worth and refills evenly. Input is estimated when a
request comes in and corrected when its usage is known, output is counted when it is produced, and a refused request
counts as nothing. https://docs.claude.com/en/api/rate-limits says the same, but rounds what is left. `server` asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from anabranch.errors import DefinitionError

Json = Any  # the provider's JSON, not ours


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What each model lets through in `period_s` seconds; None: as much as comes.

    A period that is not a minute is for tests in a hurry: replies still name the limit of a minute.

    Raises:
        DefinitionError: a limit or the period is not above 0.
    """

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    period_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DefinitionError(f"RateLimits({name}={value!r}) must be more than 0, or None for no limit")


@dataclass(frozen=True, slots=True)
class Metered:
    """What was counted at one moment, in seconds of the event loop's clock."""

    at: float
    model: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Bucket:
    def __init__(self, limit: float, period_s: float) -> None:
        self.limit, self._rate, self._level, self._at = limit, limit / period_s, limit, 0.0

    def left(self, now: float) -> float:
        self._level = min(self.limit, self._level + self._rate * max(0.0, now - self._at))
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        self._level = self.left(now) - amount

    def wait_for(self, amount: float, now: float) -> float:
        """Seconds until so much is there; more than it ever holds never is, and waits until it is full."""
        return max(0.0, (min(amount, self.limit) - self.left(now)) / self._rate)


class Meter:
    """`metered` is what was counted, the last `keep` entries of it; `refused` how many requests were refused."""

    def __init__(self, limits: RateLimits | None, keep: int) -> None:
        self._limits = limits or RateLimits()
        self._buckets: dict[str, dict[str, _Bucket]] = {}
        self.metered: deque[Metered] = deque(maxlen=keep)
        self.refused = 0

    def refuses(self, model: str, input_tokens: int, now: float) -> tuple[str, float] | None:
        """The limit that a request would exceed, and how long to wait; None: it is let in."""
        needs = {"requests": 1.0, "input_tokens": float(input_tokens), "output_tokens": 1.0}
        waits = {name: bucket.wait_for(needs[name], now) for name, bucket in self._of(model).items()}
        name = max(waits, key=waits.__getitem__, default="")
        if not name or waits[name] <= 0:
            return None
        self.refused += 1
        return name, waits[name]

    def count(self, model: str, now: float, **amounts: int) -> None:
        """Count `requests`, `input_tokens` or `output_tokens`; a negative amount corrects an estimate."""
        self.metered.append(Metered(now, model, **amounts))
        for name, bucket in self._of(model).items():
            bucket.take(amounts.get(name, 0), now)

    def headers(self, model: str, now: float) -> dict[str, str]:
        """What a response says of the limits."""
        said: dict[str, str] = {}
        for name, bucket in self._of(model).items():
            prefix = f"anthropic-ratelimit-{name.replace('_', '-')}"
            whole = datetime.now(UTC) + timedelta(seconds=bucket.wait_for(bucket.limit, now))
            said[f"{prefix}-limit"] = f"{bucket.limit * 60 / self._limits.period_s:.0f}"
            said[f"{prefix}-remaining"] = f"{max(0.0, bucket.left(now)):.0f}"
            said[f"{prefix}-reset"] = whole.strftime("%Y-%m-%dT%H:%M:%SZ")
        return said

    def _of(self, model: str) -> dict[str, _Bucket]:
        if model not in self._buckets:
            limits, names = self._limits, ("requests", "input_tokens", "output_tokens")
            declared = {name: limit for name in names if (limit := getattr(limits, name)) is not None}
            self._buckets[model] = {name: _Bucket(limit, limits.period_s) for name, limit in declared.items()}
        return self._buckets[model]


def counted(usage: Mapping[str, Json]) -> tuple[int, int]:
    """What of a reply's usage counts as input, which is not what was read from the cache, and what as output."""
    names = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
    fresh, cached, output = (value if isinstance(value := usage.get(name), int) else 0 for name in names)
    return fresh + cached, output
