"""An agent's other model, in virtual time: when it is asked, by whom, and when the first is asked again.

Responsible for: what `agent/thinking.py` makes of breakers, of the retry budget and of a fallback.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.an_hour import an_hour
from tests.support.virtual import now

from anabranch import log_events as e
from anabranch.agent.jobs import Job, Request
from anabranch.agent.model import Failure, Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.plan import BatchContext
from anabranch.agent.reply import Reply
from anabranch.agent.retrying import BURST
from anabranch.agent.sampling import _STATES
from anabranch.agent.thinking import Thinker
from anabranch.config import AgentSettings, ModelLimits
from anabranch.prices import Price

SETTINGS = AgentSettings(
    model_concurrency=64,
    model_backoff_s=1.0,
    model_backoff_max_s=4.0,
    model_breaker_calls=4,
    model_breaker_open_s=20.0,
    model_breaker_lasting_s=0.0,
)
DONE = Reply("final", "end_turn", b.message([b.text("done")]), (), {"input_tokens": 10, "output_tokens": 1})
Does = Callable[[float], Exception | float | None]
"""What a model does at a time: an error, or a reply after so many seconds."""


def fails(kind: Failure = "server", until: float = 1e9, **fields: Any) -> Does:
    return lambda at: Transient(f"{kind}!", kind=kind, **fields) if at < until else None


def works(at: float) -> None:
    return None


class Provider:
    """Each model as `does` says. `asked` are the model, the run and the time of each request."""

    def __init__(self, **does: Does) -> None:
        self._does = does
        self.asked: list[tuple[str, str, float]] = []

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        model, run_id = body.decode().split()
        self.asked.append((model, run_id, now()))
        outcome = self._does[model](now())
        if isinstance(outcome, Exception):
            raise outcome
        await asyncio.sleep(outcome or 0.0)
        on_event({"type": "message_stop"})
        return DONE

    def of(self, run_id: str) -> list[str]:
        return [model for model, asked, _ in self.asked if asked == run_id]

    def times(self, model: str) -> list[float]:
        return [round(at, 3) for asked, _, at in self.asked if asked == model]


class Desk:
    def __init__(self, thinker: Thinker) -> None:
        self.thinker = thinker
        self.events: list[e.Event] = []
        self._numbers = itertools.count()

    def submit(self, count: int = 1, fallback: str | None = "other", deadline: float = 1e6) -> list[Job]:
        jobs = [self._job(f"r{next(self._numbers)}", fallback, deadline) for _ in range(count)]
        for job in jobs:
            self.thinker.submit(job)
        return jobs

    def _job(self, name: str, fallback: str | None, deadline: float) -> Job:
        context = BatchContext(name, 1, "", b.agent(model="own", fallback=fallback), True, lambda tool: None)
        request = Request(
            "0", context, deadline, f"own {name}".encode(), build=lambda found, model: f"{model} {name}".encode()
        )
        return Job("", "own", lambda: request, self.events.append, lambda *_: None, fallback=fallback)

    @property
    def replies(self) -> list[e.ModelReplied]:
        return [event for event in self.events if isinstance(event, e.ModelReplied)]

    @property
    def models(self) -> Counter[str]:
        """Who made the replies."""
        return Counter(reply.model or "own" for reply in self.replies)


def thought(
    provider: Provider, arrange: Callable[[Desk], object], settings: AgentSettings = SETTINGS,
    prices: dict[str, Price] | None = None, limits: dict[str, ModelLimits] | None = None,
) -> Desk:  # fmt: skip
    """What came of the jobs that `arrange` submits, an hour later."""
    return an_hour(lambda clockwork: Desk(Thinker(provider, settings, prices or {}, clockwork, limits or {})), arrange)


# --- without another model: the breaker and the retry budget -------------------------------------------------------


@pytest.mark.parametrize("kind", ["overload", "server", "transport", "broken", "silence"])
def test_a_model_that_fails_all_is_asked_by_one_call_at_a_time(kind: Failure) -> None:
    provider = Provider(own=fails(kind, until=600))
    desk = thought(provider, lambda desk: desk.submit(50, fallback=None))
    assert len(desk.replies) == 50, "a run that has time never fails because of it"
    early = [at for at in provider.times("own") if 10 < at < 600]
    assert 600 / 60 - 2 <= len(early) <= 600 / 20
    assert all(after - before >= 20 for before, after in itertools.pairwise(early))


def test_runs_wait_for_a_breaker_no_longer_than_their_deadline() -> None:
    desk = thought(Provider(own=fails(until=1e9)), lambda desk: desk.submit(10, fallback=None, deadline=100.0))
    ended = [event for event in desk.events if isinstance(event, e.ModelFailed)]
    assert {event.error.code for event in ended} == {"model_unavailable"}
    assert len(ended) == 10


def test_a_run_that_the_model_always_fails_on_holds_no_other_up() -> None:
    class Poisoned(Provider):
        async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
            if body.endswith(b" r0"):
                raise Transient("server!", kind="server")
            return await super().reply(body, on_event, on_left)

    def arrange(desk: Desk) -> None:
        desk.submit(1, fallback=None)
        asyncio.get_running_loop().call_later(100.0, desk.submit, 5, None)

    provider = Poisoned(own=works)
    desk = thought(provider, arrange)
    assert desk.thinker._meters.model_breaker_opened.copied() != {}
    assert [at < 100 + 60 for _, _, at in provider.asked] == [True] * 5, "the next probe is one of theirs"


def test_refusals_because_of_a_limit_open_no_breaker() -> None:
    provider = Provider(own=fails("rate_limit", until=100, slow_down=True, retry_after=1.0))
    desk = thought(provider, lambda desk: desk.submit(50, fallback=None))
    assert len(desk.replies) == 50
    assert desk.thinker._meters.model_breaker_opened.copied() == {}


@pytest.mark.parametrize("code", ["model_rejected", "context_exceeded"])
def test_a_wrong_request_opens_no_breaker(code: str) -> None:
    desk = thought(Provider(own=lambda at: Hopeless(code, "400")), lambda desk: desk.submit(50, fallback=None))
    assert len(desk.events) == 50
    assert desk.thinker._meters.model_breaker_opened.copied() == {}


def test_retries_cannot_storm() -> None:
    """Nine of ten calls fail; the breaker is out of the way. What is tried again is a part of what is asked first."""
    chance = random.Random(1)
    provider = Provider(own=lambda at: Transient("500", kind="server") if at < 300 and chance.random() < 0.9 else None)
    settings = replace(
        SETTINGS, model_breaker_calls=10**6, model_retry_ratio=0.1, model_retries_per_minute=6, model_concurrency=1000
    )

    async def arrange(desk: Desk) -> None:
        for _ in range(300):
            desk.submit(2, fallback=None)
            await asyncio.sleep(1)
        early.append(len(desk.replies))

    early: list[int] = []
    desk = thought(provider, arrange, settings)
    assert len(desk.replies) == 600
    retries = len([at for at in provider.times("own") if at < 300]) - 600
    allowed = BURST + 0.1 * 600 + 0.1 * 300 + 2 * early[0]
    assert 0.8 * allowed <= retries <= allowed


def test_those_who_wait_come_back_soon_when_the_model_works_again() -> None:
    """All places are taken by calls that wait for their next try, so no first try allows for any."""
    settings = replace(AgentSettings(), model_concurrency=256)
    provider = Provider(own=lambda at: Transient("500", kind="server") if at < 300 else 5.0)
    desk = thought(provider, lambda desk: desk.submit(256, fallback=None), settings)
    assert len(desk.replies) == 256
    last = provider.times("own")[-1]
    assert last < 300 + 30 + 60, "the last probe, and a few round trips"


def test_what_fails_for_seconds_only_opens_no_breaker_and_waits_for_no_budget() -> None:
    """Fifty runs, each of which fails twice, and then works: by the settings that are in force if nobody sets any."""
    failures: Counter[str] = Counter()

    class Twice(Provider):
        async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
            failures[body.decode()] += 1
            if failures[body.decode()] <= 2:
                raise Transient("529", kind="overload", slow_down=True)
            return await super().reply(body, on_event, on_left)

    provider = Twice(own=works)
    desk = thought(provider, lambda desk: desk.submit(50, fallback=None), AgentSettings())
    assert len(desk.replies) == 50
    assert provider.times("own")[-1] < 20
    assert desk.thinker._meters.model_breaker_opened.copied() == {}


def test_a_run_that_waits_for_the_retry_budget_can_be_cancelled() -> None:
    settings = replace(
        SETTINGS,
        model_breaker_calls=10**6,
        model_retry_ratio=0.0,
        model_retries_per_minute=0.001,
        model_concurrency=200,
    )

    async def arrange(desk: Desk) -> None:
        jobs = desk.submit(150, fallback=None)
        await asyncio.sleep(60)
        waiting = desk.thinker.waiting["own"]
        assert waiting > 40
        for job in jobs:
            desk.thinker.cancel(job)
        await desk.thinker.idle()
        assert desk.thinker.waiting == {}

    thought(Provider(own=fails()), arrange, settings)


def test_models_that_share_a_limit_have_breakers_of_their_own() -> None:
    """`own` fails; `other` matches the same pattern."""
    provider = Provider(own=fails(), other=works)

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        desk.submit(20)

    desk = thought(provider, arrange, limits={"o*": ModelLimits(requests_per_minute=600)})
    assert desk.models == {"other": 20}
    assert {lane.name for lane in desk.thinker.lanes} == {"o*"}


# --- the other model -----------------------------------------------------------------------------------------------


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
