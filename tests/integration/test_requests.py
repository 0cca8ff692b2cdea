"""Requests from people who know nothing but docs/wire.md, good and bad, and garbage on every topic.

Responsible for: that a bare producer is a client; that what is bad is answered and kept, costs nobody else anything,
and never stops a partition. Must never: submit what is tested through our own client, which would refuse it first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, PARTITIONS, Fleet, by_turn, fleet, settings_for, told
from tests.support.raw import Record, answer_of, produce, produce_bomb, read_until, reason_of

from anabranch import App
from anabranch.testing import text, tool_use, turn_of
from anabranch.topics import partition_of

app = App("requests")


@app.tool(queue="io")
async def double(n: int) -> int:
    """Doubles a number."""
    return 2 * n


app.remote_tool("pollen", queue="elsewhere", description="Counts pollen.", schema={"type": "object", "properties": {}})
app.agent("doubler", model="scripted", tools=[double])
app.agent("counter", model="scripted", tools=["pollen", "double"])
script = by_turn([text("Let me see."), tool_use("double", {"n": 21})], "It is 42.")
HEADERS = [("ce_type", b"tool.returned"), ("ce_runid", b"nobody"), ("ce_life", b"0")]


async def send(running: Fleet, body: Any, **how: Any) -> tuple[int, int]:
    """Produce a request; `body` is bytes as they are, or goes as JSON."""
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    return await produce(running.bootstrap, running.namespace.requests, raw, **how)


async def answer(running: Fleet, run_id: str) -> dict[str, Any]:
    return await answer_of(running.bootstrap, running.namespace.responses, run_id)


async def letters(running: Fleet, count: int) -> Sequence[Record]:
    return await read_until(running.bootstrap, running.namespace.dead_letters, lambda found: len(found) >= count)


async def test_a_json_body_without_key_and_headers_is_a_request(kafka: str, namespace: str) -> None:
    """As kafka-console-producer sends it. Its run is called after its place."""
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        partition, offset = await send(running, {"agent": "doubler", "input": "21?"})
        response = await answer(running, f"{partition}.{offset}")
    assert (response["status"], response["output"]) == ("completed", "It is 42.")


async def test_the_key_is_the_run_id_if_the_body_has_none(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await send(running, {"agent": "doubler", "input": "21?"}, key=b"order-7")
        assert (await answer(running, "order-7"))["status"] == "completed"


async def test_a_request_on_a_wrong_partition_is_moved_to_its_own(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        wrong = (partition_of("order-8", PARTITIONS) + 1) % PARTITIONS
        await send(running, {"run_id": "order-8", "agent": "doubler", "input": "21?"}, partition=wrong)
        assert (await answer(running, "order-8"))["output"] == "It is 42."


async def test_a_cancel_request_by_a_bare_producer_ends_the_run(kafka: str, namespace: str) -> None:
    async def slowly(_: dict[str, Any]) -> str:
        await asyncio.sleep(30)
        return "Too late."

    async with fleet(app, slowly, settings_for(kafka, namespace)) as running:
        await send(running, {"run_id": "order-9", "agent": "doubler", "input": "21?"}, key=b"order-9")
        await send(running, {"run_id": "order-9", "cancel": True}, key=b"order-9")
        response = await answer(running, "order-9")
    assert (response["status"], response["error"]["code"]) == ("cancelled", "cancelled")


GOOD = {"agent": "doubler", "input": "21?"}
DEEP = b'{"agent": "doubler", "input": "x", "metadata": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}"
DEEPER_THAN_WE_TAKE = b'{"agent": "doubler", "input": "x", "metadata": {"a": ' + b"[" * 150 + b"]" * 150 + b"}}"
BAD: dict[str, Any] = {
    "not-json": b"agent=doubler",
    "not-utf8": b'{"agent": "\xff"}',
    "empty": b"",
    "null-value": None,
    "array": [GOOD],
    "string": '"hello"',
    "half-a-character": b'{"agent": "doubler", "input": "\\ud800"}',
    "no-agent": {"input": "21?"},
    "unknown-agent": {**GOOD, "agent": "tripler"},
    "wrong-type": {**GOOD, "max_turns": "many"},
    "boolean-turns": {**GOOD, "max_turns": True},
    "negative-deadline": {**GOOD, "deadline_s": -1},
    "infinite-deadline": b'{"agent": "doubler", "input": "x", "deadline_s": 1e999}',
    "bad-tenant": {**GOOD, "tenant": "a b"},
    "too-deep": DEEP,
    "deep": DEEPER_THAN_WE_TAKE,
    "input-and-messages": {**GOOD, "messages": [{"role": "user", "content": "x"}]},
    "neither": {"agent": "doubler"},
    "empty-input": {**GOOD, "input": ""},
    "input-is-a-number": {**GOOD, "input": 7},
    "no-messages": {"agent": "doubler", "messages": []},
    "message-without-content": {"agent": "doubler", "messages": [{"role": "user"}]},
    "message-of-nobody": {"agent": "doubler", "messages": [{"role": "tool", "content": "x"}]},
    "bad-reply-to": {**GOOD, "reply_to": {"partition": 4000}},
    "negative-reply-to": {**GOOD, "reply_to": {"partition": -1}},
    "large-metadata": {**GOOD, "metadata": {"a": "x" * 5000}},
    "endless-integer": b'{"agent": "doubler", "input": "x", "metadata": {"n": ' + b"9" * 60 + b"}}",
    "endless-integer-in-a-block": b'{"agent": "doubler", "input": [{"type": "text", "n": ' + b"9" * 60 + b"}]}",
    "cost-without-price": {**GOOD, "max_cost_usd": 1},
    "as-large-as-it-gets": {**GOOD, "input": "x" * 1_046_000},
}


async def test_each_bad_request_is_answered_and_kept_and_the_partition_goes_on(kafka: str, namespace: str) -> None:
    """All of them on one partition, and a good request behind them."""
    partition = partition_of("the-good-one", PARTITIONS)
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        for name, body in BAD.items():
            await send(running, body, key=name.encode(), partition=partition)
        await send(running, GOOD, key=b"the-good-one", partition=partition)
        assert (await answer(running, "the-good-one"))["output"] == "It is 42."
        answers = {name: await answer(running, name) for name in BAD}
        dead = await letters(running, len(BAD))
    codes = {name: found["error"]["code"] for name, found in answers.items()}
    assert codes == {**dict.fromkeys(BAD, "invalid_request"), "unknown-agent": "unknown_agent"}
    assert all(found["status"] == "failed" and found["error"]["message"] for found in answers.values())
    assert sorted(letter.key.decode() for letter in dead) == sorted(BAD)
    kept = {letter.key.decode(): letter.value for letter in dead}
    assert kept["not-json"] == b"agent=doubler"
    assert kept["as-large-as-it-gets"] == json.dumps(BAD["as-large-as-it-gets"]).encode()[: 64 * 1024]
    assert all(dict(letter.headers)["ce_origin"].startswith(running.namespace.requests.encode()) for letter in dead)
    assert "tripler" in reason_of(next(letter for letter in dead if letter.key == b"unknown-agent"))


async def test_a_bad_request_is_answered_under_the_run_id_in_its_body(kafka: str, namespace: str) -> None:
    """Without a key: whoever sent it waits for the id that it chose, at the inbox that it named."""
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        body = {"run_id": "order-10", "agent": "doubler", "input": 7, "reply_to": {"partition": 5}}
        await send(running, body)
        assert (await answer(running, "order-10"))["error"]["code"] == "invalid_request"
        found = await read_until(running.bootstrap, running.namespace.responses, lambda records: len(records) > 0)
    assert found[0].partition == 5


async def test_a_bad_request_without_any_run_id_is_answered_under_its_place(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        partition, offset = await send(running, b"what is this?")
        assert (await answer(running, f"{partition}.{offset}"))["error"]["code"] == "invalid_request"


async def test_integers_of_any_size_in_a_tools_arguments_arrive_as_they_are(kafka: str, namespace: str) -> None:
    number = 10**30
    big = by_turn(tool_use("double", {"n": number}), "Done.")
    async with fleet(app, big, settings_for(kafka, namespace)) as running:
        await running.ask("doubler")
        (result,) = running.request["messages"][-1]["content"]
    assert result["content"] == str(2 * number)


LOG_GARBAGE: list[dict[str, Any]] = [
    {"value": None},
    {"value": b""},
    {"value": b"\x00\xff", "key": b"\xff\xfe"},
    {"value": b"{}", "headers": [("ce_type", b"\xff\xff")]},
    {"value": b"{}", "headers": [("ce_type", b"run.requested")]},
    {"value": b"{}", "headers": [("ce_type", b"run.exploded"), ("ce_runid", b"nobody")]},
    {"value": b"[", "headers": HEADERS},
    {"value": b"{}", "headers": [*HEADERS, ("ce_callid", b"nobody/1.a/0"), ("ce_outcome", b"ok")]},
    {"value": b"{}", "headers": [("ce_type", b"calls.handed_off"), ("ce_worker", b"w"), ("ce_for", b"nan")]},
    {
        "value": b'{"calls": ["no slash"]}',
        "headers": [("ce_type", b"calls.handed_off"), ("ce_worker", b"w"), ("ce_for", b"1")],
    },
    {"value": b'{"reason": "x"}', "headers": [("ce_type", b"run.cancelled"), ("ce_runid", b"nobody")]},
    {"value": b"{}", "headers": [("ce_type", b"partition.released"), ("ce_done", b"1" * 40)]},
    {"value": b"x", "headers": [("x" * 1000, b"y" * 60_000)]},
]


async def test_garbage_in_the_run_log_costs_nobody_anything(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        for partition in range(PARTITIONS):
            for record in LOG_GARBAGE:
                await produce(running.bootstrap, running.namespace.log, partition=partition, **record)
        answers = await running.ask_all("doubler", [f"{n}?" for n in range(12)])
        dead = await letters(running, 1)
    assert {response.output for response in answers} == {"It is 42."}
    assert dead


async def test_a_batch_that_unpacks_to_far_too_much_costs_nobody_anything(kafka: str, namespace: str) -> None:
    """In each topic that somebody reads: 60 MB of a few kB. It is kept as one dead letter, which says what it was."""
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        names = running.namespace
        kept = [names.requests, names.log, names.calls("io")]
        origins = set()
        for topic in [*kept, names.registry, names.responses]:
            first = await produce_bomb(running.bootstrap, topic, 30_000_000)
            origins.add(f"{topic}/0/{first + 1}".encode())
        answers = await running.ask_all("doubler", [f"{n}?" for n in range(12)])
        dead = await letters(running, len(kept))
    assert {response.output for response in answers} == {"It is 42."}
    assert {dict(letter.headers)["ce_origin"] for letter in dead} < origins
    assert all(b"unpack to more than" in letter.value for letter in dead)
    assert len(dead) == len(kept)


def call_body(**changes: Any) -> bytes:
    body = {
        "call_id": "order-1/1.a/0",
        "run_id": "order-1",
        "agent": "doubler",
        "tool": "double",
        "input": {"n": 1},
        "dispatch": 1,
        "deadline": 4e9,
        "idempotency_key": "order-1/1.a/0",
        "reply": {"topic": "requests.agent.log", "partition": 0},
    }
    return json.dumps({**body, **changes}).encode()


async def test_garbage_in_a_queue_costs_nobody_anything(kafka: str, namespace: str) -> None:
    """Also calls that ask for their result on a topic or a partition that is not there."""
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        queue, log = running.namespace.calls("io"), running.namespace.log
        home = partition_of("order-1", PARTITIONS)
        life = [("ce_type", b"tool.call"), ("ce_life", b"0"), ("ce_runid", b"order-1")]
        garbage: list[dict[str, Any]] = [
            {"value": None},
            {"value": b"nonsense", "headers": life},
            {"value": b"[]", "headers": life},
            {"value": call_body()},
            {"value": call_body(input=[1]), "headers": life},
            {
                "value": call_body(call_id="a/1.a/0", tool="nobody", reply={"topic": log, "partition": home}),
                "headers": life,
            },
            {
                "value": call_body(call_id="b/1.a/0", deadline=1, reply={"topic": log, "partition": home}),
                "headers": life,
            },
            {"value": call_body(call_id="c/1.a/0", reply={"topic": log, "partition": 4000}), "headers": life},
            {"value": call_body(call_id="d/1.a/0", reply={"topic": "no topic!", "partition": 0}), "headers": life},
            {"value": call_body(call_id="e/1.a/0", reply={"topic": f"{log}.gone", "partition": 0}), "headers": life},
            {
                "value": call_body(call_id="f/1.a/0", input={"n": "x"}, reply={"topic": log, "partition": home}),
                "headers": life,
            },
            {"value": call_body(call_id="g" * 5000, reply={"topic": log, "partition": home}), "headers": life},
        ]
        for record in garbage:
            await produce(running.bootstrap, queue, partition=3, **record)
        answers = await running.ask_all("doubler", [f"{n}?" for n in range(30)])
        dead = await letters(running, 5)
    assert {response.output for response in answers} == {"It is 42."}
    assert all(dict(letter.headers)["ce_origin"].startswith(queue.encode()) for letter in dead)


ODD_RESULTS: list[tuple[bytes | None, bytes | None, str]] = [
    (b"success", b'{"content": "7"}', "ce_outcome must be one of error, ok, timeout, unknown, not 'success'"),
    (b"", b'{"content": "7"}', "ce_outcome must be"),
    (b"ok", None, "cannot be read: Invalid JSON"),
    (b"ok", b"seven", "cannot be read: Invalid JSON"),
    (None, b'{"content": 7}', "cannot be read: content: Input should be a text, or a list of content blocks (got 7)"),
    (None, b'{"content": "7", "started_at": "noon"}', "cannot be read: started_at"),
    (None, b'{"content": "7", "started_at": -1.7e308, "finished_at": 1.7e308}', "7"),
]


async def test_odd_results_of_a_worker_in_another_language_cost_their_call_alone_and_say_why(
    kafka: str, namespace: str
) -> None:
    def both(request: dict[str, Any]) -> Any:
        calls = [tool_use("pollen", {}), tool_use("double", {"n": 21})]
        return calls if turn_of(request) == 1 else json.dumps(told(request))

    async with fleet(app, both, settings_for(kafka, namespace), queues=["io"]) as running:
        runs = [await running.client.submit("counter", "?", run_id=f"r-{n}") for n in range(len(ODD_RESULTS))]
        queue = running.namespace.calls("elsewhere")
        for call in await read_until(kafka, queue, lambda found: len(found) == len(ODD_RESULTS)):
            body = json.loads(call.value)
            outcome, result, _ = ODD_RESULTS[int(body["run_id"].removeprefix("r-"))]
            kept = [pair for pair in call.headers if pair[0] in ("ce_runid", "ce_life", "ce_callid")]
            said = [("ce_outcome", outcome)] if outcome is not None else []
            headers = [("ce_type", b"tool.returned"), *kept, *said]
            key, where = body["run_id"].encode(), body["reply"]
            await produce(kafka, where["topic"], result, key=key, partition=where["partition"], headers=headers)
        async with asyncio.timeout(ANSWER_S):
            answers = [json.loads(await run.output()) for run in runs]
    assert [double for _, double in answers] == ["42"] * len(ODD_RESULTS)
    assert [why in heard for (heard, _), (_, _, why) in zip(answers, ODD_RESULTS, strict=True)] == [True] * len(
        ODD_RESULTS
    )


async def test_garbage_in_the_registry_costs_nobody_anything(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace), agents=0, queues=[]) as running:
        for key in (b"tool/x", b"agent/x@1", b"worker/x", b"\xff\xff", b"what", b"tool/"):
            for value in (b"nonsense", b"[]", b"{}", b"null", b'{"name": 7}'):
                await produce(running.bootstrap, running.namespace.registry, value, key=key)
        await running.add_agent()
        await running.add_tools("io")
        assert (await running.ask("doubler")).output == "It is 42."
        await produce(running.bootstrap, running.namespace.registry, b"nonsense", key=b"tool/double")
        assert (await running.ask("doubler")).output == "It is 42."


@pytest.mark.parametrize("field", ["agent", "reply_to", "input"])
async def test_a_field_that_is_null_counts_as_absent(kafka: str, namespace: str, field: str) -> None:
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await send(running, {**GOOD, field: None}, key=b"order-11")
        response = await answer(running, "order-11")
    assert response["status"] == ("completed" if field == "reply_to" else "failed")
