"""What the roles tell of a run: the same spans whoever tells of them, each when it is over.

Responsible for: `agent/telemetry/traces.py`, `agent/telemetry/telling.py`, `tools/traces.py`, and the headers that
they put on records.
Must never: export (tests/acceptance/test_traces). Called by: pytest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.support import builders as b
from tests.support.bench import ToolBench, call
from tests.support.desk import NAMESPACE, Desk, Log
from tests.support.thinking import DONE, Script, thought
from tests.support.told import ABOVE, SAMPLED, TRACE, UNSAMPLED, Told
from tests.support.wait import until

from anabranch import App, RateLimited, Retryable
from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import snapshot
from anabranch.agent.admission.admission import Admission
from anabranch.agent.model.seam import Transient
from anabranch.agent.telemetry.said import messages_of
from anabranch.agent.telemetry.telling import AGAIN_S
from anabranch.codec import cloud_event, decode, encode, header
from anabranch.spans import parse


def traced(**fields: Any) -> e.RunRequested:
    return b.requested(trace=SAMPLED, **fields)


def trace_of(record: Any) -> str | None:
    return header(record.headers, "traceparent")


# --- the log keeps it ---------------------------------------------------------------------------------------------


def test_the_log_keeps_the_trace_of_a_run_and_a_snapshot_does() -> None:
    event = decode(b.as_read(encode(traced(), "t.agent.log", 0, "w"), 0))
    assert isinstance(event, e.RunRequested)
    assert replace(event, size=0) == traced()
    run = b.folded(event).runs["r"]
    assert run.trace == SAMPLED
    [part] = snapshot.write(run)
    said = e.RunSnapshot("r", "0", 1, 1, 1, 1, "w", part)
    assert snapshot.read(said, [part]).trace == SAMPLED


def test_a_log_without_traces_is_folded_as_ever_and_a_broken_one_counts_as_none() -> None:
    plain = encode(b.requested(), "t.agent.log", 0, "w")
    assert trace_of(plain) is None
    broken = plain._replace(headers=(*plain.headers, ("traceparent", b"00-nonsense")))
    assert decode(b.as_read(broken, 0)) == decode(b.as_read(plain, 0))


# --- a run --------------------------------------------------------------------------------------------------------


async def finished(told: Told, log: Log | None = None) -> Desk:
    """A run of one batch of two calls, one of which fails, and an answer."""
    desk = Desk(log, traces=told).begin()
    desk.write(traced(opens=b.opening(requested_at=1.0)), at=2.0)
    desk.write(b.calls(b.planned(0), b.planned(1)), at=4.0)
    await desk.sent.ack()
    desk.write(b.returned(0), at=5.0)
    desk.write(b.returned(1, outcome="error"), at=7.0)
    desk.write(b.replied(turn=2), at=9.0)
    await desk.sent.ack()
    return desk


async def test_a_run_is_told_of_by_the_times_of_the_log() -> None:
    told = Told()
    await finished(told)
    run, waited = told.one("invoke_agent a"), told.one("wait t.agent.requests")
    assert (run.context.trace_id, run.parent_id, run.start, run.end) == (TRACE, ABOVE, 1.0, 9.0)
    assert (run.error, run.attributes["anabranch.run.status"]) == (None, "completed")
    assert (waited.parent_id, waited.start, waited.end) == (run.context.span_id, 1.0, 2.0)
    calls = [span for span in told.spans if span.name == "call t"]
    assert [(span.start, span.end, span.error) for span in calls] == [(4.0, 5.0, None), (4.0, 7.0, "error")]
    assert {span.parent_id for span in calls} == {run.context.span_id}
    sent = [span for span in told.spans if span.name == "send t.tool.calls.q"]
    assert [span.parent_id for span in sent] == [span.context.span_id for span in calls]
    assert told.one("send t.agent.responses").parent_id == run.context.span_id


async def test_records_name_the_spans_that_what_follows_is_below() -> None:
    told = Told()
    desk = await finished(told)
    calls = [str(span.context) for span in told.spans if span.name == "call t"]
    assert [trace_of(record) for record in desk.sent.to(NAMESPACE.calls("q"))] == calls
    [answer] = desk.sent.to(NAMESPACE.responses)
    assert trace_of(answer) == str(told.one("send t.agent.responses").context)


async def test_without_tracing_or_sampling_nothing_is_told_and_the_trace_is_passed_on() -> None:
    told = Told()
    for desk, trace in ((Desk().begin(), SAMPLED), (Desk(traces=told).begin(), UNSAMPLED)):
        desk.write(b.requested(trace=trace), b.calls())
        desk.write(b.returned(0), b.replied(turn=2))
        await desk.sent.ack()
        [call] = desk.sent.to(NAMESPACE.calls("q"))
        [answer] = desk.sent.to(NAMESPACE.responses)
        assert (trace_of(call), trace_of(answer)) == (trace, trace)
    assert told.spans == []


async def test_a_run_without_any_trace_gets_no_header() -> None:
    desk = Desk().begin()
    desk.write(b.requested(), b.calls())
    desk.write(b.returned(0), b.replied(turn=2))
    assert len(desk.called) == len(desk.answers) == 1
    assert {trace_of(record) for record in desk.sent.records} == {None}


async def test_calls_that_nobody_waits_for_any_more_are_told_of_too() -> None:
    told = Told()
    desk = Desk(traces=told).begin()
    desk.write(traced(), b.calls(), b.cancelled(), at=3.0)
    assert told.one("call t").error == "abandoned"
    assert told.one("invoke_agent a").error == "cancelled"


async def test_a_request_that_opens_no_run_is_told_of_and_its_answer_carries_the_trace() -> None:
    told = Told()
    desk = Desk(traces=told).begin()
    desk.write(b.noted(error=m.RunError("unknown_agent", "there is no agent 'secret'"), trace=SAMPLED), at=3.0)
    run = told.one("invoke_agent")
    assert (run.parent_id, run.error) == (ABOVE, "unknown_agent")
    [answer] = desk.sent.to(NAMESPACE.responses)
    assert trace_of(answer) == SAMPLED


# --- takeovers ----------------------------------------------------------------------------------------------------


async def test_a_successor_tells_of_what_its_predecessor_may_not_have_sent_under_the_same_ids() -> None:
    first, second = Told(), Told()
    desk = await finished(first)
    successor = Desk(desk.log, traces=second)
    successor.clock.now = 12.0
    successor.begin().read()
    ids = {span.context.span_id: span.name for span in first.spans}
    again = {span.context.span_id: span.name for span in second.spans}
    chats = {name for key, name in again.items() if key not in ids}
    assert chats == {"chat m"}, "which the model's worker tells of"
    assert set(second.names) == {"invoke_agent a", "wait t.agent.requests", "call t", "chat m"}


async def test_a_successor_repeats_nothing_that_is_old_or_was_released() -> None:
    desk = await finished(Told())
    old, released = Told(), Told()
    successor = Desk(desk.log, traces=old)
    successor.clock.now = 9.0 + AGAIN_S + 1
    successor.begin().read()
    assert old.spans == []
    desk.log.write(e.PartitionReleased(len(desk.log.records)))
    successor = Desk(desk.log, traces=released)
    successor.begin().read()
    assert released.spans == []


async def test_an_owner_that_keeps_its_partition_tells_of_what_happened_meanwhile() -> None:
    told = Told()
    desk = Desk(traces=told).begin()
    desk.write(traced(), b.calls(), at=2.0)
    desk.owner.suspend()
    desk.log.write(b.returned(0), at=5.0)
    desk.owner.resume(desk.log.end)
    desk.read()
    assert told.one("call t").end == 5.0


# --- admission ----------------------------------------------------------------------------------------------------


async def admitted(told: Told | None, trace: str | None) -> e.Event:
    desk = Desk(traces=told).begin()
    admission = Admission(desk.owner, desk.station)
    sent = cloud_event("t.agent.requests", "run.request", "c", "r", orjson.dumps({"agent": "a", "input": "x"}))
    headers = [*sent.headers, *([("traceparent", trace.encode())] if trace is not None else [])]
    admission.feed([b.as_read(sent._replace(headers=tuple(headers), partition=0), 0)])
    task = asyncio.create_task(admission.run())
    try:
        await until(lambda: desk.appended)
    finally:
        task.cancel()
    return desk.appended[0]


@pytest.mark.parametrize(
    ("told", "trace", "kept"),
    [
        (None, None, None),
        (None, SAMPLED, SAMPLED),
        (None, "nonsense", None),
        (Told(), SAMPLED, SAMPLED),
        (Told(), UNSAMPLED, UNSAMPLED),
    ],
)
async def test_a_run_keeps_the_trace_of_its_request(told: Told | None, trace: str | None, kept: str | None) -> None:
    event = await admitted(told, trace)
    assert isinstance(event, e.RunRequested)
    assert event.trace == kept


@pytest.mark.parametrize("samples", [True, False])
async def test_a_request_without_a_trace_begins_one_that_is_the_runs_own(samples: bool) -> None:
    events = [await admitted(Told(samples_roots=samples), None) for _ in range(2)]
    assert isinstance(events[0], e.RunRequested)
    assert isinstance(events[1], e.RunRequested)
    assert events[0].trace == events[1].trace, "whoever admits it"
    own = parse(events[0].trace)
    assert own is not None
    assert own.sampled is samples
    told = Told()
    desk = Desk(traces=told).begin()
    desk.write(replace(events[0], after=0), b.replied())
    assert (len(told.spans) > 0) is samples
    if samples:
        run = told.one("invoke_agent a")
        assert (run.context, run.parent_id) == (own, None)


# --- model calls --------------------------------------------------------------------------------------------------


def test_each_attempt_of_a_model_call_is_told_of() -> None:
    told = Told()
    script = Script(Transient("529: the card 4111 is busy", slow_down=True), DONE)
    thought(script, lambda desk: desk.submit(trace=SAMPLED), traces=told)
    failed, good = told.spans
    assert (failed.name, failed.error, failed.attributes["anabranch.model.try"]) == ("chat m", "529", 1)
    assert (good.name, good.error, good.attributes["anabranch.model.try"]) == ("chat m", None, 2)
    assert failed.context.span_id != good.context.span_id
    assert good.attributes["gen_ai.usage.input_tokens"] == 10
    assert good.attributes["gen_ai.response.finish_reasons"] == ("end_turn",)
    assert not [name for name in good.attributes if name.endswith("messages")]


def test_what_was_said_is_told_where_that_is_switched_on() -> None:
    told = Told(content=True)
    thought(Script(DONE), lambda desk: desk.submit(trace=SAMPLED), traces=told)
    [chat] = told.spans
    said = orjson.loads(str(chat.attributes["gen_ai.output.messages"]))
    assert said == [{"role": "assistant", "parts": [{"type": "text", "content": "done"}], "finish_reason": "end_turn"}]


def test_a_span_that_cannot_be_made_ends_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nonsense(reply: bytes) -> str:
        raise KeyError("input")

    monkeypatch.setattr("anabranch.agent.telemetry.traces.words", nonsense)
    monkeypatch.setattr("anabranch.spans._failed", set())
    told = Told(content=True)

    def two(desk: Any) -> None:
        for _ in range(2):
            desk.submit(trace=SAMPLED)

    desk = thought(Script(DONE, DONE), two, traces=told)
    assert [type(event) for event in desk.events] == [e.ModelReplied] * 2
    assert told.spans == []
    assert sum("a span cannot be told of" in record.getMessage() for record in caplog.records) == 1


def test_a_call_without_an_input_is_told_of_as_it_is() -> None:
    said = messages_of(orjson.dumps({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "u"}]}]}))
    part = {"type": "tool_call", "id": "u", "name": None, "arguments": None}
    assert orjson.loads(said or "") == [{"role": "user", "parts": [part]}]


def test_a_model_call_that_is_given_up_is_told_of_as_that() -> None:
    told = Told()

    async def cancelled(desk: Any) -> None:
        job = desk.submit(trace=SAMPLED)
        await asyncio.sleep(1)
        desk.thinker.cancel(job)

    thought(Script(50.0), cancelled, traces=told)
    assert [span.error for span in told.spans] == ["CancelledError"]


# --- tools --------------------------------------------------------------------------------------------------------

app = App("t")


@app.tool(queue="q", retries=1)
async def flaky() -> str:
    """Fails, and says why."""
    raise Retryable("4111 is busy", after=0.0)


@app.tool(queue="q")
async def paused() -> str:
    """Asks for a pause, once."""
    if not PAUSES:
        PAUSES.append(1)
        raise RateLimited(after=0.0)
    return "4111"


PAUSES: list[int] = []


async def executed(told: Told | None, tool: str, trace: str | None = SAMPLED) -> str | None:
    """The trace that the call's result names."""
    bench = ToolBench(app, traces=told)
    async with bench.running():
        await bench.assign()
        bench.deliver(call(0, tool, trace=trace, at_ms=90_000))
        await until(lambda: bench.sent.returned)
    [result] = [record for record in bench.sent.records if header(record.headers, "ce_type") == "tool.returned"]
    return trace_of(result)


