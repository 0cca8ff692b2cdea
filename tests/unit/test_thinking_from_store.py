"""Model calls of which parts lie in the store: what they take while they wait for it, in virtual time.

Responsible for: `agent/model/thinking.py` with `agent/large.py`.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from typing import cast

from tests.support.thinking import SETTINGS, Desk, Script, at, thought

from anabranch import log_events as e
from anabranch.agent.large import Incomplete
from anabranch.agent.model.jobs import Job
from anabranch.agent.model.seam import OnEvent, OnLeft, Transient
from anabranch.agent.reply.reply import Reply
from anabranch.config import ModelLimits, StoreSettings
from anabranch.in_hand import AT_ONCE
from anabranch.store import Store

FAR = f"sha256:{'0' * 64};1"


class Slow(Store):
    """Has everything, after a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(object(), "t", StoreSettings(store_max_bytes=AT_ONCE))
        self.seconds = seconds

    async def get(self, reference: str, tenant: str | None, within_s: float) -> bytes:
        await asyncio.sleep(self.seconds)
        return b""


def lacking(job: Job, *references: str) -> Job:
    """The same, of which parts lie in the store."""
    request = job.prepare()
    assert request is not None
    body = request.body
    request = replace(request, body=b"", incomplete=Incomplete(None, references), build=lambda found, model: body)
    return replace(job, prepare=lambda: request)


def test_a_call_that_waits_for_the_store_takes_no_place_at_all() -> None:
    """Two places, and a model that is asked one call at a time since it refused one."""
    model = Script(Transient("429", slow_down=True))

    async def arrange(desk: Desk) -> None:
        desk.submit("refused")
        for number in range(2):
            desk.thinker.submit(lacking(desk.job(f"far{number}"), FAR))
        await asyncio.sleep(1)
        desk.submit("other", model="other")

    desk = thought(model, arrange, store=Slow(500.0))
    began = at(model)
    assert began["refused"] < 20
    assert began["other"] == 1
    assert 500 <= began["far0"] < 502
    assert 500 <= began["far1"] < 502
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 4


def test_calls_that_wait_for_the_store_keep_their_model_from_no_other_call() -> None:
    """Two places, and seven calls that lack something: some of them wait for the store, which takes 500 s for each."""
    model, most = Script(), list[int]()

    async def arrange(desk: Desk) -> None:
        for number in range(7):
            desk.thinker.submit(lacking(desk.job(f"far{number}", deadline=3000.0), FAR))
        await asyncio.sleep(5)
        desk.submit("near")
        await asyncio.sleep(5)
        most.append(desk.thinker.running)
        desk.submit("nearer")

    desk = thought(model, arrange, store=Slow(500.0))
    began = at(model)
    assert (began["near"], began["nearer"]) == (5, 10)
    assert most[0] <= 2 * SETTINGS.model_concurrency, "each of them has a task, and asks the store"
    assert 500 <= began["far0"] < 510
    assert len(began) == 9, "the others have their turn"
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 9
    assert all(lane.begun == lane.late == lane.waiting == 0 for lane in desk.thinker.lanes)


def test_a_call_that_was_set_aside_can_be_cancelled_and_does_not_begin_in_a_worker_that_stops() -> None:
    model, running = Script(), list[list[bool]]()

    async def arrange(desk: Desk) -> None:
        jobs = [lacking(desk.job(f"far{number}"), FAR) for number in range(7)]
        for job in jobs:
            desk.thinker.submit(job)
        await asyncio.sleep(5)
        running.append([desk.thinker.has_begun(job) for job in jobs])
        desk.thinker.cancel(jobs[6])
        assert desk.thinker.waiting == {"m": 7 - sum(running[0]) - 1}
        desk.thinker.stop()
        assert desk.thinker.waiting == {}

    thought(model, arrange, store=Slow(500.0))
    assert not running[0][6]
    assert len(model.asked) == sum(running[0]) < 6


LARGE = f"sha256:{'0' * 64};{AT_ONCE - 1}"


