"""The scripted model's limits: a bucket of a period's worth that refills evenly, and says what is left.

Responsible for: `testing/quota.py`, which is told the time.
Must never: wait.
Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.errors import DefinitionError
from anabranch.testing.quota import Meter, Metered, RateLimits, counted


def let_in(meter: Meter, requests: int, now: float, tokens: int = 10) -> int:
    """How many of so many requests are not refused."""
    count = 0
    for _ in range(requests):
        if meter.refuses("m", tokens, now) is None:
            meter.count("m", now, requests=1, input_tokens=tokens)
            count += 1
    return count


def test_a_periods_worth_is_let_in_at_once_and_then_what_refills() -> None:
    meter = Meter(RateLimits(requests=60), keep=10)
    assert [let_in(meter, 100, now) for now in (0.0, 1.0, 11.0, 1000.0)] == [60, 1, 10, 60]
    assert meter.refused == 40 + 99 + 90 + 40


def test_a_refusal_names_the_limit_and_how_long_to_wait() -> None:
    meter = Meter(RateLimits(requests=60, input_tokens=600), keep=10)
    meter.count("m", 0.0, requests=1, input_tokens=600)
    assert meter.refuses("m", 30, 0.0) == ("input_tokens", 3.0)
    assert meter.refuses("m", 30, 3.0) is None
    assert meter.refuses("another", 30, 0.0) is None


def test_output_counts_when_it_is_produced() -> None:
    meter = Meter(RateLimits(output_tokens=600), keep=10)
    assert meter.refuses("m", 10**6, 0.0) is None
    meter.count("m", 0.0, output_tokens=1199)
    assert meter.refuses("m", 1, 0.0) == ("output_tokens", 60.0)


def test_headers_say_what_is_left_and_when_all_will_be_there_again() -> None:
    meter = Meter(RateLimits(requests=60, input_tokens=6000, period_s=60), keep=10)
    meter.count("m", 0.0, requests=1, input_tokens=600)
    headers = meter.headers("m", 0.0)
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "59"
    assert headers["anthropic-ratelimit-input-tokens-remaining"] == "5400"
    assert headers["anthropic-ratelimit-input-tokens-reset"].endswith("Z")
    assert len(headers) == 6
    assert Meter(None, keep=10).headers("m", 0.0) == {}


def test_what_was_counted_can_be_read() -> None:
    meter = Meter(RateLimits(), keep=2)
    meter.count("m", 1.0, requests=1, input_tokens=10)
    meter.count("m", 2.0, input_tokens=-3, output_tokens=5)
    assert list(meter.metered) == [Metered(1.0, "m", 1, 10), Metered(2.0, "m", 0, -3, 5)]


def test_what_is_read_from_the_cache_does_not_count() -> None:
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 4, "output_tokens": 8}
    assert counted(usage) == (3, 8)
    assert counted({"input_tokens": None}) == (0, 0)


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"input_tokens": -1}, {"period_s": 0}])
def test_a_limit_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="must be more than 0"):
        RateLimits(**wrong)
