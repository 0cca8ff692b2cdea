"""Runs that are sealed: nothing that is said lies beside its seal, and the model gets the same as if nothing was.

Responsible for: what `agent/large.py`, `agent/reply/plan.py`, `agent/model/thinking.py`, `agent/answer.py`, and
`agent/prompt/asking.py` make of sealed fields; `test_sealed_ends.py` has the clients and the tool workers.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from obstore.store import MemoryStore
from tests.support import builders as b
from tests.support.desk import Desk
from tests.support.sealing import Keys, opened, sealed, sealer, sealing
from tests.unit import test_pieces as said

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import snapshot
from anabranch.agent.answer import answer, response
from anabranch.agent.large import Large, is_for_the_store, sealed_in
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.model.seam import Hopeless, Transient
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer, Offers
from anabranch.agent.reply.content import content_of
from anabranch.agent.reply.plan import BatchContext, plan
from anabranch.agent.reply.reply import Reply, RequestedCall
from anabranch.agent.reply.speaking import Said
from anabranch.agent.state import Run
from anabranch.bodies import read
from anabranch.client_seals import ClientSeals
from anabranch.clockwork import Clockwork
from anabranch.config import AgentSettings, StoreSettings
from anabranch.errors import Forgotten
from anabranch.messages import ToolCall
from anabranch.registry import Registry
from anabranch.specs import ToolSpec
from anabranch.store import NO_STORE, Store

SECRET = "4111-1111"
INPUT = {"card": SECRET, "n": 2**70, "x": 1.0e5}
AS_SAID = orjson.Fragment(f'{{"card": "{SECRET}", "n": {2**70}, "x": 1.0e5}}')
SAID = [b.text(f"I look up {SECRET}"), b.tool_use("tu10", "t", AS_SAID)]
MESSAGES = [{"role": "user", "content": f"my card is {SECRET}"}]


def asked() -> e.Opening:
    """A run that was asked for sealed."""
    return b.opening(request=b.request(input=None, messages_sealed=sealed("messages", MESSAGES), tenant="acme"))


def reply(content: list[Any], *calls: RequestedCall) -> Reply:
    stop = "tool_use" if calls else "end_turn"
    return Reply("calls" if calls else "final", stop, b.message(content, stop), calls, {})


def registry(*tools: ToolSpec) -> Registry:
    found = Registry()
    found.add(tools or [b.tool()], [b.agent()])
    return found


def large(keys: Keys | None = None, store: Store = NO_STORE) -> Large:
    return Large(store, lambda: 0.0, sealing(keys or Keys(), store))


def context(*tools: ToolSpec, sealed: bool = True) -> BatchContext:
    named = {tool.name: tool for tool in tools or (b.tool(),)}
    agent = b.agent(tools=list(named))
    return BatchContext("r", 1, "att", agent, True, named.get, tenant="acme", sealer=sealer() if sealed else None)


async def sealed_reply(content: list[Any], *calls: RequestedCall, store: Store = NO_STORE) -> bytes:
    body = await large(store=store).body_of(reply(content, *calls), "acme", 5.0, sealer())
    assert SECRET.encode() not in body
    return body


async def a_turn() -> Run:
    """A sealed run that has one result, and owes the next model call."""
    body = await sealed_reply(SAID, RequestedCall("tu10", "t", INPUT))
    result = b.result(None, content_sealed=sealed("result", [b.text(SECRET)]), started_at=1.0)
    return b.run_after(b.calls(body=body), b.returned(body=result), opens=asked())


async def body_of(request: Request) -> bytes:
    """What the model is sent, once it is opened."""
    assert request.incomplete is not None
    assert request.build is not None
    async with large().completed(request.incomplete, 5.0) as completed:
        return request.build(completed.found, "m")


# --- to the model ------------------------------------------------------------------------------------------------


async def test_the_model_gets_the_very_bytes_that_it_gets_of_a_run_that_is_not_sealed() -> None:
    body = await body_of(to_request(await a_turn(), Offers(registry())))
    plain = b.run_after(
        b.calls(body=reply(SAID).body),
        b.returned(body=b.result([b.text(SECRET)])),
        opens=b.opening(request=b.request(input=MESSAGES[0]["content"], tenant="acme")),
    )
    assert body == request_body(plain, Offer(b.agent(), [b.tool()]))
    assert body.count(SECRET.encode()) == 4


async def test_a_snapshot_says_seals_again() -> None:
    run = await a_turn()
    parts = snapshot.write(run)
    assert not any(SECRET.encode() in part for part in parts)
    last = e.RunSnapshot(run.run_id, run.life, 0, 0, len(parts), len(parts), "w", parts[-1])
    assert sealed_in(snapshot.read(last, parts)) == sealed_in(run)
    assert [what for what, _ in sealed_in(run)] == ["messages", "reply", "result"]


async def test_a_model_call_of_a_forgotten_tenant_ends_its_run_as_forgotten() -> None:
    keys = Keys()
    keys.forgotten.add("acme")
    incomplete = to_request(await a_turn(), Offers(registry())).incomplete
    assert incomplete is not None
    with pytest.raises(Hopeless) as caught:
        async with large(keys).completed(incomplete, 5.0):
            pass
    assert caught.value.code == "forgotten"


async def test_a_request_that_was_sealed_with_another_key_is_a_bad_one() -> None:
    moved = sealer(run_id="other").seal("messages", orjson.dumps(MESSAGES))
    run = b.run_after(opens=b.opening(request=b.request(input=None, messages_sealed=moved, tenant="acme")))
    incomplete = to_request(run, Offers(registry())).incomplete
    assert incomplete is not None
    with pytest.raises(Hopeless) as caught:
        async with large().completed(incomplete, 5.0):
            pass
    assert (caught.value.code, "does not open" in caught.value.message) == ("invalid_request", True)


async def test_a_result_that_does_not_open_is_told_to_the_model_as_such() -> None:
    body = await sealed_reply(SAID, RequestedCall("tu10", "t", {}))
    moved = sealer(run_id="other").seal("result", b'"x"')
    run = b.run_after(b.calls(body=body), b.returned(body=b.result(None, content_sealed=moved)), opens=asked())
    block = orjson.loads(await body_of(to_request(run, Offers(registry()))))["messages"][-1]["content"][0]
    assert (block["is_error"], "cannot be read" in block["content"]) == (True, True)


async def test_a_seal_in_a_run_that_is_not_sealed_is_not_opened_for_anybody() -> None:
    run = b.run_after(b.calls(), b.returned(body=b.result(None, content_sealed=sealed("result", SECRET))))
    request = to_request(run, Offers(registry()))
    assert request.incomplete is None
    assert b"cannot be read" in request.body


# --- all that travels --------------------------------------------------------------------------------------------

READABLE: dict[type, str] = {
    m.RunRequest: "run_id agent tenant deadline_s max_turns max_cost_usd parallel_tool_calls reply_to stream "
    "stream_thinking cancel",
    m.ToolCall: "call_id run_id agent tenant lane tool dispatch deadline idempotency_key reply",
    e.ToolResult: "started_at finished_at tries worker",
    e.PlannedCall: "call_id tool_use_id tool queue key delivery deadline_s on_error after partition",
    m.StreamDelta: "run_id turn attempt type tool tool_use_id number index",
    m.RunError: "code",
    m.RunResponse: "run_id agent revision status stop_reason error usage turns calls timing",
    m.Usage: "input_tokens output_tokens cache_read_input_tokens cache_creation_input_tokens cost_usd",
    e.Tried: "model at took_s failure reason times",
    e.ModelReplied: "run_id life turn attempt outcome plan usage body code inputs plan_json model tried",
    e.ModelFailed: "run_id life turn attempt error tried",
    e.ModelDiscarded: "run_id life turn attempt usage reason model tried",
    e.RunExpired: "run_id life reason attempt usage model tried",
    e.CallExpired: "run_id life call_id reason",
}
"""What is in no seal, for none of it quotes anybody: `reason` is ours, or stands for a text that is left out; `body`
and `error` have seals of their own, and a tool that the model has made up is not named.
"""
SEALS = {
    "input": "messages", "messages": "messages", "messages_ref": "messages", "metadata": "metadata",
    "output": "content", "content": "content", "content_ref": "content", "input_ref": "input", "rejected": "rejected",
    "message": "message", "text": "text",
}  # fmt: skip
"""Which seal stands in the place of a field."""


@pytest.mark.parametrize("kind", READABLE)
def test_every_field_of_what_travels_is_readable_on_purpose_or_has_a_seal(kind: Any) -> None:
    """Whoever adds one says here which."""
    names = {field.name for field in fields(kind)}
    seals = {name for name in names if name.endswith("_sealed")}
    sealed = {name for name in names if f"{SEALS.get(name)}_sealed" in seals or f"{name}_sealed" in seals}
    assert names - seals - sealed == set(READABLE[kind].split())


async def test_a_call_of_a_sealed_run_is_never_published_in_plain() -> None:
    """Whoever makes its record: here a reply that is not sealed, though its run is."""
    desk = Desk().begin()
    desk.write(b.requested(opens=asked()), b.calls(body=b.message([b.tool_use("tu10", "t", {"card": SECRET})])))
    assert not desk.sent.to(desk.station.namespace.calls("q"))
    assert SECRET not in str(desk.appended)


# --- from the model ----------------------------------------------------------------------------------------------


async def test_a_sealed_reply_keeps_its_content_byte_for_byte_and_each_input_by_itself() -> None:
    body = await sealed_reply(SAID, RequestedCall("tu10", "t", INPUT))
    said = orjson.loads(body)
    assert sealer().open("reply", said["content_sealed"]) == content_of(reply(SAID).body)
    assert opened("input", said["inputs"]["tu10"]["input_sealed"])["card"] == SECRET
    assert said["stop_reason"] == "tool_use"


async def test_what_else_a_provider_may_come_to_say_is_not_kept() -> None:
    said = replace(reply(SAID), body=b.message(SAID, "refusal", stop_details={"explanation": SECRET}))
    assert SECRET.encode() not in await large().body_of(said, "acme", 5.0, sealer())


async def test_large_seals_lie_in_the_store() -> None:
    store = Store(MemoryStore(), "t", StoreSettings(store_inline_bytes=1024))
    said = [b.text(SECRET * 500), b.tool_use("tu10", "t", {"text": SECRET * 500})]
    body = await sealed_reply(said, RequestedCall("tu10", "t", said[1]["input"]), store=store)
    assert len(body) < 1024
    run = b.run_after(b.calls(body=body), opens=asked())
    assert not is_for_the_store(store, run)
    lies = orjson.loads(body)["content_sealed"]
    assert SECRET.encode() not in await store.get(lies, "acme", 1.0)
    assert await sealing(Keys(), store).open("reply", lies, "acme", "r", 1.0) == content_of(reply(said).body)


async def test_calls_are_published_with_their_seals() -> None:
    desk = Desk().begin()
    body = await sealed_reply(SAID, RequestedCall("tu10", "t", INPUT))
    desk.write(b.requested(opens=asked()), b.calls(body=body))
    [record] = desk.sent.to(desk.station.namespace.calls("q"))
    call = read(ToolCall, record.value)
    assert (call.input, call.input_ref) == (None, None)
    assert opened("input", call.input_sealed or "")["card"] == SECRET


def test_a_plan_quotes_no_argument() -> None:
    spec = b.tool(input_schema={"type": "object", "properties": {"card": {"type": "integer"}}})
    calls = [RequestedCall("tu1", "t", {"card": SECRET}), RequestedCall("tu2", f"made up {SECRET}", {})]
    planned = plan(calls, context(spec))
    assert SECRET in str(plan(calls, context(spec, sealed=False)))
    assert SECRET not in str(planned)
    assert [entry.rejected for entry in planned] == ["(sealed)", "(sealed)"]
    assert SECRET in opened("rejected", planned[0].rejected_sealed or "")


async def test_the_model_is_told_why_its_call_was_rejected() -> None:
    spec = b.tool(input_schema={"type": "object", "required": ["card"]})
    planned = plan([RequestedCall("tu10", "t", {})], context(spec))
    run = b.run_after(b.calls(*planned, body=await sealed_reply([b.tool_use()])), opens=asked())
    block = orjson.loads(await body_of(to_request(run, Offers(registry(spec)))))["messages"][-1]["content"][0]
    assert (block["is_error"], "card" in block["content"]) == (True, True)


def test_a_serial_key_of_a_sealed_run_cannot_be_guessed() -> None:
    spec = b.tool(serial_key="card")
    [one], [same], [other], [plain] = (
        plan([RequestedCall("tu1", "t", {"card": card})], context(spec, sealed=sealed))
        for card, sealed in ((SECRET, True), (SECRET, True), ("5", True), (SECRET, False))
    )
    assert one.key == same.key
    assert len({one.key, other.key, plain.key}) == 3


def test_the_stream_is_sealed() -> None:
    said = Said("text", 0, [SECRET])
    begun = Said("tool_input", 1, tool=SECRET, tool_use_id="tu1", input=f'{{"card":"{SECRET}"}}')
    text, call = (waiting.delta(context(), "att", 0) for waiting in (said, begun))
    assert (text.text, opened("stream", text.text_sealed or "")) == (None, SECRET)
    assert (call.tool, call.input, opened("stream", call.input_sealed or "")) == ("(sealed)", None, {"card": SECRET})


class Fails:
    """A model whose provider quotes what it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def reply(self, body: bytes, *_: Any) -> Reply:
        assert SECRET.encode() in body
        raise self.errors.pop(0)


