"""Model calls in their model's pace, in virtual time: who is next, what a refusal and a change of the share do to it.

Responsible for: `agent/model/thinking.py` with the limits of `agent/model/budget.py`.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from tests.support import builders as b
from tests.support.thinking import DONE, SETTINGS, Desk, Script, at, only, thought
from tests.support.virtual import now

from anabranch import log_events as e
from anabranch.agent.model.seam import Transient
from anabranch.agent.prompt.fitting import Fitting
from anabranch.config import ModelLimits


def test_calls_keep_to_the_models_pace_and_tenants_take_turns_in_it() -> None:
    model = Script()

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset(range(4)), 4)
        for name in ("a0", "a1", "a2", "b0", "c0"):
            desk.submit(name, name[0])
        desk.submit("free", model="other")

    thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=6)})
    assert at(model) == {"free": 0, "a0": 1, "b0": 11, "c0": 21, "a1": 31, "a2": 41}


def test_a_call_that_waits_for_its_model_takes_no_place_of_another_model() -> None:
    """Two places: neither the limit of one model nor a pause before another try may fill them."""
    model = Script(Transient("500", retry_after=100.0), Transient("500", retry_after=100.0))

    async def arrange(desk: Desk) -> None:
        desk.submit("again0", model="failing")
        desk.submit("again1", model="failing")
        for number in range(5):
            desk.submit(f"held{number}", model="limited")
        await asyncio.sleep(1)
        assert desk.thinker.waiting == {"limited": 5}
        desk.submit("other", model="other")

    desk = thought(model, arrange, limits={"limited": ModelLimits(requests_per_minute=1)})
    assert dict(model.asked)["other"] == 1
    assert dict(model.asked)["again0"] == 100
    assert len(desk.events) == 3


def test_a_call_that_is_tried_again_goes_before_its_tenants_others() -> None:
    model = Script(Transient("429", slow_down=True, retry_after=30.0))

    def arrange(desk: Desk) -> None:
        for number in range(3):
            desk.submit(f"r{number}")

    thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1))
    assert [name for name, _ in model.asked] == ["r0", "r0", "r1", "r2"]


def test_a_refusal_slows_all_runs_of_the_model_down_and_none_of_another() -> None:
    model = Script(Transient("429", slow_down=True, retry_after=30.0), 0.1, 5.0)

    async def arrange(desk: Desk) -> None:
        desk.submit("refused")
        await asyncio.sleep(1)
        for number in range(4):
            desk.submit(f"r{number}")
        desk.submit("other", model="other")

    thought(model, arrange)
    began = at(model)
    assert began["other"] == 1
    assert min(when for name, when in began.items() if name != "other") == 30


def test_a_refusal_fails_no_run_that_still_has_time() -> None:
    """Not because of chance: the pause that is drawn is often longer than the time that is left."""
    for seconds in range(1, 40):
        model = Script(*[Transient("529", slow_down=True)] * 3)
        settings = replace(SETTINGS, model_backoff_s=0.1, model_backoff_max_s=0.5 * seconds)
        desk = thought(model, lambda desk, s=seconds: desk.submit(deadline=float(s)), settings=settings)  # type: ignore[misc]
        assert isinstance(only(desk), e.ModelReplied)


def test_a_share_that_is_gained_counts_a_little_late_and_one_that_is_kept_at_once() -> None:
    model = Script()

    async def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0, 1}), 4)
        desk.submit("first")
        await asyncio.sleep(10)
        desk.thinker.disown(lost=False)
        desk.submit("rebalancing")
        desk.submit("after")
        await asyncio.sleep(5)
        desk.thinker.own(frozenset({1, 2, 3}), 4)

    thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=60)})
    began = at(model)
    assert began["first"] == 1
    assert began["rebalancing"] == 15
    assert began["after"] > 16


def test_what_others_may_have_had_meanwhile_is_gained() -> None:
    model = Script()

    async def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        await asyncio.sleep(10)
        desk.thinker.disown(lost=True)
        desk.submit("r")
        desk.thinker.own(frozenset({0}), 1)

    thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=60)})
    assert at(model) == {"r": 11}


def test_a_call_that_has_begun_is_tried_again_although_its_partition_is_gone() -> None:
    model = Script(Transient("500", retry_after=5.0))

    async def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        desk.submit("r")
        await asyncio.sleep(2)
        desk.thinker.disown(lost=False)
        desk.thinker.stop()

    desk = thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=60)})
    assert [when for _, when in desk.appended] == [6.0]


def test_a_call_that_is_cancelled_while_it_waits_leaves_its_place() -> None:
    """Whether it waits to be tried again, or has begun a moment ago."""
    model = Script(Transient("429", slow_down=True, retry_after=1.0), 50.0)

    async def arrange(desk: Desk) -> None:
        refused = desk.submit("refused", "a")
        await asyncio.sleep(0.5)
        desk.submit("probe", "b")
        await asyncio.sleep(10)
        desk.thinker.cancel(refused)
        soon = desk.submit("soon", "a")
        desk.thinker.cancel(soon)
        desk.submit("next", "a")

    desk = thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1))
    assert [name for name, _ in model.asked][-1] == "next"
    assert desk.thinker.waiting == {}
    assert desk.thinker.running == 0


def test_a_call_of_an_agent_that_nobody_knows_leaves_its_place_as_well() -> None:
    model = Script(50.0)

    def arrange(desk: Desk) -> None:
        desk.submit("first")
        desk.thinker.cancel(desk.submit("unknown", model=""))

    desk = thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1))
    assert at(model) == {"first": 0}
    assert desk.thinker.waiting == {}


def test_waiting_costs_no_steps() -> None:
    steps = 0

    async def arrange(desk: Desk) -> None:
        nonlocal steps
        desk.thinker.own(frozenset({0}), 1)
        for number in range(3):
            desk.submit(f"r{number}")
        await asyncio.sleep(10)
        start = desk.thinker._start_what_fits

        def counted(tasks: asyncio.TaskGroup) -> None:
            nonlocal steps
            steps += 1
            start(tasks)

        desk.thinker._start_what_fits = counted  # type: ignore[method-assign]

    desk = thought(Script(), arrange, limits={"m": ModelLimits(requests_per_minute=0.05)})
    assert len(desk.events) == 3
    assert steps < 20


@pytest.mark.parametrize("before", range(0, 40, 2))
def test_a_call_whose_time_comes_while_somebody_looks_who_is_next_is_made_then(before: int) -> None:
    model = Script(Transient("no", retry_after=10.0, slow_down=True))

    async def arrange(desk: Desk) -> None:
        looks = itertools.count()
        desk.thinker._steady = lambda: now() + 1e-6 * next(looks)  # looking takes time, too
        desk.submit("refused", deadline=5.0)
        desk.submit("waits", deadline=3000.0)
        await asyncio.sleep(10 - before * 1e-6)
        desk.thinker._wake_up()

    thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1))
    assert at(model) == {"refused": 0, "waits": 10}


def test_that_calls_wait_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        for number in range(20):
            desk.submit(f"r{number}")

    thought(Script(), arrange, limits={"m": ModelLimits(requests_per_minute=6)})
    said = [text for record in caplog.records if "wait" in (text := record.getMessage())]
    assert 3 <= len(said) <= 4
    assert said[0] == ("model m: 19 calls wait: its requests a minute are used up; the next call may start in 10.0 s")


def test_a_model_that_keeps_failing_is_warned_of_once_a_minute_and_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    thought(Script(*[Transient("500: broken")] * 10_000), lambda desk: desk.submit(deadline=600.0))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    told = [line for line in warned if not line.startswith("model m fails too often to be asked")]
    assert 5 <= len(told) <= 9
    assert all(line.startswith("run r: the model has failed") and "500: broken" in line for line in told)
    said = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert sum(line.startswith("run r:") for line in said) == 1


def test_a_call_for_which_no_money_is_left_says_nothing_of_its_model() -> None:
    """It is the one that would find out whether the model works: all who wait would be let go by it."""
    model = Script(*[Transient("500: broken")] * 20)
    settings = replace(
        SETTINGS, model_concurrency=20, model_breaker_calls=4, model_breaker_lasting_s=0.0, model_breaker_open_s=20.0
    )

    async def arrange(desk: Desk) -> None:
        for number in range(10):
            desk.submit(f"r{number}")
        await asyncio.sleep(5)
        job = desk.job("poor", "another")
        request = job.prepare()
        assert request is not None
        poor = replace(request, fitting=Fitting(b.agent(), limit=0.0))
        desk.thinker.submit(replace(job, prepare=lambda: poor))

    desk = thought(model, arrange, settings=settings)
    (ended,) = [when for event, when in desk.appended if event.run_id == "poor"]
    assert ended == 20.0, "whoever has not begun finds out"
    assert "poor" not in at(model)
    assert ("m", "rejected") not in desk.thinker._meters.model_calls.copied()
    assert [when for _, when in model.asked if 5 < when < 60] == [20.0], (
        "another one finds out in its place, and no more"
    )


def test_what_a_reply_used_is_settled(caplog: pytest.LogCaptureFixture) -> None:
    """Each takes 100 output tokens of 600 a minute, although the agent allows for more."""
    reply = replace(DONE, usage={"input_tokens": 10, "output_tokens": 100})
    model = Script(*[reply] * 5)

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        for number in range(5):
            desk.submit(f"r{number}")

    thought(model, arrange, limits={"m": ModelLimits(output_tokens_per_minute=600)})
    times = list(at(model).values())
    assert times[-1] - times[1] == pytest.approx(30, abs=1)
