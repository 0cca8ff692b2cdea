"""Whole runs on a real Kafka whose transcripts are compared byte by byte, and whose model breaks its own rules.

Responsible for: that what the model said reaches it again as it was, through a takeover and a cleaning; and that a turn
which cannot be used runs nothing and is seen in the usage.
Must never: test single traps (test_wire_*) or how runs end otherwise (test_runs).
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.raw import Record, read_until
from tests.support.stream import Event, called, delta, end, said, sse, start
from tests.support.wait import until
from tests.support.wire import Answer, Wire, http, wire

from anabranch import App
from anabranch.config import AnthropicSettings, Settings

app = App("exact")
ran: Counter[str] = Counter()
held = asyncio.Event()


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    held.clear()


@app.tool(queue="io")
async def touch(word: str, price: float = 0) -> str:
    """Leaves a trace."""
    ran[word] += 1
    return "x" * 2000


@app.tool(queue="io")
async def wait(word: str, price: float = 0) -> str:
    """Waits until it is let go."""
    ran[word] += 1
    await held.wait()
    return word


app.agent("a", model="m", tools=[touch, wait])


def at(settings: Settings, server: Wire) -> Settings:
    return replace(settings, anthropic=AnthropicSettings(api_key="test", base_url=server.base_url))


async def worker(running: Fleet, server: Wire) -> None:
    await running.add_agent(settings=at(running.settings, server))


def is_snapshot(record: Record) -> bool:
    return dict(record.headers).get("ce_type") == b"run.snapshot"


INPUTS = ['{"word": "one", "price": 1.10}', '{ "price":12345678901234567890123456789012,"word":"\\u0074wo"}',
          '{"word":"three","word":"3", "price":1E+2}']  # fmt: skip
BLOCKS = [
    b'{"type":"thinking","thinking":"","signature":"EqQB/+aZ=="}',
    b'{"type":"redacted_thinking","data":"EmwKAhgB/+=="}',
    b'{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{ "query": "\\u00e9" }}',
    b'{"type":"web_search_tool_result","tool_use_id":"srvtoolu_1","content":[{"n":1.10,"n":2.0}]}',
    b'{"type":"hologram","depth":1.10,"n":12345678901234567890123,"deep":[{"x":[1e5,null]}],"esc":"\\/"}',
    b'{"type":"text","text":"so","citations":null,"mood":{"level":0.10}}',
]


def exact(turn: int, tool: str) -> tuple[bytes, bytes]:
    """A reply as it is streamed, and its content as it must come back."""
    events: list[Event] = [start()]
    kept = list(BLOCKS)
    for index, raw in enumerate(BLOCKS):
        events.append(b'{"type":"content_block_start","index":%d,"content_block":%b}' % (index, raw))
        events.append({"type": "content_block_stop", "index": index})
    for index, raw_input in enumerate(INPUTS, len(BLOCKS)):
        use = f'{{"type":"tool_use","id":"tu{turn}_{index}","name":"{tool}","input":{{}},"caller":{{"type":"direct"}}}}'
        events.append(b'{"type":"content_block_start","index":%d,"content_block":%b}' % (index, use.encode()))
        pieces = [raw_input[i : i + 5] for i in range(0, len(raw_input), 5)]
        events += [delta(index, {"type": "input_json_delta", "partial_json": piece}) for piece in ["", *pieces]]
        events.append({"type": "content_block_stop", "index": index})
        kept.append(use.replace('"input":{}', f'"input":{raw_input}').encode())
    return http(sse([*events, *end("tool_use", output_tokens=9)])), b"[" + b",".join(kept) + b"]"


async def test_a_transcript_is_the_same_bytes_after_a_takeover_and_a_cleaning(kafka: str, namespace: str) -> None:
    replies = [exact(1, "touch"), exact(2, "wait"), exact(3, "touch")]
    answers: list[Answer] = [*(streamed for streamed, _ in replies), http(sse([start(), *said(0, "Done."), *end()]))]
    settings = settings_for(kafka, namespace)
    settings = replace(settings, agent=replace(settings.agent, clean_bytes=2000, snapshot_age_s=1.0))
    async with wire(*answers) as server, fleet(app, lambda _: "", settings, agents=0) as running:
        await worker(running, server)
        run = await running.client.submit("a", "hi")
        await until(lambda: ran["two"] == 2, what="the calls of the second turn are out")
        await read_until(kafka, running.namespace.log, lambda log: any(map(is_snapshot, log)))
        await worker(running, server)
        await running.stop(running.agents[0])
        held.set()
        async with asyncio.timeout(45):
            answer = await run
        sent = [body for _, body in server.requests]
    assert (answer.status, answer.output, len(sent)) == ("completed", "Done.", 4)
    for number, (_, content) in enumerate(replies, 1):
        for body in sent[number:]:
            assert b'{"role":"assistant","content":' + content + b"}" in body
    assert answer.usage.output_tokens == 3 * 9 + 1


USED = {"input_tokens": 7, "output_tokens": 1}
GOOD = [start(), *called(0, '{"word": "good"}', name="touch", tool_use_id="fresh"), *end("tool_use", output_tokens=5)]
DONE = http(sse([start(), *said(0, "Done."), *end(output_tokens=5)]))
BAD = [start(), *called(0, '{"word": "bad"}', name="touch"), *end("tool_use", output_tokens=40)]
BROKEN: dict[str, tuple[list[Event], int]] = {
    "it ends inside a call's JSON": (BAD[:3], 1),
    "a gap in the index": ([*BAD[:-2], *said(5, "x"), *BAD[-2:]], 40),
    "a delta that does not belong there": ([*BAD[:3], delta(0, {"type": "text_delta", "text": "x"}), *BAD[3:]], 40),
    "two calls of one id": ([*BAD[:-2], *called(1, "{}", name="touch"), *BAD[-2:]], 40),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
async def test_a_turn_that_cannot_be_used_runs_nothing_and_is_made_again_whole(
    kafka: str, namespace: str, how: str
) -> None:
    broken, paid = BROKEN[how]
    async with (
        wire(http(sse(broken)), http(sse(GOOD)), DONE) as server,
        fleet(app, lambda _: "", settings_for(kafka, namespace), agents=0) as running,
    ):
        await worker(running, server)
        answer = await running.ask("a")
        first, again, _ = (body for _, body in server.requests)
    assert answer.status == "completed"
    assert ran == {"good": 1}
    assert first == again, "the same is asked again"
    assert (answer.usage.output_tokens, answer.usage.discarded.output_tokens) == (10, paid)
    assert (answer.usage.input_tokens, answer.usage.discarded.input_tokens) == (14, 7)


async def test_an_id_that_was_used_before_is_not_used_again(kafka: str, namespace: str) -> None:
    again = http(sse(GOOD))
    other = [start(), *called(0, '{"word": "other"}', name="touch", tool_use_id="new"), *end("tool_use")]
    async with (
        wire(http(sse(GOOD)), again, http(sse(other)), DONE) as server,
        fleet(app, lambda _: "", settings_for(kafka, namespace), agents=0) as running,
    ):
        await worker(running, server)
        answer = await running.ask("a")
    assert answer.status == "completed"
    assert ran == {"good": 1, "other": 1}
    assert answer.usage.discarded.output_tokens == 5


async def test_what_no_other_reply_would_cure_is_paid_for_once(kafka: str, namespace: str) -> None:
    unknown = [*BAD[:3], delta(0, {"type": "levitation_delta", "height": 3}), *BAD[3:]]
    async with (
        wire(http(sse(unknown))) as server,
        fleet(app, lambda _: "", settings_for(kafka, namespace), agents=0) as running,
    ):
        await worker(running, server)
        answer: Any = await running.ask("a")
        assert len(server.requests) == 1
    assert (answer.status, answer.error.code) == ("failed", "model_unavailable")
    assert "levitation_delta" in answer.error.message
    assert answer.usage.discarded.output_tokens == 40
    assert not ran
