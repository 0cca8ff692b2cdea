"""Model calls with a scripted model, in virtual time: whose turn it is, what is tried again, what is told to the log.

Responsible for: `agent/model/thinking.py`.
Must never: open a connection, or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.thinking import DONE, SETTINGS, Desk, Script, only, thought
from tests.support.virtual import now

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.model.seam import Hopeless, Transient
from anabranch.agent.reply.reply import Reply, RequestedCall
from anabranch.agent.reply.tokens import derived
from anabranch.codec import decode, encode
from anabranch.prices import Price, usage_of


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


def test_what_a_provider_says_with_half_of_a_character_fits_into_the_log() -> None:
    half = [Transient("busy \ud83d"), Hopeless("model_rejected", "bad \ud83d", {"input_tokens": 1})]
    events: list[Any] = list(thought(Script(*half), lambda desk: desk.submit()).events)
    said = [decode(b.as_read(encode(event, "log", 0, "w"), 0)) for event in events]
    assert said == events
    assert [type(event) for event in events] == [e.ModelDiscarded, e.ModelFailed]
    assert (events[0].reason, events[0].tried[0].reason, events[1].error.message) == ("bad ?", "busy ?", "bad ?")


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
    assert [type(event) for event in desk.events] == [e.ModelDiscarded, e.ModelReplied]
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
    *_, ended = desk.events
    assert isinstance(ended, e.ModelFailed)
    assert ended.error.code == "model_unavailable"
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


@pytest.mark.parametrize("count", [-1, 2**60, 1e300, math.nan, "many", True, None, [1]])
def test_a_count_that_is_none_counts_as_nothing(count: Any) -> None:
    assert usage_of({"input_tokens": count}, Price(1.0, 1.0)) == m.Usage(cost_usd=0.0)


@pytest.mark.parametrize(("said", "counted"), [(12.0, 12), (1.5, 2)])
def test_a_fraction_of_a_token_counts_as_one(said: float, counted: int) -> None:
    assert usage_of({"output_tokens": said}, Price(1.0, 1.0)).output_tokens == counted


def test_a_usage_that_is_no_whole_number_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    odd = replace(DONE, usage={"input_tokens": None, "output_tokens": 2**60})
    thought(Script(odd, odd), lambda desk: [desk.submit(), desk.submit("r2")])
    (told,) = [record.getMessage() for record in caplog.records if "whole number" in record.getMessage()]
    assert "model 'm' says output_tokens=1152921504606846976, which counts as 0" in told