async def test_what_a_provider_says_of_an_error_is_sealed() -> None:
    usage = {"input_tokens": 1}
    model = Fails(Transient(f"broke off at {SECRET}", usage=usage), Hopeless("model_rejected", f"bad {SECRET}", usage))
    clockwork = Clockwork(lambda: 0.0, lambda: "id", random.Random(1))
    thinker = Thinker(model, AgentSettings(model_backoff_s=0.0), {}, clockwork, {}, sealing=sealing(Keys()))
    request, events = to_request(b.run_after(opens=asked()), Offers(registry())), asyncio.Queue[e.Event]()
    job = Job("acme", "m", lambda: replace(request, deadline=60.0), events.put_nowait, lambda *_: None)
    running = asyncio.create_task(thinker.run())
    thinker.submit(job)
    try:
        async with asyncio.timeout(10):
            first, second, last = [await events.get() for _ in range(3)]
    finally:
        running.cancel()
    assert isinstance(last, e.ModelFailed)
    assert SECRET not in str([first, second, last])
    assert (last.error.code, last.error.message) == ("model_rejected", "(sealed)")
    assert opened("error", last.error.message_sealed or "") == f"bad {SECRET}"


# --- answers -----------------------------------------------------------------------------------------------------


async def test_an_answer_has_the_seals_of_what_was_said_last() -> None:
    paused = b.replied("pause", 1, body=await sealed_reply([b.text(f"one {SECRET}")]))
    request = replace(asked().request, metadata_sealed=sealed("metadata", {"card": SECRET}))
    run = b.run_after(
        paused, b.replied("final", 2, body=await sealed_reply([b.text(" two")])), opens=b.opening(request=request)
    )
    assert not is_for_the_store(NO_STORE, run)
    body = answer(run)
    assert body == answer(run), "two copies are the same"
    assert SECRET.encode() not in body
    told = await ClientSeals(sealing(Keys())).response(read(m.RunResponse, body), "acme")
    assert (told.output, told.content, told.metadata) == (f"one {SECRET} two", None, {"card": SECRET})


