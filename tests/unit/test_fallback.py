"""An agent's other model, in virtual time: when it is asked, by whom, and when the first is asked again.

Responsible for: what `agent/model/thinking.py` makes of a fallback.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from tests.support.providers import SETTINGS, Desk, Provider, fails, thought, works

from anabranch import log_events as e
from anabranch.agent.model.seam import Failure, Transient
from anabranch.agent.telemetry.sampling import _STATES
from anabranch.config import ModelLimits
from anabranch.prices import Price


def test_after_some_failures_in_a_row_the_other_model_is_asked() -> None:
    provider = Provider(own=fails(), other=works)
    desk = thought(provider, lambda desk: desk.submit())
    assert provider.of("r0") == ["own"] * 3 + ["other"]
    (reply,) = desk.replies
    assert reply.model == "other"
    assert [(each.model, each.failure) for each in reply.tried] == [("own", "server")] * 3 + [("other", None)]
    assert desk.thinker._meters.model_fallbacks.copied() == {("own", "other", "tries"): 1}


def test_a_reply_of_the_agents_own_model_names_none() -> None:
    desk = thought(Provider(own=fails(until=0.1), other=works), lambda desk: desk.submit())
    (reply,) = desk.replies
    assert reply.model is None
    assert [each.model for each in reply.tried] == ["own"] * len(reply.tried)


def test_while_the_breaker_is_open_new_calls_ask_the_other_model_at_once() -> None:
    provider = Provider(own=fails(until=300), other=works)

    async def arrange(desk: Desk) -> None:
        desk.submit(20)
        await asyncio.sleep(10)
        asked = len(provider.times("own"))
        desk.submit(20)
        await asyncio.sleep(1)
        assert len(provider.times("own")) == asked
        assert len(desk.replies) == 40

    desk = thought(provider, arrange)
    assert desk.models == {"other": 40}
    assert desk.thinker._meters.model_fallbacks.copied()["own", "other", "breaker"] >= 20


def test_calls_that_wait_when_the_breaker_opens_turn_to_the_other_model() -> None:
    """Two places, and 20 calls in line."""
    provider = Provider(own=fails(), other=works)
    desk = thought(provider, lambda desk: desk.submit(20), replace(SETTINGS, model_concurrency=2))
    assert desk.models == {"other": 20}
    assert max(at for _, _, at in provider.asked) < 20, "none has waited for the breaker"


def test_the_agents_own_model_is_asked_again_when_it_works() -> None:
    provider = Provider(own=fails(until=30), other=works)

    async def arrange(desk: Desk) -> None:
        for _ in range(100):
            desk.submit(2)
            await asyncio.sleep(1)

    desk = thought(provider, arrange)
    assert len(desk.replies) == 200
    late = [run_id for _, run_id, at in provider.asked if at > 70]
    assert late
    assert all(provider.of(run_id) == ["own"] for run_id in late)


def test_a_long_retry_after_is_not_waited_for() -> None:
    provider = Provider(own=fails("rate_limit", until=1, slow_down=True, retry_after=600.0), other=works)
    desk = thought(provider, lambda desk: desk.submit(5))
    assert desk.models == {"other": 5}
    assert provider.times("other")[-1] < 1


def test_a_retry_after_beyond_the_deadline_ends_no_run_that_has_another_model() -> None:
    provider = Provider(own=fails("rate_limit", retry_after=3600.0), other=works)
    desk = thought(provider, lambda desk: desk.submit(deadline=60.0))
    assert desk.models == {"other": 1}


def test_a_short_pause_is_waited_for() -> None:
    provider = Provider(own=fails("rate_limit", until=1, slow_down=True, retry_after=5.0), other=works)
    desk = thought(provider, lambda desk: desk.submit(5))
    assert desk.models == {"own": 5}


def test_if_the_other_model_fails_too_both_are_asked_until_the_deadline() -> None:
    provider = Provider(own=fails(), other=fails(until=100))
    desk = thought(provider, lambda desk: desk.submit())
    assert desk.models == {"other": 1}
    assert set(provider.of("r0")) == {"own", "other"}
    early = [at for _, _, at in provider.asked if at < 100]
    assert len(early) <= 60, "no model is asked more often because there are two"


def test_both_away_means_to_wait() -> None:
    provider = Provider(own=fails(until=200), other=fails(until=200))
    desk = thought(provider, lambda desk: desk.submit(50))
    assert len(desk.replies) == 50
    assert not [event for event in desk.events if isinstance(event, e.ModelFailed)]


def test_nobody_turns_to_a_model_that_is_away_itself() -> None:
    provider = Provider(own=fails(until=100), other=fails("rate_limit", slow_down=True, retry_after=600.0))
    desk = thought(provider, lambda desk: desk.submit(5), replace(SETTINGS, model_breaker_calls=10**6))
    assert desk.models == {"own": 5}
    assert provider.times("own")[-1] < 120
    assert len(provider.times("other")) <= 5


def test_a_retry_after_is_of_the_model_that_said_it() -> None:
    """Both are asked by turns; the one that says so is not asked for a minute, the other one is."""
    provider = Provider(own=fails(until=30), other=fails("overload", retry_after=60.0))
    desk = thought(provider, lambda desk: desk.submit(), replace(SETTINGS, model_breaker_calls=10**6))
    assert desk.models == {"own": 1}
    assert provider.times("own")[-1] < 45


def test_an_attempt_is_paid_at_the_price_of_its_model() -> None:
    provider = Provider(own=fails("broken", usage={"input_tokens": 10}, broken=True), other=works)
    prices = {"own": Price(1.0, 1.0), "other": Price(100.0, 100.0)}
    desk = thought(provider, lambda desk: desk.submit(), prices=prices)
    thrown = [event for event in desk.events if isinstance(event, e.ModelDiscarded)]
    assert [(event.usage.cost_usd, event.model) for event in thrown] == [(10 / 1e6, None)] * 3
    (reply,) = desk.replies
    assert (reply.usage.cost_usd, reply.model) == (1100 / 1e6, "other")


def test_its_limits_are_those_of_the_model_that_is_asked() -> None:
    provider = Provider(own=fails(), other=works)

    async def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        await asyncio.sleep(5)
        desk.submit(4)

    desk = thought(provider, arrange, limits={"other": ModelLimits(requests_per_minute=6)})
    assert desk.models == {"other": 4}
    times = provider.times("other")
    assert times[-1] - times[0] >= 20


def test_models_that_share_a_limit_have_breakers_of_their_own() -> None:
    """`own` fails; `other` matches the same pattern."""
    provider = Provider(own=fails(), other=works)

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        desk.submit(20)

    desk = thought(provider, arrange, limits={"o*": ModelLimits(requests_per_minute=600)})
    assert desk.models == {"other": 20}
    assert {lane.name for lane in desk.thinker.lanes} == {"o*"}


def test_no_call_counts_as_begun_when_all_are_over(seed: int) -> None:
    """Random outcomes, cancels among them, in both models: every place and every probe is given back."""
    chance = random.Random(seed)
    kinds: list[Failure] = ["server", "rate_limit", "overload", "silence", "broken"]

    def moody(at: float) -> Exception | float:
        bad = chance.random() < (0.8 if at % 200 < 100 else 0.1)
        return (
            Transient("x", kind=chance.choice(kinds), retry_after=None) if bad and at < 1000 else chance.uniform(0, 5)
        )

    async def arrange(desk: Desk) -> None:
        for _ in range(400):
            jobs = desk.submit(chance.randint(0, 3), fallback=chance.choice(("other", None)))
            await asyncio.sleep(chance.expovariate(0.5))
            for job in jobs:
                if chance.random() < 0.2:
                    desk.thinker.cancel(job)

    desk = thought(Provider(own=moody, other=moody), arrange)
    assert desk.thinker.running == 0
    assert desk.thinker.waiting == {}
    for lane in desk.thinker.lanes:
        assert (lane.begun, len(lane.kept), lane.budget._window.unanswered) == (0, 0, 0)
        assert _STATES[lane.breaker.state(1e9)] < 2
        assert lane.breaker.opens_at(1e9) == 1e9, "no probe is missing"
