"""What model calls cost: a table of prices that users override, and the sum for what a provider says was used. PURE.

The built-in prices are Anthropic's list prices as of `AS_OF`; `[prices.NAME]` in the settings overrules them. A dated
name stands for its model, so `claude-haiku-4-5-20251001` has the price of `claude-haiku-4-5`. What has no price costs
an unknown sum, which is said and never taken for nothing. `agent/model/thinking.py` and `agent/prompt/fitting.py`
ask; the settings hold those of users. It must never know a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field

from anabranch.messages import Usage
from anabranch.values import frozen

AS_OF: Final = "2026-11-21"
"""When the table was compared with https://platform.claude.com/docs/en/about-claude/pricing."""

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1)]


class Rates(NamedTuple):
    """Dollars per million tokens, for one request."""

    input: float
    output: float
    cache_read: float
    cache_creation: float
    cache_creation_1h: float


@frozen()
class Price:
    """US dollars per million tokens. What is left out of the cache's follows from `input`: a tenth for reads, 1.25
    times for what is kept five minutes, twice for an hour.

    A request whose prompt is longer than `long_above` tokens pays `long_input` and `long_output`, for the cache in
    proportion. `web_search` is for a thousand searches of the provider's own tool. `us_factor` is for inference that
    stays in the US, `fast_factor` for fast mode; without one its cost is unknown.
    """

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    cache_creation: Dollars | None = None
    cache_creation_1h: Dollars | None = None
    long_above: Tokens | None = None
    long_input: Dollars | None = None
    long_output: Dollars | None = None
    web_search: Dollars = 10.0
    us_factor: Factor = 1.0
    fast_factor: Factor | None = None

    def rates(self, prompt: int) -> Rates:
        """What a request of so many tokens, those of the cache included, is charged at."""
        own = Rates(
            self.input,
            self.output,
            self.input * 0.1 if self.cache_read is None else self.cache_read,
            self.input * 1.25 if self.cache_creation is None else self.cache_creation,
            self.input * 2 if self.cache_creation_1h is None else self.cache_creation_1h,
        )
        if self.long_above is None or prompt <= self.long_above:
            return own
        longer = self.input if self.long_input is None else self.long_input
        factor = longer / self.input if self.input else 1.0
        output = self.output if self.long_output is None else self.long_output
        return Rates(longer, output, *(rate * factor for rate in own[2:]))


@frozen()
class Known:
    """A model that is built in: its price, and how many tokens its context holds."""

    price: Price
    window: int


_M: Final = 1_000_000
_LATE: Final = 1.1
"""The factor for inference in the US, of the models since Opus 4.6 and Sonnet 4.6."""

KNOWN: Final[Mapping[str, Known]] = {
    "claude-fable-5-2": Known(Price(8, 40, cache_read=0.2, us_factor=_LATE), _M),
    "claude-fable-5-1": Known(Price(10, 50, cache_read=0.25, us_factor=_LATE), _M),
    "claude-mythos-5-1": Known(Price(10, 50, cache_read=0.25, us_factor=_LATE), _M),
    "claude-fable-5": Known(Price(10, 50, us_factor=_LATE), _M),
    "claude-mythos-5": Known(Price(10, 50, us_factor=_LATE), _M),
    "claude-opus-5-5": Known(Price(4, 20, cache_read=0.2, us_factor=_LATE), _M),
    "claude-opus-5": Known(Price(5, 25, us_factor=_LATE, fast_factor=2), _M),
    "claude-opus-4-8": Known(Price(5, 25, us_factor=_LATE, fast_factor=2), _M),
    "claude-opus-4-7": Known(Price(5, 25, us_factor=_LATE), _M),
    "claude-opus-4-6": Known(Price(5, 25, us_factor=_LATE), _M),
    "claude-opus-4-5": Known(Price(5, 25), 200_000),
    "claude-opus-4-1": Known(Price(15, 75), 200_000),
    "claude-opus-4": Known(Price(15, 75), 200_000),
    "claude-sonnet-5-5": Known(Price(2, 10, cache_read=0.1, us_factor=_LATE), _M),
    "claude-sonnet-5": Known(Price(2, 10, us_factor=_LATE), _M),
    "claude-sonnet-4-6": Known(Price(3, 15, us_factor=_LATE), _M),
    "claude-sonnet-4-5": Known(Price(3, 15, long_above=200_000, long_input=6, long_output=22.5), 200_000),
    "claude-sonnet-4": Known(Price(3, 15, long_above=200_000, long_input=6, long_output=22.5), 200_000),
    "claude-haiku-5-5": Known(
        Price(0.1, 0.5, long_above=100_000, long_input=0.5, long_output=2.5, us_factor=_LATE), _M
    ),
    "claude-haiku-4-5": Known(Price(1, 5), 200_000),
}  # fmt: skip