async def test_an_aborted_run_does_not_quote_the_tool() -> None:
    body = await sealed_reply([b.tool_use()], RequestedCall("tu10", "t", {}))
    result = b.result(None, content_sealed=sealed("result", SECRET))
    called = b.calls(b.planned(on_error="abort"), body=body)
    run = b.run_after(called, b.returned(outcome="error", body=result), opens=asked())
    assert response(run).error == m.RunError("tool_aborted", "tool t failed, and its on_error is 'abort': (sealed)")


async def test_the_answer_of_a_forgotten_tenant_cannot_be_read() -> None:
    keys = Keys()
    run = b.run_after(b.replied(body=await sealed_reply([b.text(SECRET)])), opens=asked())
    keys.forgotten.add("acme")
    with pytest.raises(Forgotten):
        await ClientSeals(sealing(keys)).response(response(run), "acme")


def test_an_answer_that_is_not_sealed_does_not_mention_it() -> None:
    for run in (b.run_after(b.replied()), b.run_after(b.failed())):
        assert b"sealed" not in answer(run)


async def test_a_call_that_begins_early_is_sealed_and_nobody_can_guess_by_its_id_what_it_says() -> None:
    desk = Desk()
    agent = b.agent(early_start=True)
    desk.registry.add([b.tool(read_only=True)], [agent])
    desk.begin().write(b.requested(opens=asked()))
    given = [replace(context(b.tool(read_only=True), sealed=is_sealed), agent=agent) for is_sealed in (True, False)]
    for event in (*said.call(0, f'{{"card":"{SECRET}"}}'), said.ends("tool_use")):
        desk.jobs.due[0].on_event(given[0], event)  # type: ignore[misc]
    (record,) = desk.sent.to(desk.station.namespace.calls("q"))
    body = read(ToolCall, record.value)
    assert (body.dispatch, body.input, opened("input", body.input_sealed or "")) == (0, None, {"card": SECRET})
    (sealed_one,), (plain,) = (plan([RequestedCall("tu0", "t", {"card": SECRET})], each) for each in given)
    assert body.call_id == sealed_one.call_id != plain.call_id
