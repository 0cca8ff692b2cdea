"""Calls of a model that fails and has no other, in virtual time: who asks it meanwhile, how often, and who comes back.

Responsible for: what `agent/model/thinking.py` makes of breakers and of the retry budget.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from tests.support.providers import SETTINGS, Desk, Provider, fails, thought, works

from anabranch import log_events as e
from anabranch.agent.model.retrying import BURST
from anabranch.agent.model.seam import Failure, Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.reply.reply import Reply
from anabranch.config import AgentSettings


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


def test_a_model_that_rejects_requests_is_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    def arrange(desk: Desk) -> None:
        desk.submit(50, fallback=None)
        asyncio.get_running_loop().call_later(100.0, desk.submit, 5, None)

    thought(Provider(own=lambda at: Hopeless("model_rejected", "401: invalid key 'k'")), arrange)

    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    assert all(record.getMessage().endswith("the model own rejects its request: 401") for record in warned)
    assert {record.__dict__["content"] for record in warned} == {"401: invalid key 'k'"}


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