_SNAPSHOT: Final = re.compile(r"(-\d{8}|-latest|(?<=-4)-0)$")


def plain(model: str) -> str:
    """The model that a name stands for: without the date of a snapshot, or what else means the same model."""
    return _SNAPSHOT.sub("", model)


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """What `model` costs, by the settings' `prices` if they name it, or else by the table; None: nobody knows."""
    for name in (model, plain(model)):
        if name in prices:
            return prices[name]
    known = KNOWN.get(plain(model))
    return known.price if known is not None else None


def window_of(model: str) -> int | None:
    """How many tokens the context of `model` holds, as far as it is built in."""
    known = KNOWN.get(plain(model))
    return known.window if known is not None else None


# --- what was used ----------------------------------------------------------------------------------------------

_SUMS: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_MOST: Final = 2**53
"""Counts are less: what is more is no whole number to every reader of JSON."""


def usage_of(raw: Mapping[str, Any], price: Price | None) -> Usage:
    """The provider's usage of one reply, with its cost. What used nothing costs nothing, whatever the price."""
    fresh, output, read, written, _ = own = _tokens(raw)
    parts = [own]
    for part in map(_tokens, _compactions(raw)):
        fresh, output, read, written = fresh + part[0], output + part[1], read + part[2], written + part[3]
        parts.append(part)
    if not (fresh or output or read or written):
        return Usage(cost_usd=0.0)
    cost = None if price is None else _cost(raw, parts, price)
    return Usage(fresh, output, read, written, None if cost is None else round(cost, 9))


_Tokens = tuple[int, int, int, int, int]
"""Input, output, cache read and written, and of the latter what is kept for an hour."""


def _tokens(raw: Mapping[str, Any]) -> _Tokens:
    said = raw.get
    written, kept = count(said("cache_creation_input_tokens")), said("cache_creation")
    hour = min(written, count(kept.get("ephemeral_1h_input_tokens"))) if isinstance(kept, dict) else 0
    fresh, output, read = said("input_tokens"), said("output_tokens"), said("cache_read_input_tokens")
    return count(fresh), count(output), count(read), written, hour


def _compactions(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the provider's sums leave out."""
    iterations = raw.get("iterations")
    if not isinstance(iterations, list):
        return []
    return [part for part in iterations if isinstance(part, dict) and part.get("type") == "compaction"]


def _cost(raw: Mapping[str, Any], parts: Iterable[_Tokens], price: Price) -> float | None:
    """Dollars, or None if nobody knows."""
    factor = price.us_factor if raw.get("inference_geo") == "us" else 1.0
    if raw.get("speed") == "fast":
        if price.fast_factor is None:
            return None
        factor *= price.fast_factor
    tokens = 0.0
    for part in parts:
        tokens += _cost_of_tokens(part, price)
    return tokens * factor + _searches(raw) * price.web_search / 1000


def _cost_of_tokens(tokens: _Tokens, price: Price) -> float:
    fresh, output, read, written, hour = tokens
    rates = price.rates(fresh + read + written)
    cost = fresh * rates.input + output * rates.output + read * rates.cache_read
    return (cost + (written - hour) * rates.cache_creation + hour * rates.cache_creation_1h) / 1e6


def _searches(raw: Mapping[str, Any]) -> int:
    used = raw.get("server_tool_use")
    return count(used.get("web_search_requests")) if isinstance(used, dict) else 0


def count(value: Any) -> int:
    """A count of the provider's. A fraction counts as the next whole number, what is no count as nothing."""
    if type(value) is int:
        return value if 0 <= value < _MOST else 0
    return math.ceil(value) if type(value) is float and 0 <= value < _MOST else 0


def odd_in(raw: Mapping[str, Any]) -> str | None:
    """The first of a usage's sums that is no whole number, with what it is counted as."""
    for name in _SUMS:
        value = raw.get(name)
        if value is not None and (type(value) is not int or not 0 <= value < _MOST):
            return f"{name}={value!r:.40}, which counts as {count(value)}"
    return None
