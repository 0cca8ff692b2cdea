"""A transcript is what the provider said, to the byte, wherever it has been: and what is mutilated is never a success.

Responsible for: replies from the stream into the log, through takeover, snapshot, cleaning and the store, and back into
the next request; and for streams in which something is wrong.
Must never: open a connection, or compare parsed values where bytes are promised.
Called by: pytest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b
from tests.support.stream import Event, delta, end, json_of, start

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import cleaning, snapshot
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer
from anabranch.agent.reply.content import content_of
from anabranch.agent.reply.plan import BatchContext, plan
from anabranch.agent.reply.referring import content_ref_of, inputs_of, referring
from anabranch.agent.reply.reply import BrokenReply, ProviderError, Reply, ReplyBuilder
from anabranch.agent.state import Partition
from anabranch.codec import decode

# --- JSON as text: a value may be written in many ways, and is to stay as it was written ------------------------

_SPACE = st.sampled_from(["", "", " ", "\n  ", "\t"])
_NUMBER = st.sampled_from(
    ["0", "-0", "1.10", "1e5", "1E+2", "-0.0", "12345678901234567890123456789012", "1.0000000000000000000001"]
)
_TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: orjson.dumps(text).decode()),
    st.sampled_from(
        [
            '"\\u00e9\\ud83d\\ude00"',
            '"\\/"',
            '"\\",\\"content\\":["',
            '"]}"',
            '"content_ref"',
            '"\\u0000"',
            '"input"',
            '"\\u0069nput"',
            '"text"',
            '"content_block"',
        ]
    ),
)


def _list(items: list[str], space: str) -> str:
    return "[" + f"{space},{space}".join(items) + space + "]"


def _object(items: list[tuple[str, str]], space: str) -> str:
    """Keys in any order, twice too."""
    return "{" + space + f",{space}".join(f"{key}{space}:{value}" for key, value in items) + "}"


_VALUE = st.recursive(
    st.one_of(_NUMBER, _TEXT, st.sampled_from(["true", "null"])),
    lambda inner: st.one_of(
        st.builds(_list, st.lists(inner, max_size=3), _SPACE),
        st.builds(_object, st.lists(st.tuples(_TEXT, inner), max_size=3), _SPACE),
    ),
    max_leaves=6,
)
_INPUT = st.builds(_object, st.lists(st.tuples(_TEXT, _VALUE), max_size=4), _SPACE)
_FIELD = st.tuples(st.sampled_from(["caller", "aura", "cache", "content_ref", "inputs", "x"]), _VALUE)


@dataclass(frozen=True)
class Streamed:
    """A block: as it starts, the pieces that follow, and as it must lie in the log."""

    start: str
    pieces: tuple[dict[str, Any], ...]
    kept: str


_ID = "\0"
"""Where a call's id goes, which is its turn's. JSON has it escaped, so nothing that is generated holds it."""


def _cut(text: str, at: int) -> list[str]:
    return [text[:at], text[at : 2 * at], text[2 * at :]]


def _call(kind: str, raw: str, field: tuple[str, str], at: int) -> Streamed:
    head = f'"type":"{kind}","id":"{_ID}","name":"t"'
    more = f'"{field[0]}":{field[1]}'
    pieces = tuple({"type": "input_json_delta", "partial_json": piece} for piece in ["", *_cut(raw, at)])
    return Streamed(f'{{{head},"input":{{}},{more}}}', pieces, f'{{{head},"input":{raw},{more}}}')


def _thinking(text: str, signature: str, at: int) -> Streamed:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _cut(text, at)]
    deltas += [{"type": "signature_delta", "signature": piece} for piece in _cut(signature, at)]
    kept = orjson.dumps({"type": "thinking", "thinking": text, "signature": signature}).decode()
    return Streamed('{"type":"thinking","thinking":"","signature":""}', tuple(deltas), kept)


def _opaque(fields: list[tuple[str, str]]) -> Streamed:
    inside = [f'"{name}":{value}' for name, value in fields]
    whole = "{" + ", ".join(['"type":"hologram"', *inside]) + " }"
    return Streamed(whole, (), whole)


_AT = st.integers(1, 9)
_WORDS = st.text(st.characters(codec="utf-8"), max_size=30)
_OURS = st.builds(_call, st.just("tool_use"), _INPUT, _FIELD, _AT)
_OTHERS = st.one_of(
    st.builds(_call, st.sampled_from(["server_tool_use", "mcp_tool_use"]), _INPUT, _FIELD, _AT),
    st.builds(_thinking, _WORDS, _WORDS, _AT),
    st.builds(_opaque, st.lists(_FIELD, max_size=3)),
)


def _stream(turn: int, blocks: list[Streamed], stop: str) -> tuple[list[Event], bytes]:
    """The events of a reply, and its content as it must lie in the log. Ids are of this turn."""
    events: list[Event] = [start()]
    for index, block in enumerate(blocks):
        own = block.start.replace(_ID, f"tu{turn}_{index}").encode()
        events.append(b'{"type":"content_block_start","index":%d,"content_block":%b}' % (index, own))
        events += [delta(index, piece) for piece in block.pieces]
        events.append({"type": "content_block_stop", "index": index})
    kept = ",".join(block.kept.replace(_ID, f"tu{turn}_{i}") for i, block in enumerate(blocks))
    return [*events, *end(stop)], f"[{kept}]".encode()


def _built(events: list[Event]) -> Reply:
    builder = ReplyBuilder()
    for event in events:
        builder.feed(json_of(event))
    return builder.finish()


def _replied(turn: int, reply: Reply) -> e.ModelReplied:
    context = BatchContext("r", turn, f"att{turn}", b.agent(), True, lambda name: b.tool(name))
    planned = plan(reply.calls, context)
    return e.ModelReplied("r", "0", turn, f"att{turn}", reply.outcome, planned, m.Usage(), reply.body)


_TURNS = st.lists(
    st.lists(st.one_of(_OURS, _OTHERS), min_size=1, max_size=3), min_size=1, max_size=3
)  # each goes on: it asks for calls, or it is a pause


def _as_it_was(log: list[e.Event]) -> Partition:
    return b.folded(*log)


def _taken_over(log: list[e.Event]) -> Partition:
    """By a worker that reads what the first one wrote."""
    return b.folded(*(decode(b.record(event, offset, 1.0)) for offset, event in enumerate(log)))


def _said_again(log: list[e.Event]) -> Partition:
    """After a cleaning: only the snapshot is left, in small parts."""
    state = _taken_over(log)
    parts = snapshot.write(b.run_of(state), 4096)
    found = next(iter(cleaning.snapshots(state, [b.run_of(state)], "w1")))
    told = [e.RunSnapshot("r", "0", state.position, found.next_request, n + 1, len(parts), "w1", part)
            for n, part in enumerate(parts)]  # fmt: skip
    new = Partition(began=state.position, position=state.position)
    return b.folded(*(decode(b.record(event, state.position + n, 1.0)) for n, event in enumerate(told)), state=new)


WAYS: list[Callable[[list[e.Event]], Partition]] = [_as_it_was, _taken_over, _said_again]


@given(_TURNS)
def test_every_reply_goes_back_as_it_came_wherever_it_has_been(turns: list[list[Streamed]]) -> None:
    log: list[e.Event] = [b.requested()]
    kept: list[bytes] = []
    joined = b""
    for number, blocks in enumerate(turns, 1):
        ours = any('"type":"tool_use"' in block.start for block in blocks)
        events, content = _stream(number, blocks, "tool_use" if ours else "pause_turn")
        reply = _built(events)
        assert content_of(reply.body) == content
        event = _replied(number, reply)
        log.append(event)
        log += [e.ToolReturned("r", "0", call.call_id, "ok", b.result()) for call in event.plan if not call.rejected]
        joined = content if not joined else joined[:-1] + b"," + content[1:]
        if ours:
            kept.append(joined)
            joined = b""
    if joined:
        kept.append(joined)
    for way in WAYS:
        sent = request_body(b.run_of(way(log)), Offer(b.agent(), [b.tool()]))
        for content in kept:
            assert b'{"role":"assistant","content":' + content + b"}" in sent, way


@given(st.lists(st.one_of(_OURS, _OTHERS), min_size=1, max_size=3))
def test_a_reply_whose_content_lies_in_the_store_goes_back_as_it_came_too(blocks: list[Streamed]) -> None:
    events, content = _stream(1, blocks, "tool_use")
    reply = _built(events)
    reference = "sha256:" + "0" * 64 + f";{len(content)}"
    body = referring(reply.body, reference, {call.tool_use_id: call.input for call in reply.calls})
    assert content_ref_of(reply.body) is None
    assert content_ref_of(body) == reference
    assert content_of(body, {reference: content}) == content
    assert inputs_of(body) == {call.tool_use_id: call.input for call in reply.calls}


@given(st.tuples(_FIELD, _FIELD, _FIELD))
def test_fields_of_the_message_are_kept_and_never_taken_for_ours(fields: tuple[tuple[str, str], ...]) -> None:
    head, ended, beside = (f'"{name}":{value}' for name, value in fields)
    began = f'{{"type":"message_start","message":{{{head},"id":"m","type":"message","content":[],"usage":{{}}}}}}'
    last = f'{{"type":"message_delta",{beside},"delta":{{{ended},"stop_reason":"end_turn"}},"usage":{{}}}}'
    body = _built([began.encode(), last.encode(), {"type": "message_stop"}]).body
    merged = dict(fields[:1])
    for name, value in (fields[2], fields[1]):
        if value != "null" or merged.get(name, "null") == "null":
            merged[name] = value
    for name, value in merged.items():
        assert f'"{name}":{value}'.encode() in body
    assert content_ref_of(body) is None
    assert content_of(body) == b"[]"


def test_a_message_that_begins_with_a_reference_is_not_taken_for_one_of_ours() -> None:
    reference = "sha256:" + "0" * 64 + ";9"
    message = f'{{"content_ref":"{reference}","id":"m","content":[],"usage":{{}}}}'
    began = f'{{"type":"message_start","message":{message}}}'.encode()
    assert content_ref_of(_built([began, *end()]).body) is None


# --- what is mutilated is never a success ------------------------------------------------------------------------


def _mutate(events: list[Any], how: tuple[str, int, int]) -> None:
    kind, first, second = how
    if not events or not all(events):
        return
    at, other = first % len(events), second % len(events)
    event = events[at]
    match kind:
        case "drop":
            del events[at]
        case "double":
            events.insert(other, copy.deepcopy(event))
        case "swap":
            events[at], events[other] = events[other], event
        case "cut":
            del events[at + 1 :]
        case "index" if "index" in event:
            event["index"] = (second % 5) - 1
        case "kind" if event.get("type") == "content_block_delta" and isinstance(event.get("delta"), dict):
            event["delta"]["type"] = ["text_delta", "input_json_delta", "thinking_delta", "new_delta"][second % 4]
        case "forget":
            event.pop(sorted(event)[second % len(event)])
        case "null":
            event[sorted(event)[second % len(event)]] = [None, [], 7, "x"][first % 4]
        case "stop" if event.get("type") == "message_delta" and isinstance(event.get("delta"), dict):
            event["delta"]["stop_reason"] = ["end_turn", "max_tokens", None, "tool_use"][second % 4]


_HOW = st.sampled_from(["drop", "double", "swap", "cut", "index", "kind", "forget", "null", "stop"])
_MUTATIONS = st.lists(st.tuples(_HOW, st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=3)


def _pieces(events: list[Any], index: int) -> str:
    """The input of a block, by nothing but the events that name it."""
    return "".join(
        event["delta"]["partial_json"]
        for event in events
        if event.get("type") == "content_block_delta" and event.get("index") == index
    )


@given(st.lists(st.one_of(_OURS, _OTHERS), min_size=1, max_size=3), _MUTATIONS)
def test_what_was_mutilated_is_broken_or_says_what_its_events_say(
    blocks: list[Streamed], mutations: list[tuple[str, int, int]]
) -> None:
    events = [orjson.loads(json_of(event)) for event in _stream(1, blocks, "tool_use")[0]]
    for how in mutations:
        _mutate(events, how)
    builder = ReplyBuilder()
    fed: list[Any] = []
    try:
        for event in events:
            builder.feed(orjson.dumps(event))
            fed.append(event)
            if builder.stopped:
                break
        reply = builder.finish()
    except (BrokenReply, ProviderError):
        return
    starts = [event for event in fed if event["type"] == "content_block_start"]
    stops = {event["index"] for event in fed if event["type"] == "content_block_stop"}
    assert [event["index"] for event in starts] == list(range(len(starts))), "every block, in its place, once"
    assert stops >= {event["index"] for event in starts}, "every block has ended"
    ends = [e["delta"]["stop_reason"] for e in fed if e["type"] == "message_delta" and e["delta"].get("stop_reason")]
    assert len(set(ends)) <= 1
    assert (reply.outcome == "calls") == (ends[:1] == ["tool_use"] and any(
        event["content_block"]["type"] == "tool_use" for event in starts))  # fmt: skip
    uses = [event for event in starts if event["content_block"]["type"] == "tool_use"]
    for call, event in zip(reply.calls, uses, strict=reply.outcome == "calls"):
        assert (call.tool_use_id, call.tool) == (event["content_block"]["id"], event["content_block"]["name"])
        raw = _pieces(fed, event["index"]) or orjson.dumps(event["content_block"]["input"]).decode()
        if call.refused is None:
            assert b'"input":' + raw.encode() in reply.body
