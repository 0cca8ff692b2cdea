"""How long is waited before another try, and how many there may be in all.

Responsible for: `agent/model/retrying.py`.
Must never: wait.
Called by: pytest.
"""

from __future__ import annotations

from random import Random
from typing import get_args

import pytest

from anabranch import log_events as e
from anabranch.agent.model.budget import PAUSE_MAX_S
from anabranch.agent.model.retrying import BURST, NAMED, REPLY, RULES, TELL_FIRST_S, TELL_S, RetryBudget, Tries, pause_s
from anabranch.agent.model.seam import Failure, Transient
from anabranch.config import AgentSettings

SETTINGS = AgentSettings(model_backoff_s=1.0, model_backoff_max_s=8.0)
FAILURES: tuple[Failure, ...] = get_args(Failure)


def drawn(kind: Failure, tries: int, left_s: float = 1e6, **fields: float) -> list[float | None]:
    error, chance = Transient("x", kind=kind, **fields), Random(1)  # type: ignore[arg-type]
    return [pause_s(error, tries, left_s, SETTINGS, chance) for _ in range(500)]


# --- pauses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAILURES)
def test_a_pause_is_drawn_between_nothing_and_a_bound_that_doubles(kind: Failure) -> None:
    for tries in range(1, 8):
        bound = min(8.0, RULES[kind].patience * 2 ** (tries - 1))
        pauses = [pause for pause in drawn(kind, tries) if pause is not None]
        assert len(pauses) == 500
        assert max(pauses) <= bound
        assert min(pauses) < 0.1 * bound
        assert max(pauses) > 0.9 * bound


def test_retry_after_is_the_least() -> None:
    assert min(pause or 0 for pause in drawn("rate_limit", 1, retry_after=30.0)) == 30


def test_a_retry_after_beyond_the_deadline_is_no_pause() -> None:
    assert set(drawn("overload", 1, left_s=20.0, retry_after=30.0)) == {None}


def test_a_retry_after_of_hours_ends_no_run_that_has_time_to_find_out() -> None:
    assert set(drawn("rate_limit", 1, left_s=3600.0, retry_after=86_400.0)) == {PAUSE_MAX_S}


def test_chance_alone_leaves_time_for_another_try() -> None:
    assert None not in drawn("server", 9, left_s=2.0)
    assert None in drawn("server", 9, left_s=0.5)


def test_only_refusals_because_of_a_limit_are_free() -> None:
    assert [kind for kind in FAILURES if not RULES[kind].charged] == ["rate_limit"]
    assert [kind for kind in FAILURES if RULES[kind].verdict != "ill"] == ["rate_limit", "conflict"]


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({}, "server"),
        ({"broken": True}, "broken"),
        ({"slow_down": True}, "rate_limit"),
        ({"kind": "silence"}, "silence"),
    ],
)
def test_a_failure_without_a_class_has_the_one_that_it_looks_like(fields: dict[str, bool], failure: str) -> None:
    assert Transient("x", **fields).failure == failure  # type: ignore[arg-type]


# --- the budget ----------------------------------------------------------------------------------------------------


def spent(budget: RetryBudget, at: float) -> int:
    """How many retries go out at once."""
    count = 0
    while budget.opens_at(at) <= at:
        budget.spend(at)
        count += 1
    return count


def test_retries_are_a_part_of_first_tries_and_a_small_rate_besides(seed: int) -> None:
    """A storm: all that fails is tried again as soon as it may, for ten minutes."""
    chance, budget, at, first, again = Random(seed), RetryBudget(0.2, 0.5), 0.0, 0, 0
    while at < 600:
        at += chance.expovariate(10.0)
        budget.called(at)
        first += 1
        again += spent(budget, at)
    assert again <= BURST + 0.2 * first + 0.5 * at
    assert again >= 0.9 * (0.2 * first + 0.5 * at)


def test_replies_allow_for_more() -> None:
    budget = RetryBudget(0.2, 0.5)
    spent(budget, 0.0)
    budget.replied(0.0)
    assert spent(budget, 0.0) == REPLY


def test_some_are_kept_for_when_they_are_needed() -> None:
    assert spent(RetryBudget(0.2, 0.5), 0.0) == BURST


def test_many_calls_that_fail_at_once_have_their_part() -> None:
    budget = RetryBudget(0.2, 0.5)
    for _ in range(250):
        budget.called(0.0)
    assert spent(budget, 0.0) == BURST + 50


def test_what_is_not_used_is_not_hoarded() -> None:
    budget = RetryBudget(0.2, 0.5)
    for at in range(3600):
        budget.called(float(at))
    assert spent(budget, 3600.0) <= BURST + 0.2 * 60
    assert spent(RetryBudget(0.2, 0.5), 1e6) == BURST


def test_who_finds_none_left_learns_when_there_is_one() -> None:
    budget = RetryBudget(0.2, 0.5)
    spent(budget, 0.0)
    assert budget.left(0.0) == pytest.approx(0)
    assert budget.opens_at(0.0) == pytest.approx(2.0)
    assert budget.opens_at(0.0, behind=3) == pytest.approx(8.0)
    assert spent(budget, 2.001) == 1


# --- what is told of them --------------------------------------------------------------------------------------------


def tried(number: int, reason: str = "529") -> e.Tried:
    return e.Tried("m", float(number), 1.0, "overload", reason)


def test_attempts_wait_for_an_event_that_names_them_a_minute_but_the_first_ones_some_seconds() -> None:
    tries = Tries(100.0)
    assert not tries.are_due(1e9)
    tries.add(tried(1))
    assert not tries.are_due(100 + TELL_FIRST_S - 1)
    assert tries.are_due(100 + TELL_FIRST_S)
    assert tries.take(200.0) == (tried(1),)
    assert not tries.are_due(1e9)
    tries.add(tried(2))
    assert not tries.are_due(200 + TELL_S - 1)
    assert tries.are_due(200 + TELL_S)


def test_of_very_many_attempts_those_in_the_middle_are_told_together() -> None:
    tries = Tries(0.0)
    for number in range(100):
        tries.add(tried(number))
    told = tries.take(0.0)
    assert len(told) == NAMED
    assert (sum(each.times for each in told), sum(each.took_s for each in told)) == (100, 100)
    assert [each.at for each in told] == [*range(NAMED // 2), *range(100 - NAMED // 2, 100)]
    assert [each.times for each in told].count(1) == NAMED - 1


def test_a_long_reason_is_cut() -> None:
    tries = Tries(0.0)
    tries.add(tried(1, "x" * 10_000))
    assert len(tries.all[0].reason or "") == 200