async def test_a_tool_worker_tells_how_long_a_call_waited_and_what_it_did() -> None:
    told = Told()
    named = await executed(told, "flaky")
    waited, did = told.spans
    assert (waited.name, waited.parent_id, waited.start, waited.end) == ("wait t.tool.calls.q", ABOVE, 90.0, 100.0)
    assert (did.name, did.parent_id, did.error) == ("execute_tool flaky", ABOVE, "Retryable")
    assert [(event.name, event.attributes["error.type"]) for event in did.events] == [("retry", "Retryable")]
    assert named == str(did.context) == str(told.around[0])
    assert "4111" not in repr(did.attributes)


async def test_a_pause_that_an_api_asks_for_is_an_event() -> None:
    told = Told(content=True)
    await executed(told, "paused")
    did = told.one("execute_tool paused")
    assert [event.name for event in did.events] == ["paused"]
    assert (did.error, did.attributes["gen_ai.tool.call.result"]) == (None, "4111")


@pytest.mark.parametrize(
    ("told", "trace"), [(None, SAMPLED), (Told(), UNSAMPLED), (None, None), (Told(), None), (None, "nonsense")]
)
async def test_a_result_names_the_trace_of_its_call_where_nothing_is_told(told: Told | None, trace: str | None) -> None:
    assert await executed(told, "paused", trace) == (trace if trace != "nonsense" else None)
    assert told is None or told.spans == []