def test_a_call_that_waits_to_be_tried_again_leaves_its_memory_to_others() -> None:
    """The first fetches it all again, once the second, which takes long, is done with it."""
    model = Script(Transient("500", retry_after=10.0), 30.0)

    def arrange(desk: Desk) -> None:
        for name in ("one", "other"):
            desk.thinker.submit(lacking(desk.job(name, model=name), LARGE))

    desk = thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1), store=Slow(0.0))
    assert [name for name, _ in model.asked] == ["one", "other", "one"]
    assert at(model)["other"] < 1
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 2


def test_a_model_that_always_fails_keeps_no_memory_from_calls_of_another() -> None:
    class Down(Script):
        async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
            self.steps = [Transient("500")] if body == b"one" else []
            return await super().reply(body, on_event, on_left)

    model = Down()

    async def arrange(desk: Desk) -> None:
        desk.thinker.submit(lacking(desk.job("one", model="one"), LARGE))
        await asyncio.sleep(0.1)
        for number in range(3):
            desk.thinker.submit(lacking(desk.job(f"other{number}", model="other"), LARGE))

    desk = thought(model, arrange, store=Slow(0.1))
    assert [event.run_id for event in desk.events if isinstance(event, e.ModelReplied)] == [
        "other0",
        "other1",
        "other2",
    ]
    assert max(at(model)[f"other{number}"] for number in range(3)) < 5
    assert len([name for name, _ in model.asked if name == "one"]) > 5, "and is asked for as long as it may be"


def test_what_was_fetched_is_gone_from_memory_while_the_call_waits_to_be_tried_again() -> None:
    class Fetched:
        """Can be looked for."""

    fetched, alive = weakref.WeakSet[Fetched](), list[int]()

    class Kept(Slow):
        async def get(self, reference: str, tenant: str | None, within_s: float) -> bytes:
            fetched.add(found := Fetched())
            return cast(bytes, found)

    model = Script(Transient("500", retry_after=10.0))

    async def arrange(desk: Desk) -> None:
        desk.thinker.submit(lacking(desk.job("one"), LARGE))
        await asyncio.sleep(5)
        assert len(model.asked) == 1
        alive.append(len(fetched))

    thought(model, arrange, store=Kept(0.0))
    assert (len(model.asked), alive) == (2, [0])


def test_a_call_that_was_late_for_its_turn_keeps_no_memory_while_its_model_is_away() -> None:
    """It takes 2 s to fetch, so that its place is gone by then; the model is away for half a minute from then on."""
    model = Script(Transient("429", slow_down=True, retry_after=30.0))

    async def arrange(desk: Desk) -> None:
        desk.thinker.submit(lacking(desk.job("late", model="one"), LARGE))
        await asyncio.sleep(1)
        desk.submit("refused", model="one")
        await asyncio.sleep(1)
        desk.thinker.submit(lacking(desk.job("other", model="other"), LARGE))

    desk = thought(model, arrange, store=Slow(2.0))
    began = at(model)
    assert 4 <= began["other"] < 12, "the first let go of the memory"
    assert 31 <= began["late"] < 60, "and is asked with more patience"
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 3


def test_a_call_that_gave_its_place_back_has_used_nothing_of_the_models_limit() -> None:
    model = Script()

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        desk.thinker.submit(lacking(desk.job("far"), FAR))
        desk.submit("near")

    thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=1)}, store=Slow(300.0))
    assert [name for name, _ in model.asked] == ["near", "far"]
    assert at(model)["near"] < 2


def test_a_call_that_had_to_wait_for_the_store_is_not_made_after_its_deadline() -> None:
    """The model asks for a longer pause than the run has time."""
    model = Script(Transient("429", slow_down=True, retry_after=300.0))

    def arrange(desk: Desk) -> None:
        desk.submit("refused")
        desk.thinker.submit(lacking(desk.job("far", deadline=100.0), FAR))

    desk = thought(model, arrange, store=Slow(50.0))
    assert [name for name, _ in model.asked] == ["refused", "refused"]
    event, ended = desk.appended[0]
    assert (event.run_id, event.error.code, ended) == ("far", "model_unavailable", 100.0)
    assert "waited for what it is made of" in event.error.message
