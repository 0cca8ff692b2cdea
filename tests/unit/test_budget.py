"""A model's budget: the pace is kept and reached, calls are settled, the provider's word and refusals hold.

Responsible for: `agent/model/budget.py`, which is told the time.
Must never: wait.
Called by: pytest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from random import Random

import pytest

from anabranch.agent.model.budget import (
    BURST_S,
    MINUTE_S,
    PAUSE_MAX_S,
    Attempt,
    Budget,
    Window,
    limits_of,
    share_of,
)
from anabranch.agent.model.lanes import Lanes, ModelLane
from anabranch.agent.model.seam import Left, Quota
from anabranch.config import AgentSettings, ModelLimits

CEILING = 64


def budget_of(share: float = 1.0, **limits: float) -> Budget:
    budget = Budget(ModelLimits(**limits), CEILING)  # type: ignore[arg-type]
    budget.set_share(share, 0.0)
    return budget


def starts(budget: Budget, calls: int, use: Callable[[int], tuple[int, int]], late_s: float = 0.0) -> list[float]:
    """When each of `calls` starts if all wait, with what each then turns out to use; each ends at once."""
    now, at = 0.0, []
    for number in range(calls):
        while (opens := budget.opens_at(now)) > now:
            now = opens + late_s
        attempt = budget.start(1000, 8192, now)
        at.append(now)
        used_input, used_output = use(number)
        budget.accepted(attempt)
        budget.ended(attempt, {"input_tokens": used_input, "output_tokens": used_output}, now)
    return at


def most_in(at: list[float], amounts: list[float], seconds: float = MINUTE_S) -> float:
    """The most that any window of so many seconds holds."""
    until = [0.0, *accumulate(amounts)]
    return max(until[bisect_left(at, begin + seconds)] - until[first] for first, begin in enumerate(at))


def test_a_share_is_the_owned_part_of_the_partitions() -> None:
    assert [share_of(owned, 24) for owned in (0, 6, 24)] == [0.0, 0.25, 1.0]
    assert share_of(0, 0) == 0.0


# --- the pace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_minute", [1, 7, 50, 1000, 10_000])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_no_minute_holds_more_requests_than_the_limit_and_little_more(per_minute: int, share: float) -> None:
    calls = max(20, round(per_minute * share * 1.5))
    at = starts(budget_of(share, requests_per_minute=per_minute), calls, lambda _: (1, 1))
    limit = per_minute * share
    assert most_in(at, [1.0] * calls) <= limit * (1 + BURST_S / MINUTE_S) + 2
    assert (calls - 1) / (at[-1] - at[0]) >= 0.98 * limit / MINUTE_S


def test_a_loop_that_is_late_loses_no_pace() -> None:
    at = starts(budget_of(requests_per_minute=6000), 3000, lambda _: (1, 1), late_s=0.02)
    assert 2999 / (at[-1] - at[0]) >= 0.99 * 100


@pytest.mark.parametrize("kind", ["input", "output"])
def test_tokens_keep_to_the_limit_whatever_the_calls_turn_out_to_use(kind: str) -> None:
    chance = Random(7)
    used = [chance.choice([50, 400, 2000]) for _ in range(3000)]
    budget = budget_of(**{f"{kind}_tokens_per_minute": 600_000})
    at = starts(budget, len(used), lambda n: (used[n], 1) if kind == "input" else (1, used[n]))
    assert most_in(at, [float(n) for n in used]) <= 600_000 * (1 + BURST_S / MINUTE_S) + 2 * 2000
    assert sum(used[:-1]) / (at[-1] - at[0]) >= 0.95 * 10_000


def test_a_call_larger_than_the_limit_starts_and_the_next_one_waits_for_what_it_took() -> None:
    budget = budget_of(input_tokens_per_minute=6000)
    budget.ended(budget.start(1000, 10, 0.0), {"input_tokens": 30_000, "output_tokens": 1}, 0.0)
    assert budget.opens_at(0.0) == pytest.approx(300, abs=1)


def test_the_tightest_limit_decides_and_says_so() -> None:
    budget = budget_of(requests_per_minute=600, output_tokens_per_minute=600)
    budget.ended(budget.start(1000, 10, 0.0), {"input_tokens": 9, "output_tokens": 100}, 0.0)
    assert budget.opens_at(0.0) == pytest.approx(10)
    assert "output tokens a minute are used up; the next call may start in 10.0 s" in budget.held_by(0.0)


def test_without_a_limit_and_without_a_word_nothing_holds_a_call() -> None:
    budget = budget_of(share=0.0)
    for _ in range(CEILING):
        assert (budget.opens_at(0.0), budget.held_by(0.0)) == (0.0, "")
        budget.start(10**6, 10**6, 0.0)


# --- our share -----------------------------------------------------------------------------------------------------


def test_without_a_share_nothing_begins_but_what_has_begun_goes_on() -> None:
    budget = budget_of(share=0.0, requests_per_minute=60)
    budget.start(1, 1, 0.0)
    assert budget.opens_at(100.0) == math.inf
    assert budget.opens_at(100.0, again=True) == 100.0
    assert "when this worker has a share of them" in budget.held_by(100.0)


def test_a_share_that_changes_holds_from_then_on() -> None:
    budget = budget_of(requests_per_minute=60)
    budget.start(1, 1, 0.0)
    assert budget.opens_at(0.0) == pytest.approx(1.0)
    budget.set_share(0.5, 0.5)
    assert budget.opens_at(0.5) == pytest.approx(1.5)


def test_two_halves_of_a_limit_are_the_limit() -> None:
    at = [when for _ in range(2) for when in starts(budget_of(0.5, requests_per_minute=600), 300, lambda _: (1, 1))]
    assert most_in(sorted(at), [1.0] * 600, 10.0) <= 100 * (1 + BURST_S / 10) + 4


# --- estimates -----------------------------------------------------------------------------------------------------


def test_the_first_estimate_is_high_and_the_next_ones_are_learnt() -> None:
    budget = budget_of(input_tokens_per_minute=10**9)
    first = budget.start(3000, 8192, 0.0)
    assert (first.input, first.output) == (1000, 8192)
    budget.ended(first, {"input_tokens": 600, "output_tokens": 50}, 0.0)
    second = budget.start(6000, 8192, 0.0)
    assert (second.input, second.output) == (1200, 50)


def test_an_estimate_of_output_is_never_above_what_the_agent_allows() -> None:
    budget = budget_of()
    budget.ended(budget.start(1, 8192, 0.0), {"output_tokens": 5000}, 0.0)
    assert budget.start(1, 100, 0.0).output == 100


def test_input_from_the_cache_counts_only_where_it_is_said_to() -> None:
    usage = {
        "input_tokens": 100,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 5000,
        "output_tokens": 1,
    }
    for limits, counted in ((ModelLimits(), 110), (ModelLimits(count_cache_reads=True), 5110)):
        budget = Budget(limits, CEILING)
        budget.ended(budget.start(1000, 10, 0.0), usage, 0.0)
        assert budget.start(1000, 10, 0.0).input == pytest.approx(counted)


def test_what_was_not_used_is_given_back_and_what_nobody_knows_is_not() -> None:
    for usage, opens in (({}, 0.0), (None, 10.0)):
        budget = budget_of(output_tokens_per_minute=600)
        budget.ended(budget.start(1, 100, 0.0), usage, 0.0)
        assert budget.opens_at(0.0) == pytest.approx(opens)


# --- the provider's word ---------------------------------------------------------------------------------------------


def told(budget: Budget, left: Left, now: float = 0.0) -> Attempt:
    attempt = budget.start(300, 10, now)
    budget.told(attempt, left, now)
    return attempt


def test_a_limit_that_the_provider_names_holds_and_the_lower_one_counts() -> None:
    undeclared, looser = budget_of(), budget_of(requests_per_minute=6000)
    for budget in (undeclared, looser):
        told(budget, Left(requests=Quota(limit=60)))
        budget.start(1, 1, 0.0)
        assert budget.opens_at(0.0) == pytest.approx(1.0, abs=1.1)
        assert budget.opens_at(0.0) > 0.0
    tighter = budget_of(requests_per_minute=60)
    told(tighter, Left(requests=Quota(limit=6000)))
    assert tighter.opens_at(0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "opens"), [(1.0, 10.0), (0.5, 10.02)])
def test_what_is_left_bounds_the_budget_by_our_share_of_it(share: float, opens: float) -> None:
    budget = budget_of(share, input_tokens_per_minute=600_000)
    first = budget.start(0, 10, 0.0)
    budget.told(first, Left(input_tokens=Quota(remaining=1000)), 10.0)
    budget.start(1800, 10, 10.0)  # about 600 tokens
    assert budget.opens_at(10.0) == pytest.approx(opens)


def test_what_is_on_its_way_is_taken_off_what_is_left() -> None:
    """Three requests are out, of which the provider has counted one: of the two that are left, none is ours."""
    budget = budget_of(requests_per_minute=60)
    first, *_ = [budget.start(1, 1, -float(n)) for n in range(3)]
    budget.told(first, Left(requests=Quota(limit=60, remaining=2)), 10.0)
    assert budget.opens_at(10.0) > 10.0


@pytest.mark.parametrize("declared", [{}, {"input_tokens_per_minute": 450_000}], ids=["undeclared", "declared higher"])
def test_nonsense_that_the_provider_names_closes_a_model_no_longer_than_a_refusal(declared: dict[str, float]) -> None:
    budget = budget_of(**declared)
    first = told(budget, Left(input_tokens=Quota(1.0, 0.0)), 10.0)
    budget.ended(first, {"input_tokens": 5000, "output_tokens": 100}, 10.0)
    assert budget.opens_at(10.0) == budget.opens_at(200.0) == 10.0 + PAUSE_MAX_S
    assert f"in {PAUSE_MAX_S:.1f} s" in budget.held_by(10.0)
    again = told(budget, Left(input_tokens=Quota(450_000.0, 450_000.0)), 310.0)
    budget.ended(again, {"input_tokens": 5000, "output_tokens": 100}, 310.0)
    assert budget.opens_at(310.0) < 315.0, "a reply that says otherwise opens it again"


def test_a_limit_that_is_declared_is_kept_however_long_that_takes() -> None:
    budget = budget_of(input_tokens_per_minute=1)
    budget.ended(told(budget, Left(input_tokens=Quota(450_000.0, 1.0))), {"input_tokens": 60, "output_tokens": 1}, 0.0)
    assert budget.opens_at(0.0) > 2 * PAUSE_MAX_S


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_usage_that_no_call_can_have_counts_as_its_estimate_and_teaches_nothing(kind: str) -> None:
    budget, other = (budget_of(0.1, **{f"{kind}_tokens_per_minute": 100_000}) for _ in range(2))
    usage = {"input_tokens": 1000, "output_tokens": 1000}
    nonsense = budget.ended(budget.start(3000, 1000, 0.0), {**usage, f"{kind}_tokens": 999_999_999_999}, 0.0)
    assert "999,999,999,999" in (nonsense or "")
    assert other.ended(other.start(3000, 1000, 0.0), usage, 0.0) is None
    assert budget.opens_at(0.0) == pytest.approx(other.opens_at(0.0))
    assert budget.start(3000, 1000, 60.0).input == pytest.approx(1000), "as before it"


def test_nonsense_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    lane: ModelLane[object] = Lanes[object]({}, AgentSettings(), lambda: None, lambda: 0.0).of("m")
    for _ in range(3):
        lane.settle(lane.budget.start(100, 10, 0.0), {"input_tokens": 999_999_999_999}, 0.0)
    assert [r.getMessage()[:33] for r in caplog.records] == ["the server of model 'm' says that"]


def test_what_a_large_call_of_a_large_limit_uses_is_believed() -> None:
    budget = budget_of(input_tokens_per_minute=10_000_000)
    assert budget.ended(budget.start(1000, 10, 0.0), {"input_tokens": 9_000_000, "output_tokens": 1}, 0.0) is None
    assert budget.opens_at(0.0) == pytest.approx(54, abs=1)
    assert budget_of().ended(budget.start(9_000_000, 1, 0.0), {"input_tokens": 9_000_000}, 0.0) is None


def test_nothing_said_changes_nothing() -> None:
    budget = budget_of()
    told(budget, Left())
    assert budget.opens_at(0.0) == 0.0


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_refusal_pauses_the_model_and_then_one_call_finds_out() -> None:
    budget = budget_of()
    attempts = [budget.start(1, 1, 0.0) for _ in range(40)]
    for attempt in attempts:
        budget.refused(attempt, 30.0, 0.0)
        budget.ended(attempt, {}, 0.0)
    assert budget.opens_at(0.0) == 30.0
    assert "pause of 30.0 s" in budget.held_by(0.0)
    probe = budget.start(1, 1, 30.0)
    assert budget.opens_at(30.0) == math.inf
    assert "1 at a time" in budget.held_by(30.0)
    budget.accepted(probe)
    assert budget.opens_at(30.0) == 30.0


def test_no_pause_is_longer_than_a_bound_whatever_the_provider_says() -> None:
    budget = budget_of()
    budget.refused(budget.start(1, 1, 0.0), 1e6, 0.0)
    assert budget.paused_until == PAUSE_MAX_S


@pytest.mark.parametrize("named", [None, 0.0])
def test_a_refusal_that_names_no_pause_makes_one_that_grows_until_a_call_is_accepted(named: float | None) -> None:
    budget, now, pauses = budget_of(), 0.0, []
    for _ in range(10):
        for attempt in [budget.start(1, 1, now) for _ in range(3)]:
            budget.refused(attempt, named, now)
            budget.ended(attempt, {}, now)
        pauses.append(budget.paused_until - now)
        now = budget.paused_until
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0, 8.0])
    found_out = budget.start(1, 1, now)
    budget.accepted(found_out)
    budget.ended(found_out, {}, now)
    assert budget.opens_at(now) == now
    budget.refused(budget.start(1, 1, now), named, now)
    assert budget.paused_until == pytest.approx(now + 0.1)


def test_a_refusal_whose_retries_are_charged_makes_no_pause_that_it_does_not_name() -> None:
    budget = budget_of()
    budget.refused(budget.start(1, 1, 0.0), None, 0.0, charged=True)
    assert budget.paused_until == 0.0


def test_the_window_opens_quickly_to_half_and_then_slowly() -> None:
    window = Window(64)
    rounds = [window.send() for _ in range(40)]
    window.refused(rounds[0])
    sizes = []
    for _ in range(100):
        sizes.append(window.size)
        window.accepted()
    assert sizes[:20] == list(range(1, 21))
    assert 20 <= sizes[60] <= 23
    assert sizes[-1] < 26


def test_refusals_of_one_round_count_once() -> None:
    window = Window(64)
    rounds = [window.send() for _ in range(40)]
    for sent_in in rounds:
        window.refused(sent_in)
    for _ in range(19):
        window.accepted()
    assert window.size == 20


def test_the_window_opens_no_further_than_its_ceiling() -> None:
    window = Window(3)
    window.refused(window.send())
    for _ in range(100):
        window.accepted()
    assert window.size == 3


# --- which limits hold -----------------------------------------------------------------------------------------------


def test_a_models_limits_are_its_own_or_those_of_the_first_pattern_that_it_matches() -> None:
    own, family = ModelLimits(requests_per_minute=1), ModelLimits(requests_per_minute=2)
    declared = {"claude-opus-4*": family, "claude-opus-4-5": own, "claude-*": own}
    assert limits_of("claude-opus-4-5", declared) == ("claude-opus-4-5", own)
    assert limits_of("claude-opus-4-6", declared) == ("claude-opus-4*", family)
    assert limits_of("other", declared) == ("other", ModelLimits())
