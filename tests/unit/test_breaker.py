"""When a model is not asked any more, when one call finds out, and when it is asked again.

Responsible for: `agent/model/breaker.py`.
Must never: wait.
Called by: pytest.
"""

from __future__ import annotations

import math
from random import Random

import pytest

from anabranch.agent.model.breaker import LONGEST, WINDOW_S, Breaker, Pass, Rules, Verdict

RULES = Rules(calls=4, ratio=0.5, open_s=10.0)


def told(breaker: Breaker, *verdicts: Verdict, at: float = 0.0) -> bool:
    """What came of calls that went out and came back at one moment; whether the last one opened it."""
    opened = False
    for verdict in verdicts:
        opened = breaker.ended(breaker.sent(at), verdict, at)
    return opened


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    assert told(breaker, "ill", "ill", "ill", "ill", at=at)
    return breaker


def test_it_opens_when_of_enough_calls_so_many_failed() -> None:
    breaker = Breaker(RULES)
    assert not told(breaker, "ill", "ill", "ill")
    assert breaker.state(0) == "closed"
    assert told(breaker, "ill")
    assert (breaker.state(0), breaker.opens_at(0)) == ("open", 10.0)


def test_what_mostly_works_stays_closed() -> None:
    breaker = Breaker(RULES)
    for at in range(100):
        assert not told(breaker, "well", "well", "ill", at=float(at))


def test_a_success_never_opens_it() -> None:
    breaker = Breaker(RULES)
    told(breaker, "ill", "ill", "ill")
    assert not told(breaker, "well")
    assert breaker.state(0) == "closed"


@pytest.mark.parametrize("verdict", ["there", "unknown"])
def test_refusals_and_wrong_requests_do_not_open_it(verdict: Verdict) -> None:
    breaker = Breaker(RULES)
    assert not told(breaker, *[verdict] * 1000)
    assert not told(breaker, "ill", "ill", "ill")


def test_failures_of_long_ago_are_forgotten() -> None:
    breaker = Breaker(RULES)
    told(breaker, "ill", "ill", "ill")
    assert not told(breaker, "ill", at=WINDOW_S + 1)
    assert told(breaker, "ill", "ill", "ill", at=WINDOW_S + 1)


def test_one_call_at_a_time_finds_out() -> None:
    breaker = opened()
    assert breaker.opens_at(9.9) == 10.0
    assert (breaker.opens_at(12), breaker.state(12)) == (12, "half open")
    probe = breaker.sent(12)
    assert breaker.opens_at(12) == math.inf
    assert not breaker.ended(probe, "well", 13)
    assert (breaker.state(13), breaker.opens_at(13)) == ("closed", 13)


def test_it_opens_only_when_failures_have_lasted() -> None:
    breaker = Breaker(Rules(calls=4, ratio=0.5, open_s=10.0, lasting_s=10.0))
    for at in (3.0, 6.0, 9.0, 12.9):
        assert not told(breaker, "ill", "ill", at=at)
    assert told(breaker, "ill", at=13.0)


def test_a_failure_of_long_ago_says_nothing_of_how_long_it_lasts() -> None:
    breaker = Breaker(Rules(calls=4, ratio=0.5, open_s=10.0, lasting_s=10.0))
    told(breaker, "ill", at=0.0)
    assert not told(breaker, "ill", "ill", "ill", "ill", at=WINDOW_S + 6)


def test_an_answer_of_any_kind_closes_it() -> None:
    breaker = opened()
    assert not told(breaker, "there", at=10)
    assert breaker.state(10) == "closed"


def test_a_probe_that_nobody_waited_for_is_made_again() -> None:
    breaker = opened()
    assert not told(breaker, "unknown", at=10)
    assert (breaker.state(10), breaker.opens_at(10)) == ("half open", 10)


def test_each_probe_that_fails_keeps_it_open_for_longer() -> None:
    breaker, at, pauses = opened(), 0.0, []
    for _ in range(5):
        pauses.append(breaker.opens_at(at) - at)
        at = breaker.opens_at(at)
        assert told(breaker, "ill", at=at)
    assert pauses == [10, 20, 30, 30, 30] == [10 * min(LONGEST, 2**n) for n in range(5)]


def test_after_it_was_closed_it_begins_anew() -> None:
    breaker = opened()
    told(breaker, "ill", at=10)
    told(breaker, "well", at=30)
    assert not told(breaker, "ill", "ill", "ill", at=30)
    assert told(breaker, "ill", at=30)
    assert breaker.opens_at(30) == 40


def test_what_was_sent_before_it_opened_is_no_probe() -> None:
    breaker = Breaker(RULES)
    late, later = [breaker.sent(0) for _ in range(4)], [breaker.sent(0) for _ in range(4)]
    told(breaker, "ill", "ill", "ill", "ill")
    probe = breaker.sent(10)
    for given in late:
        assert not breaker.ended(given, "well", 11)
    assert breaker.state(11) == "half open"
    breaker.ended(probe, "well", 12)
    for given in later:
        assert not breaker.ended(given, "ill", 12)
    assert breaker.state(12) == "closed"


def test_whatever_happens_at_most_one_call_is_out_while_it_is_not_closed(seed: int) -> None:
    chance, breaker, at = Random(seed), Breaker(RULES), 0.0
    out: list[tuple[Pass, bool]] = []
    for _ in range(5000):
        at += chance.expovariate(1.0)
        if breaker.opens_at(at) <= at and len(out) < 8:
            given = breaker.sent(at)
            out.append((given, given.is_probe))
            assert sum(is_probe for _, is_probe in out) <= 1
        elif out:
            verdict: Verdict = chance.choice(("well", "ill", "ill", "there", "unknown"))
            breaker.ended(out.pop(chance.randrange(len(out)))[0], verdict, at)
        assert breaker.opens_at(at) >= at
        assert breaker.opens_at(at) - at <= RULES.open_s * LONGEST + 1e-6 or out, (
            "it opens again, or somebody is finding out"
        )
