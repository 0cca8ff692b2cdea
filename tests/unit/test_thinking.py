"""Model calls with a scripted model, in virtual time: whose turn it is, what is tried again, what is told to the log.

Responsible for: `agent/thinking.py`.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.an_hour import an_hour
from tests.support.virtual import now

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.jobs import Job, Request
from anabranch.agent.large import AT_ONCE, Incomplete
from anabranch.agent.model import Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.plan import BatchContext
from anabranch.agent.reply import Reply, RequestedCall
from anabranch.agent.thinking import Thinker
from anabranch.agent.tokens import derived
from anabranch.agent.traces import AgentTraces
from anabranch.clockwork import Clockwork
from anabranch.config import AgentSettings, ModelLimits, StoreSettings
from anabranch.prices import Price, usage_of
from anabranch.spans import Traces
from anabranch.store import NO_STORE, Store
from anabranch.topics import Namespace

SETTINGS = AgentSettings(model_concurrency=2, model_broken_max=3, model_backoff_s=1.0, model_backoff_max_s=8.0)
DONE = Reply("final", "end_turn", b.message([b.text("done")]), (), {"input_tokens": 10})
Step = Reply | Exception | float


class Script:
    """Does what it is told, one step a call: a reply, an error, or a pause and then a reply."""

    def __init__(self, *steps: Step) -> None:
        self.steps, self.asked = list(steps), []  # type: ignore[var-annotated]
        self.at_once = self.most = 0

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        self.asked.append((body.decode(), now()))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            step = self.steps.pop(0) if self.steps else DONE
            if isinstance(step, float):
                await asyncio.sleep(step)
                step = DONE
            if isinstance(step, Exception):
                raise step
            on_event({"type": "message_stop"})
            return step
        finally:
            self.at_once -= 1


class Desk:
    """Submits jobs, and keeps what is appended with its time."""

    def __init__(self, thinker: Thinker) -> None:
        self.thinker, self.appended = thinker, []  # type: ignore[var-annotated]
        self.heard: list[str] = []

    def job(
        self, name: str = "r", tenant: str = "", deadline: float = 1000.0, wanted: bool = True, model: str = "m",
        trace: str | None = None, used: frozenset[str] = frozenset(),
    ) -> Job:  # fmt: skip
        context = BatchContext(name, 1, "", b.agent(), True, lambda tool: None, trace=trace, used=used)
        request = Request("0", context, deadline, name.encode())
        return Job(
            tenant,
            model,
            prepare=lambda: request if wanted else None,
            append=lambda event: self.appended.append((event, round(now(), 3))),
            on_event=lambda context, _: self.heard.append(context.attempt),
        )

    def submit(self, *args: Any, **fields: Any) -> Job:
        job = self.job(*args, **fields)
        self.thinker.submit(job)
        return job

    @property
    def events(self) -> list[e.Event]:
        return [event for event, _ in self.appended]


def thought(
    model: Script, arrange: Callable[[Desk], object], prices: Any = None, settings: Any = SETTINGS, limits: Any = None,
    traces: Traces | None = None, store: Store = NO_STORE,
) -> Desk:  # fmt: skip
    """What came of the jobs that `arrange` submits, an hour later."""

    def desk(clockwork: Clockwork) -> Desk:
        told = None if traces is None else AgentTraces(traces, Namespace("t"), now)
        return Desk(Thinker(model, settings, prices or {}, clockwork, limits or {}, store, traces=told))

    return an_hour(desk, arrange)


def only(desk: Desk) -> Any:
    (event,) = desk.events
    return event


def test_a_reply_is_appended_with_its_plan_and_its_cost() -> None:
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 10}
    asked = Reply("calls", "tool_use", b"body", (RequestedCall("tu", "t", {}),), usage)
    desk = thought(Script(asked), lambda desk: desk.submit(), {"m": Price(2.0, 10.0, 1.0)})
    event = only(desk)
    assert (event.run_id, event.life, event.turn, event.attempt, event.body) == ("r", "0", 1, "id1", b"body")
    assert [entry.call_id for entry in event.plan] == [f"r/1.{derived('id1', 0)}/0"]
    assert event.usage == m.Usage(1000, 100, 10, 0, 0.00301)


def test_what_is_heard_of_a_stream_names_its_attempt() -> None:
    desk = thought(Script(Transient("busy")), lambda desk: desk.submit())
    assert desk.heard == [only(desk).attempt] == ["id2"]


def test_a_model_call_that_is_no_longer_due_is_not_made() -> None:
    model = Script()
    assert thought(model, lambda desk: desk.submit(wanted=False)).events == []
    assert model.asked == []


# --- whose turn it is ------------------------------------------------------------------------------------------


def test_tenants_take_turns() -> None:
    model = Script(*[1.0] * 8)

    def arrange(desk: Desk) -> None:
        for number in range(6):
            desk.submit(f"a{number}", "a")
        desk.submit("b0", "b")
        desk.submit("c0", "c")

    thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1))
    assert [name for name, _ in model.asked] == ["a0", "b0", "c0", "a1", "a2", "a3", "a4", "a5"]


def test_no_more_calls_run_at_once_than_the_settings_allow() -> None:
    model = Script(*[1.0] * 7)
    thought(model, lambda desk: [desk.submit(f"r{n}") for n in range(7)])
    assert model.most == 2
    assert [round(at) for _, at in model.asked] == [0, 0, 1, 1, 2, 2, 3]


def test_a_cancelled_call_makes_room_and_tells_nobody() -> None:
    model = Script(1e6, 1e6)

    async def arrange(desk: Desk) -> None:
        jobs = [desk.submit(f"r{n}") for n in range(4)]
        await asyncio.sleep(5)
        for job in jobs[:3]:
            desk.thinker.cancel(job)
        desk.thinker.cancel(desk.job())

    desk = thought(model, arrange)
    assert [name for name, _ in model.asked] == ["r0", "r1", "r3"]
    assert [getattr(event, "run_id", "") for event in desk.events] == ["r3"]


def test_thousands_of_cancelled_tenants_hold_up_nobody() -> None:
    def arrange(desk: Desk) -> None:
        for job in [desk.submit(f"r{n}", f"tenant-{n}") for n in range(5000)]:
            desk.thinker.cancel(job)
        desk.submit("last", "last")

    assert only(thought(Script(), arrange)).run_id == "last"


def test_after_stop_nothing_begins_and_what_runs_goes_on() -> None:
    model = Script(5.0, 5.0)

    async def arrange(desk: Desk) -> None:
        for number in range(4):
            desk.submit(f"r{number}")
        await asyncio.sleep(1)
        desk.thinker.stop()
        desk.submit("late")
        await desk.thinker.idle()
        assert now() == pytest.approx(5.0)

    assert len(thought(model, arrange).events) == 2
    assert len(model.asked) == 2


# --- what is tried again -----------------------------------------------------------------------------------------


def test_a_transient_failure_is_tried_again_with_backoff() -> None:
    model = Script(*[Transient("529: overloaded")] * 6)
    desk = thought(model, lambda desk: desk.submit())
    assert isinstance(only(desk), e.ModelReplied)
    pauses = [after - before for (_, before), (_, after) in itertools.pairwise(model.asked)]
    assert all(pause <= min(8.0, 2.0**number) for number, pause in enumerate(pauses))
    assert sum(pauses) > 1


def test_the_providers_retry_after_is_kept() -> None:
    model = Script(Transient("429", retry_after=100.0))
    thought(model, lambda desk: desk.submit())
    assert [round(at) for _, at in model.asked] == [0, 100]


def test_a_retry_after_beyond_the_deadline_ends_the_run_at_once() -> None:
    model = Script(Transient("429: rate limited", retry_after=3600.0))
    desk = thought(model, lambda desk: desk.submit(deadline=60.0))
    ((event, at),) = desk.appended
    assert (event.error.code, at) == ("model_unavailable", 0.0)
    assert "429: rate limited" in event.error.message


def test_nothing_is_tried_past_the_deadline() -> None:
    model = Script(*[Transient("529")] * 1000)
    desk = thought(model, lambda desk: desk.submit(deadline=60.0))
    assert only(desk).error.code == "model_unavailable"
    assert all(at < 60 for _, at in model.asked)


def test_a_broken_reply_is_discarded_with_what_it_has_cost() -> None:
    broken = Transient("the stream ended", broken=True, usage={"input_tokens": 7, "output_tokens": 1})
    desk = thought(Script(broken), lambda desk: desk.submit(), {"m": Price(1.0, 1.0)})
    discarded, replied = desk.events
    assert isinstance(discarded, e.ModelDiscarded)
    assert (discarded.attempt, discarded.usage.input_tokens, discarded.usage.cost_usd) == ("id1", 7, 8e-6)
    assert isinstance(replied, e.ModelReplied)
    assert replied.attempt != discarded.attempt


def test_what_cost_nothing_is_not_told() -> None:
    assert len(thought(Script(Transient("529", usage={})), lambda desk: desk.submit()).events) == 1


def test_replies_that_break_again_and_again_end_the_run() -> None:
    model = Script(*[Transient("cut", broken=True, usage={"input_tokens": 1})] * 9)
    desk = thought(model, lambda desk: desk.submit())
    assert [type(event) for event in desk.events] == [e.ModelDiscarded] * 3 + [e.ModelFailed]
    assert desk.events[-1].error.code == "model_unavailable"  # type: ignore[union-attr]


def test_a_reply_that_uses_the_id_of_an_earlier_call_again_is_made_again() -> None:
    """The provider refuses a conversation in which an id is there twice: it could never go on."""
    usage = {"input_tokens": 7}
    again = Reply("calls", "tool_use", b"body", (RequestedCall("tu", "t", {}),), usage)
    desk = thought(Script(again, replace(again, calls=(RequestedCall("new", "t", {}),))),
                   lambda desk: desk.submit(used=frozenset({"tu"})))  # fmt: skip
    discarded, replied = desk.events
    assert isinstance(discarded, e.ModelDiscarded)
    assert "'tu'" in discarded.reason
    assert isinstance(replied, e.ModelReplied)
    assert [entry.tool_use_id for entry in replied.plan] == ["new"]


@pytest.mark.parametrize("code", ["model_unavailable", "model_rejected", "context_exceeded"])
def test_what_no_repetition_cures_is_not_repeated(code: str) -> None:
    model = Script(Hopeless(code, "the spend limit is reached"))
    event = only(thought(model, lambda desk: desk.submit()))
    assert (event.error.code, event.turn, event.life) == (code, 1, "0")
    assert len(model.asked) == 1


def test_a_defect_of_ours_fails_its_run_and_no_other() -> None:
    desk = thought(Script(ZeroDivisionError("oops")), lambda desk: [desk.submit("r"), desk.submit("s")])
    assert [type(event) for event in desk.events] == [e.ModelFailed, e.ModelReplied]
    assert desk.events[0].error == m.RunError("internal", "ZeroDivisionError: oops")  # type: ignore[union-attr]


def test_a_reply_that_does_not_fit_the_log_fails_the_run() -> None:
    huge = replace(DONE, body=b"x" * 1_000_000)
    paid, event = thought(Script(huge), lambda desk: desk.submit()).events
    assert isinstance(paid, e.ModelDiscarded)
    assert isinstance(event, e.ModelFailed)
    assert event.error.code == "internal"
    assert "max_tokens" in event.error.message
    assert (paid.usage.input_tokens, paid.reason) == (10, event.error.message)


def test_a_plan_that_does_not_fit_a_header_fails_the_run() -> None:
    calls = tuple(RequestedCall("x" * 10_000, "t", {}) for _ in range(30))
    event = only(thought(Script(Reply("calls", "tool_use", b"{}", calls, {})), lambda desk: desk.submit()))
    assert event.error.code == "internal"
    assert "its 30 calls take" in event.error.message
    assert "ANABRANCH_STORE" not in event.error.message, "a plan lies in no store"


@pytest.mark.parametrize("count", [-1, 2**60, 1.5, "many", None, [1]])
def test_a_count_that_is_none_counts_as_nothing(count: Any) -> None:
    assert usage_of({"input_tokens": count}, Price(1.0, 1.0)) == m.Usage()


# --- the model's limits ------------------------------------------------------------------------------------------


def at(model: Script) -> dict[str, float]:
    return {name: round(when, 2) for name, when in model.asked}


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
            desk.thinker.submit(lacking(desk.job(f"far{number}"), f"sha256:{'0' * 64};1"))
        await asyncio.sleep(1)
        desk.submit("other", model="other")

    desk = thought(model, arrange, store=Slow(500.0))
    began = at(model)
    assert began["refused"] < 20
    assert began["other"] == 1
    assert 500 <= began["far0"] < 502
    assert 500 <= began["far1"] < 502
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 4


def test_a_call_that_waits_for_memory_lets_the_one_go_on_that_has_it() -> None:
    """The first has it all while it pauses; the second may not take the one place that the first then needs."""
    model = Script(Transient("500", retry_after=10.0))
    large = f"sha256:{'0' * 64};{AT_ONCE - 1}"

    def arrange(desk: Desk) -> None:
        for name in ("one", "other"):
            desk.thinker.submit(lacking(desk.job(name, model=name), large))

    desk = thought(model, arrange, settings=replace(SETTINGS, model_concurrency=1), store=Slow(0.0))
    assert [name for name, _ in model.asked] == ["one", "one", "other"]
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 2


def test_a_call_that_gave_its_place_back_has_used_nothing_of_the_models_limit() -> None:
    model = Script()

    def arrange(desk: Desk) -> None:
        desk.thinker.own(frozenset({0}), 1)
        desk.thinker.submit(lacking(desk.job("far"), f"sha256:{'0' * 64};1"))
        desk.submit("near")

    thought(model, arrange, limits={"m": ModelLimits(requests_per_minute=1)}, store=Slow(300.0))
    assert [name for name, _ in model.asked] == ["near", "far"]
    assert at(model)["near"] < 2


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
