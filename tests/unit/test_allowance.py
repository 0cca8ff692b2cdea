"""What a provider's headers say of its limits, and that rubbish in them says nothing.

Responsible for: `agent/model/allowance.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.agent.model.allowance import left_of, retry_after_of
from anabranch.agent.model.seam import Left, Quota


def test_limits_and_what_is_left_of_them_are_read() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "1000",
        "anthropic-ratelimit-requests-remaining": "999",
        "anthropic-ratelimit-requests-reset": "2026-02-24T22:25:30Z",
        "anthropic-ratelimit-input-tokens-limit": "80000",
        "anthropic-ratelimit-input-tokens-remaining": "78000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
    }
    assert left_of(headers) == Left(Quota(1000, 999), Quota(80_000, 78_000), Quota(None, 0))


@pytest.mark.parametrize("text", ["", "many", "-1", "nan", "inf"])
def test_what_is_no_number_is_not_said(text: str) -> None:
    assert left_of({"anthropic-ratelimit-requests-remaining": text}) is None
    assert retry_after_of({"retry-after": text}) is None


def test_retry_after_is_seconds_within_reason() -> None:
    assert retry_after_of({"retry-after": "2.5"}) == 2.5
    assert retry_after_of({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert retry_after_of({"retry-after": "10000000"}) is None
    assert retry_after_of({}) is None


def test_a_time_of_day_counts_from_the_responses_own_clock() -> None:
    at, now = "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:27:30 GMT"
    assert retry_after_of({"retry-after": at, "date": now}) == 30
    assert retry_after_of({"retry-after": now, "date": at}) == 0
    assert retry_after_of({"retry-after": at, "date": "today"}) is None
    assert retry_after_of({"retry-after": "31 Feb", "date": now}) is None


def test_milliseconds_are_more_exact_than_seconds() -> None:
    assert retry_after_of({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    assert retry_after_of({"retry-after-ms": "soon", "retry-after": "2"}) == 2
