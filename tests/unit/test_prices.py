"""What model calls cost: each kind of token at its price, and never a price that nobody knows.

Responsible for: the table of prices, names that stand for the same model, and the sum of a reply. Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import builders as b

from anabranch import messages as m
from anabranch.codec import decode
from anabranch.prices import KNOWN, Price, plain, price_of, usage_of, window_of

SONNET = Price(3.0, 15.0)
M = 1_000_000


def cost(raw: dict[str, Any], price: Price | None = SONNET) -> float | None:
    return usage_of(raw, price).cost_usd


@pytest.mark.parametrize(
    ("used", "dollars"),
    [
        ({"input_tokens": M}, 3.0),
        ({"output_tokens": M}, 15.0),
        ({"cache_read_input_tokens": M}, 0.3),
        ({"cache_creation_input_tokens": M}, 3.75),
        ({"cache_creation_input_tokens": M, "cache_creation": {"ephemeral_1h_input_tokens": M}}, 6.0),
        ({"cache_creation_input_tokens": M, "cache_creation": {"ephemeral_1h_input_tokens": M // 2}}, 4.875),
        ({"server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 5}, "output_tokens": 1}, 0.030015),
    ],
)
def test_each_kind_of_token_has_its_price(used: dict[str, Any], dollars: float) -> None:
    assert cost(used) == pytest.approx(dollars)


def test_a_price_of_the_settings_says_of_the_cache_what_it_wants() -> None:
    price = Price(1.0, 1.0, cache_read=0.5, cache_creation=0.0, cache_creation_1h=7.0)
    assert price.rates(1) == (1.0, 1.0, 0.5, 0.0, 7.0)


def test_a_long_prompt_is_charged_whole_at_the_higher_price_and_the_cache_counts_to_its_length() -> None:
    price = Price(0.1, 0.5, long_above=100_000, long_input=0.5, long_output=2.5)
    short = {"input_tokens": 50_000, "cache_read_input_tokens": 50_000, "output_tokens": 1000}
    assert cost(short, price) == pytest.approx((50_000 * 0.1 + 50_000 * 0.01 + 1000 * 0.5) / M)
    long = short | {"cache_read_input_tokens": 50_001}
    assert cost(long, price) == pytest.approx((50_000 * 0.5 + 50_001 * 0.05 + 1000 * 2.5) / M)


def test_inference_in_the_us_and_fast_mode_have_their_factors() -> None:
    price = Price(3.0, 15.0, us_factor=1.1, fast_factor=2.0)
    assert cost({"output_tokens": M, "inference_geo": "us"}, price) == pytest.approx(16.5)
    assert cost({"output_tokens": M, "inference_geo": "global", "speed": "fast"}, price) == pytest.approx(30.0)


def test_what_a_compaction_used_is_added_to_what_the_provider_sums_up() -> None:
    raw = {"input_tokens": 10, "output_tokens": 1, "iterations": [
        {"type": "message", "input_tokens": 10, "output_tokens": 1},
        {"type": "compaction", "input_tokens": 1000, "output_tokens": 100},
    ]}  # fmt: skip
    assert usage_of(raw, SONNET) == m.Usage(1010, 101, cost_usd=round((1010 * 3 + 101 * 15) / M, 9))


@pytest.mark.parametrize(
    ("raw", "price"), [({"input_tokens": 5}, None), ({"output_tokens": 5, "speed": "fast"}, SONNET)]
)
def test_a_cost_that_nobody_knows_is_unknown_and_not_nothing(raw: dict[str, Any], price: Price | None) -> None:
    used = usage_of(raw, price)
    assert used.cost_usd is None
    assert (used + usage_of({"input_tokens": M}, SONNET)).cost_usd is None, "nor is a sum with it known"
    assert usage_of({}, None).cost_usd == 0.0, "what used nothing costs nothing"


def test_an_unknown_cost_stays_unknown_in_the_log() -> None:
    event = b.replied(usage=usage_of({"input_tokens": 5}, None))
    assert decode(b.record(event, 0)) == event


@pytest.mark.parametrize(
    "name", ["claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-opus-4-0", "claude-opus-4-20250514"]
)
def test_a_dated_name_stands_for_its_model(name: str) -> None:
    assert price_of(name, {}) == KNOWN[plain(name)].price
    assert window_of(name) == 200_000


def test_the_settings_overrule_the_table_by_the_exact_name_or_else_by_the_models() -> None:
    ours, dated = Price(1.0, 2.0), Price(3.0, 4.0)
    assert price_of("claude-haiku-4-5-20251001", {"claude-haiku-4-5": ours}) == ours
    prices = {"claude-haiku-4-5": ours, "claude-haiku-4-5-20251001": dated}
    assert price_of("claude-haiku-4-5-20251001", prices) == dated
    assert price_of("claude-haiku-4-5", prices) == ours


@pytest.mark.parametrize("name", ["scripted", "claude-haiku-99", "claude-haiku-4-5-2025"])
def test_a_model_that_nobody_knows_has_no_price_and_no_window(name: str) -> None:
    assert (price_of(name, {}), window_of(name)) == (None, None)


@pytest.mark.parametrize("model", KNOWN)
def test_the_table_holds_what_every_price_list_does(model: str) -> None:
    """Output is five times the input, and the cache never costs more to read than to write."""
    rates = KNOWN[model].price.rates(1)
    assert rates.output == pytest.approx(5 * rates.input)
    assert rates.cache_read < rates.input < rates.cache_creation < rates.cache_creation_1h
    assert plain(model) == model
