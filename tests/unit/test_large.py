"""What goes by reference, and comes back the same: replies, results, inputs, requests, answers.

Responsible for: `agent/large.py`, `agent/reply/referring.py`, `tools/large.py`, and what the fold, the conversation
and the answer make of references.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from obstore.store import MemoryStore
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.wait import until

from anabranch import log_events as e
from anabranch import messages as m
from anabranch import references
from anabranch.agent import snapshot
from anabranch.agent.answer import answer, brief_answer
from anabranch.agent.large import REPLY_BYTES, Incomplete, Large, large_answer, needed
from anabranch.agent.model.seam import Hopeless
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer, Offers
from anabranch.agent.reply.content import content_of
from anabranch.agent.reply.referring import content_ref_of, inputs_of, referring
from anabranch.agent.reply.reply import Reply, RequestedCall
from anabranch.agent.state import Run
from anabranch.bodies import dump, read
from anabranch.config import StoreSettings
from anabranch.errors import StoreError, TooLarge, WireError
from anabranch.log_events import ToolResult
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.registry import Registry
from anabranch.store import NO_STORE, Store
from anabranch.tools import large as tools_large

INLINE = 1024
LONG = "long " * 1000
IMAGE = base64.b64encode(bytes(range(256)) * 40).decode()
BLOCKS = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}}, b.text("x")]
GONE = references.name_of(b"gone")


def store() -> Store:
    return Store(MemoryStore(), "t", StoreSettings(store_inline_bytes=INLINE))


async def put(shop: Store, value: Any, tenant: str | None = None) -> str:
    return await shop.put(orjson.dumps(value), tenant, 1.0)


def reply(content: list[Any], *calls: RequestedCall) -> Reply:
    stop = "tool_use" if calls else "end_turn"
    return Reply("calls" if calls else "final", stop, b.message(content, stop), calls, {"output_tokens": 7})


def request_of(run: Run) -> Any:
    registry = Registry()
    registry.add([b.tool()], [b.agent()])
    return to_request(run, Offers(registry))


async def body_after(shop: Store, run: Run) -> Any:
    """The next model call of `run`, with what it refers to."""
    request = request_of(run)
    assert request.incomplete is not None
    async with Large(shop, lambda: 0.0).completed(request.incomplete, 5.0) as completed:
        return orjson.loads(request.build(completed.found, "m"))


def tiny() -> Store:
    """One that takes nothing."""
    return Store(MemoryStore(), "t", StoreSettings(store_inline_bytes=INLINE, store_max_bytes=INLINE))


# --- replies --------------------------------------------------------------------------------------------


async def test_a_large_reply_goes_by_reference_and_comes_back_byte_for_byte() -> None:
    shop = store()
    content = [b.text(LONG), {"type": "thinking", "thinking": "é\u2028", "signature": "s=="}]
    said = reply(content)
    body = await Large(shop, lambda: 0.0).body_of(said, "acme", 5.0)
    reference = content_ref_of(body)
    assert reference is not None
    assert len(body) < INLINE
    assert await shop.get(reference, "acme", 1.0) == content_of(said.body)
    assert orjson.loads(body)["stop_reason"] == "end_turn"


async def test_a_small_reply_stays_as_it_is() -> None:
    said = reply([b.text("short")])
    assert await Large(store(), lambda: 0.0).body_of(said, None, 5.0) is said.body
    long = reply([b.text(LONG)])
    assert await Large(NO_STORE, lambda: 0.0).body_of(long, None, 5.0) is long.body


async def test_inputs_stand_beside_the_reference_while_they_fit() -> None:
    shop = store()
    calls = [RequestedCall("tu1", "t", {"n": 2**80, "x": 0.1}), RequestedCall("tu2", "t", {"text": LONG})]
    said = reply([b.tool_use(c.tool_use_id, "t", {} if c is calls[0] else c.input) for c in calls], *calls)
    inputs = inputs_of(await Large(shop, lambda: 0.0).body_of(said, None, 5.0))
    assert inputs["tu1"] == {"n": 2**80, "x": 0.1}
    assert isinstance(inputs["tu2"], str)
    assert orjson.loads(await shop.get(inputs["tu2"], None, 1.0)) == {"text": LONG}


async def test_a_reply_that_cannot_be_kept_fails_its_run_and_counts_what_it_cost() -> None:
    with pytest.raises(Hopeless) as caught:
        await Large(tiny(), lambda: 0.0).body_of(reply([b.text("x" * REPLY_BYTES)]), None, 5.0)
    assert (caught.value.code, caught.value.usage) == ("internal", {"output_tokens": 7})


async def test_what_fits_into_its_record_needs_no_store_that_cannot_be_had() -> None:
    said, result = reply([b.text(LONG)]), ToolResult(LONG)
    assert await Large(tiny(), lambda: 0.0).body_of(said, None, 5.0) is said.body
    assert await tools_large.body_of(tiny(), result, call(), 0.0) == dump(result)
    with pytest.raises(StoreError, match="ANABRANCH_STORE_MAX_BYTES"):
        await tools_large.body_of(tiny(), ToolResult("x" * 2_000_000), call(), 0.0)
    run = b.run_after(b.replied(body=said.body))
    assert await large_answer(tiny(), run) == answer(run)


def test_what_only_looks_like_a_reference_is_none() -> None:
    inside = b.message([b.tool_use("tu1", "t", {"content_ref": GONE})], "tool_use")
    assert content_ref_of(inside) is None
    assert content_ref_of(b'{"content_ref":"sha256:../x;3","inputs":{}}') is None


async def test_a_call_of_a_large_reply_is_published_without_a_look_into_the_store() -> None:
    desk = Desk().begin()
    body = referring(b.message([], "tool_use"), GONE, {"tu10": {"city": "Bonn"}, "tu11": GONE})
    plan = [b.planned(0), b.planned(1)]
    desk.write(b.requested(), b.replied("calls", plan=plan, body=body))
    sent = [orjson.loads(record.value or b"") for record in desk.sent.to(NAMESPACE.calls("q"))]
    assert [(call["input"], call.get("input_ref")) for call in sent] == [({"city": "Bonn"}, None), (None, GONE)]


# --- the next model call --------------------------------------------------------------------------------


async def test_a_model_call_has_everything_that_its_run_refers_to() -> None:
    shop = store()
    messages = [{"role": "user", "content": [b.text(LONG)]}]
    opens = b.opening(request=b.request(input=None, messages_ref=await put(shop, messages)))
    call = b.tool_use("tu10")
    body = referring(b.message([], "tool_use"), await put(shop, [call]), {"tu10": {}})
    result = b.result(None, content_ref=await put(shop, BLOCKS))
    run = b.run_after(b.calls(body=body), b.returned(body=result), opens=opens)
    asked = (await body_after(shop, run))["messages"]
    assert asked[0]["content"] == [b.text(LONG) | {"cache_control": {"type": "ephemeral"}}]
    assert asked[1] == {"role": "assistant", "content": [call]}
    assert asked[2]["content"][0]["content"] == BLOCKS


async def test_it_is_the_same_as_if_nothing_had_been_large() -> None:
    shop = store()
    call, text = b.tool_use("tu10"), f"{LONG} é \U0001f600"
    inline = b.run_after(b.calls(body=b.message([call], "tool_use")), b.returned(body=b.result(text)))
    body = referring(b.message([call], "tool_use"), await put(shop, [call]), {"tu10": {}})
    referred = b.run_after(b.calls(body=body), b.returned(body=b.result(None, content_ref=await put(shop, text))))
    assert await body_after(shop, referred) == orjson.loads(request_body(inline, Offer(b.agent(), [b.tool()])))


def test_a_run_that_refers_to_nothing_needs_no_store() -> None:
    told = request_of(b.run_after(b.calls(), b.returned(body=b.result('{"content_ref": "no"}'))))
    assert told.incomplete is None
    assert told.body


def test_each_object_is_fetched_once() -> None:
    result = b.result(None, content_ref=GONE)
    run = b.run_after(b.calls(b.planned(0), b.planned(1)), b.returned(0, body=result), b.returned(1, body=result))
    assert needed(run) == (GONE,)


@pytest.mark.parametrize("content", [5, {"type": "text"}, ["text"], None])
async def test_an_object_that_is_no_content_is_told_to_the_model_as_such(content: Any) -> None:
    shop = store()
    run = b.run_after(b.calls(), b.returned(body=b.result(None, content_ref=await put(shop, content))))
    block = (await body_after(shop, run))["messages"][-1]["content"][0]
    assert block["is_error"]
    assert "cannot be read" in block["content"]


async def test_an_object_that_is_gone_fails_the_run_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    run = b.run_after(b.calls(), b.returned(body=b.result(None, content_ref=GONE)))
    with pytest.raises(Hopeless) as caught:
        await body_after(store(), run)
    assert caught.value.code == "internal"
    assert GONE in caught.value.message
    assert [GONE in record.message for record in caplog.records if record.levelname == "ERROR"] == [True]


@pytest.mark.parametrize("messages", [[], {}, "hello", ["hello"], None, [{"role": "user"}], [{"content": "x"}]])
async def test_messages_that_are_none_are_a_bad_request(messages: Any) -> None:
    shop = store()
    opens = b.opening(request=b.request(input=None, messages_ref=await put(shop, messages)))
    with pytest.raises(Hopeless) as caught:
        await body_after(shop, b.run_after(opens=opens))
    assert caught.value.code == "invalid_request"
    assert "is no conversation: messages" in caught.value.message


async def test_without_a_store_a_run_that_refers_to_one_fails_clearly() -> None:
    with pytest.raises(Hopeless, match="ANABRANCH_STORE"):
        async with Large(NO_STORE, lambda: 0.0).completed(Incomplete(None, (GONE,)), 5.0):
            raise AssertionError("it has no body")


# --- requests -------------------------------------------------------------------------------------------


def test_a_request_that_names_anything_but_a_hash_is_refused() -> None:
    with pytest.raises(WireError, match="messages_ref"):
        read(m.RunRequest, dump({"messages_ref": "s3://bucket/../secret"}))


# --- answers --------------------------------------------------------------------------------------------


def referred_reply(reference: str, turn: int = 1, outcome: e.ReplyOutcome = "final") -> e.ModelReplied:
    stop = "end_turn" if outcome == "final" else "pause_turn"
    return b.replied(outcome, turn, body=referring(b.message([], stop), reference, {}))


def test_the_answer_refers_to_what_the_last_reply_refers_to() -> None:
    told = orjson.loads(answer(b.run_after(referred_reply(GONE))))
    assert (told["status"], told["content_ref"], told["output"], told["content"]) == ("completed", GONE, None, None)
    assert told["stop_reason"] == "end_turn"


def test_an_answer_that_refers_to_nothing_does_not_mention_it() -> None:
    assert "content_ref" not in orjson.loads(answer(b.run_after(b.replied())))
    assert "content_ref" not in orjson.loads(brief_answer(b.run_after(referred_reply(GONE)), "it is gone"))


async def test_a_paused_answer_in_pieces_is_put_together() -> None:
    shop = store()
    pieces = [b.text("one "), b.text("two "), b.text("three")]
    paused = referred_reply(await put(shop, pieces[:1]), 1, "pause")
    middle = b.replied("pause", 2, body=b.message(pieces[1:2], "pause_turn"))
    run = b.run_after(paused, middle, referred_reply(await put(shop, pieces[2:]), 3))
    told = orjson.loads(await large_answer(shop, run))
    assert orjson.loads(await shop.get(told["content_ref"], None, 1.0)) == pieces


async def test_a_large_answer_is_sent_once_it_is_kept() -> None:
    """The store is asked on the side: the owner goes on meanwhile."""
    shop = store()
    desk = Desk(store=shop).begin()
    desk.write(b.requested(), b.replied(body=b.message([b.text(LONG)])))
    assert not desk.answers
    await until(lambda: bool(desk.answers))
    [told] = desk.answers
    assert orjson.loads(await shop.get(told["content_ref"], None, 1.0)) == [b.text(LONG)]
    await desk.sent.ack()
    assert desk.owner.commit(True) is not None


async def test_an_answer_whose_pieces_are_gone_is_sent_without_them() -> None:
    desk = Desk(store=store()).begin()
    desk.write(b.requested(), referred_reply(GONE, 1, "pause"), referred_reply(GONE, 2))
    await until(lambda: bool(desk.answers))
    assert GONE in desk.answers[0]["error"]["message"]


# --- snapshots ------------------------------------------------------------------------------------------


async def test_a_snapshot_keeps_references() -> None:
    body = referring(b.message([], "tool_use"), GONE, {"tu10": {}})
    run = b.run_after(b.calls(body=body), b.returned(body=b.result(None, content_ref=GONE)))
    parts = snapshot.write(run)
    last = e.RunSnapshot(run.run_id, run.life, 0, 0, len(parts), len(parts), "w", parts[-1])
    assert needed(snapshot.read(last, parts)) == (GONE,)
    assert sum(map(len, parts)) < 4 * INLINE


# --- tool workers ---------------------------------------------------------------------------------------


def call(**fields: Any) -> ToolCall:
    given: dict[str, Any] = {"call_id": "r/1.a/0", "run_id": "r", "agent": "a", "tool": "t", "dispatch": 1}
    given |= {"deadline": 10.0, "idempotency_key": "k", "reply": ReplyTopic(b.LOG, 0)}
    return ToolCall(**{**given, **fields})


async def test_a_large_result_goes_by_reference_with_its_blocks_as_they_are() -> None:
    shop = store()
    body = await tools_large.body_of(shop, ToolResult(BLOCKS, 1.0, 2.0, 1, "w"), call(tenant="acme"), 0.0)
    told = read(ToolResult, body)
    assert (told.content, told.started_at, told.worker) == (None, 1.0, "w")
    assert orjson.loads(await shop.get(told.content_ref or "", "acme", 1.0)) == BLOCKS


async def test_without_a_store_a_result_is_bounded_by_the_record() -> None:
    with pytest.raises(TooLarge, match="ANABRANCH_STORE"):
        await tools_large.body_of(NO_STORE, ToolResult("x" * 2_000_000), call(), 0.0)
    assert await tools_large.body_of(NO_STORE, ToolResult(LONG), call(), 0.0) == dump(ToolResult(LONG))


async def test_an_input_is_had_wherever_it_lies() -> None:
    shop = store()
    reference = await put(shop, {"n": 1, "text": LONG}, "acme")
    assert await tools_large.input_of(shop, call(input={"n": 1}), 0.0) == {"n": 1}
    found = await tools_large.input_of(shop, call(input_ref=reference, tenant="acme"), 0.0)
    assert found == {"n": 1, "text": LONG}
    with pytest.raises(StoreError, match="is not in the store"):
        await tools_large.input_of(shop, call(input_ref=reference, tenant="other"), 0.0)


@pytest.mark.parametrize("value", [[], "text", 5, None])
async def test_an_input_that_is_no_object_is_refused(value: Any) -> None:
    shop = store()
    with pytest.raises(WireError, match="is not a JSON object"):
        await tools_large.input_of(shop, call(input_ref=await put(shop, value)), 0.0)
