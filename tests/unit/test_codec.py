"""Records to messages and back: nothing is lost on the way, and nothing but `WireError` comes out of rubbish.

Responsible for: `codec.py` and `deadletters.py`.
Must never: interpret an event.
Called by: pytest.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.bodies import MAX_DEPTH, depth_of, dump, read, read_request, refuse_messages, sender_of, whole
from anabranch.codec import Outgoing, decode, encode, header
from anabranch.deadletters import KEPT, dead_letter
from anabranch.errors import InvalidRequest, WireError
from anabranch.topics import Namespace

EVENTS: list[e.Event] = [
    b.requested(opens=b.opening(request=b.request(reply_to=m.ReplyTo(3), tenant="acme", metadata={"x": [1, None]}))),
    b.requested(opens=b.opening(limits=e.RunLimits(3, 0.5))),
    b.noted("rejected", error=m.RunError("invalid_request", "no"), reply_to=m.ReplyTo(1)),
    b.noted("moved", after=3, offset=9),
    b.calls(b.planned(after=["a", "b"], rejected="ä"), b.planned(1, delivery="at_most_once", deadline_s=1.5)),
    b.replied(usage=m.Usage(1, 2, 3, 4, 0.25), body=b"verbatim \xff"),
    replace(b.replied("stopped"), code="budget_exceeded"),
    b.failed(),
    b.discarded(),
    b.returned(body=b"\x00 verbatim"),
    b.returned(outcome="unknown"),
    b.model_handed_off(),
    b.calls_handed_off("a", "b"),
    b.lost(12),
    b.call_expired(),
    b.dispatched(),
    e.PartitionReleased(7),
    b.cancelled(),
    b.cancelled(life="0"),
    b.run_expired(),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_as_it_was_written(event: e.Event) -> None:
    found = decode(b.record(event, 5))
    if isinstance(found, e.RunRequested):
        assert found.size == len(encode(event, b.LOG, 0, "w").value or b"")
        found = replace(found, size=0)
    assert found == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_a_cloud_event_of_its_run(event: e.Event) -> None:
    sent = encode(event, b.LOG, 3, "w1")
    head = dict(sent.headers)
    assert (head["ce_specversion"], head["ce_source"], sent.partition) == (b"1.0", b"w1", 3)
    assert head["ce_id"] != dict(encode(event, b.LOG, 3, "w1").headers)["ce_id"]
    assert sent.key == (b"r" if hasattr(event, "run_id") else None)
    assert all(name.startswith("ce_") for name in head)


def test_a_type_of_a_later_version_is_told_apart_from_rubbish() -> None:
    found = decode(replace(b.record(b.run_expired(), 0), headers=[("ce_type", b"run.levitated"), ("ce_runid", b"r")]))
    assert found == e.UnknownEvent("run.levitated", "r", None, "event type 'run.levitated' is not known")


def test_headers_and_fields_of_a_later_version_are_ignored() -> None:
    read_back = b.record(b.failed(), 0)
    more = replace(
        read_back, value=b'{"code":"c","message":"m","since":"v9"}', headers=[*read_back.headers, ("x", b"y")]
    )
    assert decode(more) == replace(b.failed(), error=m.RunError("c", "m"))


def test_an_event_that_only_others_write_is_not_written() -> None:
    with pytest.raises(WireError, match="not an event that we write"):
        encode(b.unknown(), b.LOG, 0, "w")


# --- rubbish ---------------------------------------------------------------------------------------------------


def _of(event: e.Event) -> st.SearchStrategy[Any]:
    """The record of an event with some of its headers and its body replaced."""
    good = b.record(event, 0)
    values = st.none() | st.binary(max_size=12) | st.sampled_from(
        [b"", b"-1", b"1e5", b"nan", b"9" * 30, b"\xd9\xa3", b"[]", b"[null]", b"{}", b'{"input_tokens":1e999}', b"ok"]
    )  # fmt: skip
    names = st.sampled_from([name for name, _ in good.headers if name != "ce_type"])
    bodies = st.sampled_from([good.value, None, b"", b"null", b"[]", b"{}", b"\xff", b"[" * 5000]) | st.binary(
        max_size=20
    )
    return st.builds(
        lambda change, drop, body: replace(
            good, value=body, headers=[(n, change.get(n, v)) for n, v in good.headers if n not in drop]
        ),
        st.dictionaries(names, values, max_size=3),
        st.sets(names, max_size=2),
        bodies,
    )


@given(st.one_of([_of(event) for event in EVENTS]))
def test_a_record_that_does_not_fit_raises_wire_error_and_nothing_else(record: Any) -> None:
    try:
        event = decode(record)
    except WireError:
        return
    assert not isinstance(event, e.UnknownEvent)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ce_type", b"", "ce_type is missing"),
        ("ce_runid", None, "ce_runid is missing"),
        ("ce_life", b"", "ce_life is missing"),
        ("ce_turn", b"one", "ce_turn must be a whole number, not 'one'"),
        ("ce_turn", b"-1", "ce_turn must be a whole number"),
        ("ce_turn", b"1" * 19, "ce_turn must be a whole number"),
        ("ce_outcome", b"maybe", "ce_outcome must be one of calls, final, pause, stopped"),
        ("ce_plan", b"{}", "ce_plan: Input should be a valid"),
        ("ce_plan", b'[{"call_id":1}]', "ce_plan: 0"),
        ("ce_usage", b"", "ce_usage: Invalid JSON"),
    ],
)
def test_the_error_names_the_header(name: str, value: bytes | None, told: str) -> None:
    good = b.record(b.calls(), 0)
    headers: list[Any] = [(n, value if n == name else v) for n, v in good.headers]
    bad = replace(good, headers=headers)
    with pytest.raises(WireError, match=told):
        decode(bad)


@pytest.mark.parametrize("said", ["done", "OK", "", "\ufffd"])
def test_an_outcome_that_is_none_makes_the_result_an_error_that_says_so(said: str) -> None:
    """A worker in another language has the call, and whoever waits for it would wait for its deadline."""
    good = b.record(b.returned(), 0)
    headers = [(n, said.encode() if n == "ce_outcome" else v) for n, v in good.headers]
    event = decode(replace(good, headers=headers))
    assert isinstance(event, e.ToolReturned)
    assert (event.call_id, event.outcome) == (b.call_id(), "error")
    told = f"a result whose ce_outcome must be one of error, ok, timeout, unknown, not {said!r}"
    assert told in orjson.loads(event.body)["content"]


@pytest.mark.parametrize("value", [b"-1", b"inf", b"nan", b"soon", b"1e9"])
def test_a_duration_is_a_number_of_seconds(value: bytes) -> None:
    good = b.record(b.model_handed_off(), 0)
    with pytest.raises(WireError, match="ce_for must be seconds"):
        decode(replace(good, headers=[(n, value if n == "ce_for" else v) for n, v in good.headers]))


def test_a_null_header_is_none_at_all() -> None:
    assert header([("a", None), ("b", b"x")], "a") is None  # type: ignore[list-item]
    assert header([], "a") is None


def test_of_a_header_that_is_there_twice_everybody_goes_by_the_last() -> None:
    good = b.record(b.cancelled(), 0)
    twice = replace(good, headers=[("ce_type", b"run.expired"), ("ce_runid", b"another"), *good.headers])
    assert decode(twice) == decode(good)
    assert (header(twice.headers, "ce_type"), header(twice.headers, "ce_runid")) == ("run.cancelled", b.RUN)


# --- requests ----------------------------------------------------------------------------------------------------


USER = {"role": "user", "content": "x"}


def refused(body: bytes | None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_request(body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (None, "not JSON"),
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "must be a JSON object, not list"),
        (b"[" * 5000, "not JSON"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, f"nests deeper than {MAX_DEPTH} levels"),
        (b'{"input":5}', "input: Input should be a text, or a list of content blocks (got 5)"),
        (b'{"input":{}}', "input: Input should be a text, or a list of content blocks (got {})"),
        (b'{"input":[{},"x"]}', "input.1: Input should be a content block (got 'x')"),
        (b'{"messages":"x"}', "messages: Input should be a valid array (got 'x')"),
        (b'{"max_turns":"many"}', "max_turns: Input should be a valid integer (got 'many')"),
        (b'{"max_turns":0}', "max_turns"),
        (b'{"max_turns":true}', "max_turns"),
        (b'{"deadline_s":-1}', "deadline_s"),
        (b'{"deadline_s":NaN}', "not JSON"),
        (b'{"run_id":"a b"}', "run_id"),
        (b'{"run_id":"a\\n"}', "run_id"),
        (b'{"run_id":"' + b"x" * 129 + b'"}', "run_id"),
        (b'{"reply_to":{"partition":-1}}', "reply_to.partition"),
        (b'{"cancel":false}', "cancel"),
        (b'{"metadata":{"x":"' + b"y" * 5000 + b'"}}', "metadata: is larger than 4096 bytes"),
        (b'{"metadata":{"n":12345678901234567890123}}', "metadata: cannot be kept: Integer exceeds 64-bit range"),
        (b'{"max_turns":12345678901234567890123}', "max_turns: cannot be kept: Integer exceeds 64-bit range"),
        (b'{"input":[{"n":12345678901234567890123}]}', "input: cannot be kept: Integer exceeds 64-bit range"),
        (b'{"input":"\\ud800"}', "not JSON"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(body: bytes | None, told: str) -> None:
    assert told in refused(body)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("hello", "messages: must be a list of messages, not str"),
        ([], "messages: is empty"),
        (["hello"], "messages.0: must be an object with a role and a content, not str"),
        ([{"content": "x"}], "messages.0.role: is missing: it is one of 'user', 'assistant', 'system'"),
        (
            [USER, {"role": "tool", "content": "x"}],
            "messages.1.role: must be one of 'user', 'assistant', 'system' (got 'tool')",
        ),
        ([{"role": ["user"], "content": "x"}], "messages.0.role: must be one of"),
        ([{"role": "user"}], "messages.0.content: is missing: it is a text, or a list of content blocks"),
        ([{"role": "user", "content": None}], "messages.0.content: is missing"),
        ([{"role": "user", "content": 7}], "messages.0.content: must be a text, or a list of content blocks, not int"),
        ([{"role": "user", "content": {"type": "text"}}], "messages.0.content: must be"),
        ([{"role": "user", "content": ["x"]}], "messages.0.content.0: must be a content block, not str"),
    ],
)
def test_messages_that_are_no_conversation_are_refused_by_their_place(messages: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_messages(messages)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, USER],
        [{"role": "assistant", "content": ""}],
        [USER, {"role": "system", "content": "x", "of_a_later_api": 1}],
        [{"role": "user", "content": [{"type": "hologram"}, {}]}],
    ],
)
def test_what_a_provider_might_take_is_left_to_it(messages: Any) -> None:
    refuse_messages(messages)


@pytest.mark.parametrize("name", [field.name for field in fields(m.RunRequest)])
@pytest.mark.parametrize("shape", [b"%d", b"[%d]", b'{"a":%d}', b'[{"a":%d}]', b'{"partition":%d}'])
def test_a_request_with_a_huge_number_in_any_field_is_refused_or_can_be_written(name: str, shape: bytes) -> None:
    with suppress(InvalidRequest):
        dump(read_request(b'{"run_id":"r","%s":%s}' % (name.encode(), shape % 10**30)))


def test_of_blocks_and_messages_that_are_none_only_the_first_is_told() -> None:
    with pytest.raises(ValidationError) as found:
        TypeAdapter(m.RunRequest).validate_json(b'{"input":[1,2,3],"messages":[1,2,3]}')
    assert [error["loc"][-1] for error in found.value.errors()] == ["str", 0, 0]


def test_unknown_fields_of_a_request_are_ignored() -> None:
    assert read_request(b'{"agent":"a","input":"x","since":"v9"}') == m.RunRequest(agent="a", input="x")


@pytest.mark.parametrize(
    ("body", "run_id"),
    [
        (b'{"metadata": {"run_id": "inner"}, "run_id" : "r-1", "input": ' + b"[" * 5000 + b"]" * 5000 + b"}", "r-1"),
        (b'{"input": ' + b"[" * 5000 + b'"run_id": "inner"' + b"]" * 5000 + b', "run_id": "r-1"}', "r-1"),
        (b'{"run_id": "r-1", "deadline_s": 1e999}', "r-1"),
        (b'{"input": "\\"run_id\\": \\"no\\"", "run_id": 5, "x": NaN}', None),
        (b'{"run_id": "not a name", "x": NaN}', None),
        (b'{"run_id": "r-1', None),
        (b'{"run_id": "', None),
        (b'{"run_id": "r-1", "input": "cut off: ' + b'\\"' * 200_000, "r-1"),
        (b'{"input": [' + b"[]," * 40_000 + b'0], "run_id": "r-1", x', None),  # a look that would take too long
        (b"hello", None),
    ],
)
def test_the_sender_of_what_no_parser_reads_is_found_all_the_same(body: bytes, run_id: str | None) -> None:
    refused(body)
    assert sender_of(body) == (run_id, None)


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["run_id", "agent", "input", "metadata", "reply_to", "partition"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_request_raises_anything_but_invalid_request(body: bytes) -> None:
    sender_of(body)
    try:
        request = read_request(body)
    except InvalidRequest:
        return
    dump(request)


# --- bodies --------------------------------------------------------------------------------------------------------


def test_null_fields_are_left_out_of_what_machines_read_and_kept_for_people() -> None:
    error = e.RequestNoted("r", "0", 0, 0, "moved")
    said = {"run_id": "r", "life": "0", "after": 0, "request_offset": 0, "code": "moved", "lane": "interactive"}
    assert orjson.loads(dump(error)) == said
    assert orjson.loads(whole(error))["reply_to"] is None


def test_a_whole_body_holds_integers_of_any_size() -> None:
    response = m.RunResponse("r", None, None, "failed", metadata={"n": 12345678901234567890123})
    assert b'"n":12345678901234567890123' in whole(response)


def test_what_cannot_be_written_is_a_wire_error() -> None:
    for write in (dump, whole):
        with pytest.raises(WireError, match="cannot be written"):
            write(m.RunResponse("r", None, None, "failed", metadata={"x": object()}))


@pytest.mark.parametrize(("value", "depth"), [(1, 0), ([], 1), ({"a": [1]}, 2), ([[[]], {}], 3)])
def test_depth_counts_lists_and_objects(value: Any, depth: int) -> None:
    assert depth_of(value) == depth


def test_a_strict_type_is_not_bent() -> None:
    with pytest.raises(WireError, match="tries"):
        read(e.ToolResult, b'{"content":"x","tries":"1"}')


def test_a_record_has_a_size() -> None:
    assert Outgoing("t", b"k", b"vv", (("n", b"1"),)).size == 1 + 2 + 2 + 4 + 80


# --- dead letters ----------------------------------------------------------------------------------------------


def test_a_dead_letter_is_the_record_with_its_reason_and_origin() -> None:
    record = replace(b.raw_request(b"x" * 100_000, 7, key=b"k", partition=2), headers=[("h", b"1"), ("n", None)])  # type: ignore[list-item]
    letter = dead_letter(Namespace("t"), record, "why")
    assert (letter.topic, letter.key, len(letter.value or b"")) == ("t.dead.letters", b"k", KEPT)
    assert dict(letter.headers) == {"h": b"1", "n": b"", "ce_reason": b"why", "ce_origin": b"t.agent.requests/2/7"}


def test_a_dead_letter_of_headers_alone_fits_too() -> None:
    headers = [(f"h{i}", b"x" * 1000) for i in range(2000)]
    assert dead_letter(Namespace("t"), replace(b.raw_request(b"", 0), headers=headers), "why").size < 3 * KEPT
