"""How a run goes and how it ends, on a real Kafka, against a model that does all that the real one may do.

Responsible for: every stop reason, every failure of the model's API, turns, deadlines and costs: each with its outcome.
Must never: test what the calls of a turn do (test_batches, test_tools).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import by_turn, fleet, settings_for, told

from anabranch import App
from anabranch.messages import RunResponse
from anabranch.prices import Price
from anabranch.testing import Answer, Reply, prompt_of, text, thinking, tool_use, turn_of

app = App("runs")
ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@app.tool(queue="io")
async def touch(word: str) -> str:
    """Leaves a trace."""
    ran[word] += 1
    return word


@app.tool(queue="io", timeout=30)
async def sleep() -> str:
    """Sleeps for long."""
    await asyncio.sleep(30)
    return "never"


@app.tool(queue="io", timeout=30, deadline=0.5)
async def sleep_with_a_deadline() -> str:
    """Sleeps for longer than its deadline."""
    await asyncio.sleep(30)
    return "never"


TOOLS = list(app.tools)
app.agent("runner", model="scripted", tools=TOOLS)
app.agent("short", model="scripted", tools=TOOLS, max_turns=2)
app.agent("thrifty", model="scripted", tools=TOOLS, max_cost_usd=0.001)
CALL = tool_use("touch", {"word": "trace"})


def after_failures(*failures: Reply) -> Callable[[dict[str, Any]], Answer]:
    """A model that fails so often, and then works."""
    asked: Counter[str] = Counter()

    def script(request: dict[str, Any]) -> Answer:
        prompt = prompt_of(request)
        asked[prompt] += 1
        return failures[asked[prompt] - 1] if asked[prompt] <= len(failures) else "Back again."

    return script


def code_of(response: RunResponse) -> str | None:
    return response.error.code if response.error is not None else None


# --- how a reply ends ---------------------------------------------------------------------------------------------


STOPS = {
    "end_turn": ("completed", None),
    "stop_sequence": ("completed", None),
    "max_tokens": ("failed", "max_tokens"),
    "model_context_window_exceeded": ("failed", "context_exceeded"),
    "refusal": ("failed", "model_refused"),
    "compaction": ("failed", "unknown_stop"),
    "new_in_2031": ("failed", "unknown_stop"),
}


async def test_every_stop_reason_has_its_outcome_and_none_of_these_runs_a_call(kafka: str, namespace: str) -> None:
    """Also with a call in the reply: it is not run, for the model did not finish asking."""

    def script(request: dict[str, Any]) -> Answer:
        stop = prompt_of(request)
        return Reply(content=[text("So far."), *([CALL] if STOPS[stop][1] else [])], stop_reason=stop)

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        answers = dict(zip(STOPS, await running.ask_all("runner", list(STOPS)), strict=True))
        assert running.model.calls == len(STOPS)
    assert {stop: (found.status, code_of(found)) for stop, found in answers.items()} == STOPS
    assert [found.stop_reason for found in answers.values()] == list(STOPS)
    completed = [found for found in answers.values() if found.status == "completed"]
    assert {found.output for found in completed} == {"So far."}
    failed = [found for found in answers.values() if found.status == "failed"]
    assert {found.output for found in failed} == {None}
    assert [found.content[0]["text"] for found in failed if found.content] == ["So far."] * len(failed)
    assert not ran


async def test_a_paused_turn_goes_on_where_it_stopped(kafka: str, namespace: str) -> None:
    """What was said before the pause goes back, and counts as said."""

    def script(request: dict[str, Any]) -> Answer:
        if len(request["messages"]) == 1:
            return Reply(content=[text("First ")], stop_reason="pause_turn")
        return "then second."

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        response = await running.ask("runner")
        assert running.request["messages"][-1]["role"] == "assistant"
    assert (response.status, response.output, response.turns) == ("completed", "First then second.", 2)


async def test_thinking_goes_back_as_it_came(kafka: str, namespace: str) -> None:
    """The server knows its signatures, and would refuse a block that was touched."""
    script = by_turn([thinking("Hmm, 1 < 2 & é…"), text("Let me see."), CALL], [thinking("Aha."), text("Done.")])
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        response = await running.ask("runner")
        sent_back = running.request["messages"][1]["content"]
    assert [block["type"] for block in sent_back] == ["thinking", "text", "tool_use"]
    assert sent_back[0]["thinking"] == "Hmm, 1 < 2 & é…"
    assert response.content is not None
    assert [block["type"] for block in response.content] == ["thinking", "text"]
    assert response.output == "Done."


# --- how a run is bounded -------------------------------------------------------------------------------------------


async def test_turns_are_bounded_by_the_agent_and_more_tightly_by_the_request(kafka: str, namespace: str) -> None:
    async with fleet(app, lambda _: CALL, settings_for(kafka, namespace)) as running:
        by_agent = await running.ask("short", "a")
        by_request = await running.ask("short", "b", max_turns=1)
        not_widened = await running.ask("short", "c", max_turns=9)
    assert [code_of(response) for response in (by_agent, by_request, not_widened)] == ["max_turns"] * 3
    assert [response.turns for response in (by_agent, by_request, not_widened)] == [2, 1, 2]
    assert ran["trace"] == 2, "the calls of a last turn are of no use to anybody"


async def test_a_run_ends_as_expired_at_its_deadline_whatever_it_waits_for(kafka: str, namespace: str) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return tool_use("sleep", {}) if prompt_of(request) == "tool" else Reply(content=["Late."], latency_s=30)

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        began = time.monotonic()
        answers = await running.ask_all("runner", ["tool", "model"], deadline=1.5)
        took = time.monotonic() - began
    assert [(response.status, code_of(response)) for response in answers] == [("expired", "deadline")] * 2
    assert took < 20


async def test_a_call_past_its_own_deadline_is_an_error_and_the_run_goes_on(kafka: str, namespace: str) -> None:
    async with fleet(app, by_turn([tool_use("sleep_with_a_deadline", {}), CALL], "Done."),
                     settings_for(kafka, namespace)) as running:  # fmt: skip
        response = await running.ask("runner")
        late, fine = told(running.request)
    assert response.status == "completed"
    assert fine == "trace"
    assert late


async def test_a_call_that_no_worker_takes_ends_at_its_deadline(kafka: str, namespace: str) -> None:
    script = by_turn(tool_use("sleep_with_a_deadline", {}), "Done.")
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await running.stop(running.tools[0])
        response = await running.ask("runner")
        (late,) = told(running.request)
    assert response.status == "completed"
    assert "0.5 s" in late


async def test_a_run_stops_when_its_money_is_spent(kafka: str, namespace: str) -> None:
    settings = replace(settings_for(kafka, namespace), prices={"scripted": Price(input=1000, output=1000)})
    async with fleet(app, lambda _: CALL, settings) as running:
        response = await running.ask("thrifty")
        assert running.model.calls == 0, "not even the first turn could be paid for"
    assert code_of(response) == "budget_exceeded"
    assert (response.usage.cost_usd, response.turns) == (0.0, 0)


async def test_usage_is_the_sum_over_all_turns(kafka: str, namespace: str) -> None:
    usage = {"input_tokens": 100, "output_tokens": 7, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3}
    script = by_turn(Reply(content=[CALL], usage=usage), Reply(content=["Done."], usage=usage))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        used = (await running.ask("runner")).usage
    assert (used.input_tokens, used.output_tokens) == (200, 14)
    assert (used.cache_read_input_tokens, used.cache_creation_input_tokens) == (10, 6)
    assert used.discarded.input_tokens == 0


async def test_a_conversation_can_be_gone_on_with(kafka: str, namespace: str) -> None:
    earlier = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    async with fleet(app, lambda r: f"turn {turn_of(r)}", settings_for(kafka, namespace)) as running:
        response = await running.ask("runner", None, messages=earlier)
        assert running.request["messages"] == earlier
    assert response.output == "turn 2"


# --- how the model fails --------------------------------------------------------------------------------------------

PASSING = {
    "429": Reply.error(429, retry_after=0.3),
    "529": Reply.error(529),
    "500": Reply.error(500),
    "408": Reply.error(408),
    "409": Reply.error(409),
    "not-json": Reply(status=502, raw=b"<html>Bad gateway</html>", headers={"content-type": "text/html"}),
    "cut-early": Reply(content=[text("Half a"), CALL], cut_after=3),
    "cut-in-a-call": Reply(content=[text("Look."), CALL], cut_after=6),
    "cut-at-the-end": Reply(content=[CALL], cut_after=4),
    "dropped": Reply(content=["Half an answer, and th"], drop_after=3),
    "dropped-at-once": Reply(content=["x"], drop_after=0),
    "overloaded-in-the-middle": Reply(content=["So"], sse_error=("overloaded_error", "Overloaded")),
    "error-in-the-middle": Reply(content=["So"], sse_error=("api_error", "Internal")),
    "empty-body": Reply(raw=b"", headers={"content-type": "text/event-stream"}),
    "no-stop-reason": Reply(raw=b'data: {"type": "message_start"}\n\n', headers={"content-type": "text/event-stream"}),
}


async def test_every_failure_that_may_pass_is_tried_again_and_no_half_reply_is_used(kafka: str, namespace: str) -> None:
    scripts = {name: after_failures(failure, failure) for name, failure in PASSING.items()}
    async with fleet(app, lambda r: scripts[prompt_of(r)](r), settings_for(kafka, namespace)) as running:
        answers = await running.ask_all("runner", list(PASSING))
        assert running.model.calls == 3 * len(PASSING)
    outcomes = {name: (r.status, r.output, code_of(r)) for name, r in zip(PASSING, answers, strict=True)}
    assert outcomes == dict.fromkeys(PASSING, ("completed", "Back again.", None))
    assert not ran
    paid = dict(zip(PASSING, answers, strict=True))["cut-in-a-call"].usage
    assert paid.discarded.input_tokens > 0, "what a cut reply cost is told"


async def test_retry_after_is_honoured(kafka: str, namespace: str) -> None:
    async with fleet(app, after_failures(Reply.error(429, retry_after=1)), settings_for(kafka, namespace)) as running:
        response = await running.ask("runner")
    assert response.status == "completed"
    assert response.timing.model_s >= 1


HOPELESS = {
    "400": (Reply.error(400, message="that is no schema"), "model_rejected"),
    "too-long": (Reply.error(400, message="prompt is too long: 300000 tokens > 200000 maximum"), "context_exceeded"),
    "401": (Reply.error(401), "model_rejected"),
    "403": (Reply.error(403), "model_rejected"),
    "404": (Reply.error(404), "model_rejected"),
    "413": (Reply.error(413), "model_rejected"),
    "rejected-in-the-middle": (
        Reply(content=["So"], sse_error=("invalid_request_error", "no")),
        "model_rejected",
    ),
    "spend-limit": (
        Reply.error(429, details={"error_code": "enforced_spend_limit_reached"}, retry_after=0.1),
        "model_unavailable",
    ),
}


async def test_a_failure_that_no_repetition_cures_ends_the_run_at_once(kafka: str, namespace: str) -> None:
    async with fleet(app, lambda r: HOPELESS[prompt_of(r)][0], settings_for(kafka, namespace)) as running:
        answers = await running.ask_all("runner", list(HOPELESS))
        assert running.model.calls == len(HOPELESS)
    codes = {name: code_of(response) for name, response in zip(HOPELESS, answers, strict=True)}
    assert codes == {name: code for name, (_, code) in HOPELESS.items()}
    assert answers[0].error is not None
    assert "that is no schema" in answers[0].error.message


async def test_a_model_that_cannot_be_had_before_the_deadline_is_unavailable(kafka: str, namespace: str) -> None:
    """Without waiting for the deadline, if the provider asks for more time than there is."""
    async with fleet(app, lambda _: Reply.error(429, retry_after=3600), settings_for(kafka, namespace)) as running:
        response = await running.ask("runner", deadline=60)
    assert (response.status, code_of(response)) == ("failed", "model_unavailable")
    assert response.timing.wall_s < 30


async def test_a_model_that_goes_silent_is_asked_again(kafka: str, namespace: str) -> None:
    settings = settings_for(kafka, namespace)
    settings = replace(settings, agent=replace(settings.agent, model_silence_s=0.5))
    script = after_failures(Reply(content=["Half a"], hang_after=3))
    async with fleet(app, script, settings) as running:
        assert (await running.ask("runner")).output == "Back again."


async def test_the_scripted_model_refuses_what_the_api_would_and_the_run_says_why(kafka: str, namespace: str) -> None:
    """A conversation that the API refuses is the client's mistake: no repetition, and its words in the answer."""
    upside_down = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": ""}]
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace), refusals=True) as running:
        response = await running.ask("runner", None, messages=upside_down)
        assert running.model.refusals
    assert code_of(response) == "model_rejected"
