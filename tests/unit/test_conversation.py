"""The body of the next model call: what the provider insists on, and what must come back as it came.

Responsible for: `agent/prompt/conversation.py`, and `agent/reply/content.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import HINT, Offer, Offers
from anabranch.agent.reply.content import content_of, without_blanks, without_thinking, without_thoughts
from anabranch.registry import Registry
from anabranch.specs import ToolSpec

CACHED = {"type": "ephemeral"}


def body_after(*events: e.Event, tools: list[ToolSpec] | None = None, opens: Any = None, **fields: Any) -> Any:
    run = b.run_after(*events, opens=opens)
    return orjson.loads(request_body(run, Offer(b.agent(**fields), [b.tool()] if tools is None else tools)))


def results_after(*bodies: bytes, outcome: e.ResultOutcome = "ok") -> list[Any]:
    plan = [b.planned(i) for i in range(len(bodies))]
    events = [b.returned(i, outcome, body=body) for i, body in enumerate(bodies)]
    sent: list[Any] = body_after(b.calls(*plan), *events)["messages"][-1]["content"]
    return sent


# --- the request -------------------------------------------------------------------------------------------


def test_the_first_call_has_the_input_the_tools_and_the_agents_settings() -> None:
    body = body_after(system="Be brief.", max_tokens=99, options={"thinking": {"type": "adaptive"}})
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["tools"] == [{"name": "t", "description": "d", "input_schema": {"type": "object"}}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 99, True)
    assert body["thinking"] == {"type": "adaptive"}
    assert "tool_choice" not in body


def test_a_conversation_to_go_on_with_comes_first() -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    assert body_after(opens=b.opening(request=b.request(input=None, messages=messages)))["messages"] == messages


def test_the_hint_asks_for_parallel_calls_and_is_cached_with_the_system_prompt() -> None:
    assert body_after(system="Be brief.")["system"] == [
        {"type": "text", "text": f"Be brief.\n\n{HINT}", "cache_control": CACHED}
    ]


@pytest.mark.parametrize("fields", [{"parallel_hint": False}, {"parallel_tool_calls": False}, {"tools": []}])
def test_there_is_no_hint_where_nothing_could_follow_it(fields: Any) -> None:
    assert "system" not in body_after(**fields)


def test_without_tools_nothing_of_tools_is_said() -> None:
    assert not {"tools", "tool_choice"} & body_after(tools=[], tool_choice="any").keys()


# --- tool_choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "first", "second"),
    [
        (None, None, None),
        ("any", {"type": "any"}, None),
        ("t", {"type": "tool", "name": "t"}, None),
        ("none", {"type": "none"}, {"type": "none"}),
        ("nobody-has-it", None, None),
    ],
)
def test_a_forced_choice_holds_for_the_first_turn_and_a_forbidden_one_always(
    wanted: str | None, first: Any, second: Any
) -> None:
    assert body_after(tool_choice=wanted).get("tool_choice") == first
    assert body_after(b.calls(), b.returned(), tool_choice=wanted).get("tool_choice") == second


@pytest.mark.parametrize("where", ["agent", "request"])
def test_parallel_calls_are_turned_off_in_the_providers_words(where: str) -> None:
    opens = b.opening(request=b.request(parallel_tool_calls=where != "request"))
    body = body_after(opens=opens, parallel_tool_calls=where != "agent")
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    forced = body_after(opens=opens, parallel_tool_calls=where != "agent", tool_choice="any")
    assert forced["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


# --- results -------------------------------------------------------------------------------------------------


def test_all_results_go_back_in_one_user_message_in_the_order_of_the_calls() -> None:
    plan = [b.planned(0), b.planned(1, rejected="no such tool"), b.planned(2)]
    messages = body_after(b.calls(*plan), b.returned(2), b.returned(0, "error"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[-1]["content"] == [
        {"type": "tool_result", "tool_use_id": "tu10", "content": "fine", "is_error": True},
        {"type": "tool_result", "tool_use_id": "tu11", "content": "no such tool", "is_error": True},
        {"type": "tool_result", "tool_use_id": "tu12", "content": "fine", "cache_control": CACHED},
    ]


@pytest.mark.parametrize(
    "content", ["", "  \n", [], [{"type": "image", "source": {"type": "url", "url": "https://x/u.png"}}]]
)
def test_an_error_is_never_empty(content: Any) -> None:
    (sent,) = results_after(b.result(content), outcome="error")
    assert sent["is_error"]
    assert sent["content"] == "the tool failed and did not say why"


def test_the_text_of_an_errors_blocks_is_kept() -> None:
    (sent,) = results_after(b.result([b.text("a"), b.text("b")]), outcome="error")
    assert sent["content"] == "a\nb"


@pytest.mark.parametrize(
    "content", ["", "x", [b.text("x"), {"type": "image", "source": {"type": "url", "url": "https://x/u.png"}}]]
)
def test_what_the_provider_takes_is_passed_on(content: Any) -> None:
    assert results_after(b.result(content))[0]["content"] == content


@pytest.mark.parametrize(
    "content",
    [
        [{"a": 1}],
        [{"type": "text"}],
        [{"type": "text", "text": 5}],
        [{"type": "text", "text": " "}],
        [{"type": ["text"]}],
        [{"type": "image"}],
        [{"type": "tool_use", "id": "x"}],
        [b.text("x"), {"type": "levitation"}],
        [{**b.text("x"), "annotations": {"audience": ["user"]}}],
        [{**b.text("x"), "title": "Chapter 1"}],
        [{"type": "search_result", "source": "s", "content": []}],
        [b.text("x"), {"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "AAAA"}}],
    ],
)
def test_blocks_that_the_provider_would_refuse_become_text(content: Any) -> None:
    sent = results_after(b.result(content))[0]["content"]
    assert isinstance(sent, str)
    assert orjson.loads(sent) == content


def test_fields_that_say_nothing_do_not_make_a_block_another_one() -> None:
    given = [{**b.text("x"), "annotations": None, "citations": None}]
    assert results_after(b.result(given))[0]["content"] == [b.text("x")]


def test_breakpoints_in_results_are_left_out_for_there_would_soon_be_too_many() -> None:
    mark = {"cache_control": CACHED}
    found = {"type": "search_result", "source": "s", "title": "t", "content": [{**b.text("y"), **mark}], **mark}
    letter = {"type": "document", "source": {"type": "content", "content": [{**b.text("z"), **mark}]}, **mark}
    sent = results_after(*[b.result([{**b.text("x"), **mark}, found, letter])] * 5)
    assert [block["content"] for block in sent] == [
        [
            b.text("x"),
            {"type": "search_result", "source": "s", "title": "t", "content": [b.text("y")]},
            {"type": "document", "source": {"type": "content", "content": [b.text("z")]}},
        ]
    ] * 5
    assert orjson.dumps(sent).count(b"cache_control") == 1  # ours


def test_a_block_with_a_number_that_cannot_be_written_becomes_text() -> None:
    body = b'{"content":[{"type":"text","text":"x","n":12345678901234567890123}]}'
    assert "12345678901234567890123" in results_after(body)[0]["content"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "Invalid JSON"),
        (b"null", "Input should be an object"),
        (b"{}", "it must have one of content, content_ref and content_sealed"),
        (b'{"content":5}', "content: Input should be a text, or a list of content blocks (got 5)"),
        (b'{"content":["a"]}', "content.0: Input should be a content block (got 'a')"),
        (b'{"content":"x","started_at":"noon"}', "started_at: Input should be a valid number (got 'noon')"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 3000, "Invalid JSON"),
    ],
)
def test_a_result_that_cannot_be_read_is_an_error_of_its_call_alone(body: bytes, why: str) -> None:
    bad, good = results_after(body, b.result())
    assert bad["is_error"]
    assert f"the tool's worker sent a result that cannot be read: {why}" in bad["content"]
    assert good["content"] == "fine"


# --- replies ---------------------------------------------------------------------------------------------------


def test_paused_turns_go_back_as_one_assistant_message() -> None:
    def pause(turn: int, *content: Any) -> e.Event:
        return b.replied("pause", turn, body=b.message(content, "pause_turn"))

    messages = body_after(pause(1, b.text("a")), pause(2), pause(3, b.text("c")))["messages"]
    assert messages[1:] == [{"role": "assistant", "content": [b.text("a"), b.text("c")]}]


def test_a_pause_that_ends_in_calls_is_one_turn_with_them() -> None:
    paused = b.replied("pause", 1, body=b.message([b.text("a")], "pause_turn"))
    messages = body_after(paused, b.calls(turn=2), b.returned(turn=2))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [block["type"] for block in messages[1]["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize("blank", ["", "\n\n", " \t\r\f"])
def test_a_text_that_says_nothing_does_not_go_back(blank: str) -> None:
    said = b.message([b.text(blank), b.text("so"), b.tool_use("tu10")], "tool_use")
    messages = body_after(replace(b.calls(b.planned()), body=said), b.returned())["messages"]
    assert messages[1]["content"] == [b.text("so"), b.tool_use("tu10")]


def test_a_pause_that_says_nothing_is_no_message() -> None:
    paused = b.replied("pause", 1, body=b.message([b.text(" ")], "pause_turn"))
    assert [message["role"] for message in body_after(paused)["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b'[{"type": "text" , "text" : ""}, {"text":"a","type":"text" }]', b'[{"text":"a","type":"text" }]'),
        (b'[{"text":"\\u0020\\n","type":"text"}]', b"[]"),
        (b'[{"type":"text","text":"\\u0041"}, {"n":1.0}]', b'[{"type":"text","text":"\\u0041"}, {"n":1.0}]'),
        (b'[{"type":"tool_use","input":{"text":""}} ]', b'[{"type":"tool_use","input":{"text":""}} ]'),
        (b'[{"type":"text","text":"\\"text\\":\\"\\""} ]', b'[{"type":"text","text":"\\"text\\":\\"\\""} ]'),
    ],
)
def test_nothing_but_blank_texts_is_left_out(content: bytes, left: bytes) -> None:
    assert without_blanks(content) == left


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"m","usage":{},"content":[{"n":1.10}]}',
        b'{"type":"message","usage":{},"content":[{"n":1.10}]}',
        b'{"content":[{"n":1.10}],"id":"m","usage":{"x":1.0}}',
        b'{"id":"m","stop_details":{"a":1,"content":[1]},"content":[{"n":1.10}]}',
        b'{"id":"m","stop_sequence":"\\",\\"content\\":[","content":[{"n":1.10}]}',
    ],
)
def test_the_content_of_a_reply_is_cut_out_whatever_stands_around_it(body: bytes) -> None:
    assert content_of(body) == b'[{"n":1.10}]'


# --- what a reply may not use again --------------------------------------------------------------------------


def test_the_ids_of_all_calls_that_the_conversation_holds_are_known() -> None:
    registry = Registry()
    registry.add([b.tool()], [b.agent()])
    told = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [b.tool_use("given"), b.text("x")]}]
    opens = b.opening(request=b.request(input=None, messages=told))
    run = b.run_after(b.calls(), b.returned(), b.calls(turn=2), b.returned(turn=2), opens=opens)
    assert to_request(run, Offers(registry)).context.used == {"given", "tu10", "tu20"}


# --- more than one model ---------------------------------------------------------------------------------------


def thought_by(model: str | None, index: int, outcome: e.ReplyOutcome = "calls", content: Any = None) -> e.Event:
    """A turn of a model that thinks and makes a call; the bytes of its input are not how we would write them."""
    turn, call = index + 1, b.planned(index, turn=index + 1)
    content = content or [
        b'{"type": "thinking","thinking":"hm \\u00e9 [{,]}","signature":"s%d"}' % turn,
        b'{"type":"redacted_thinking","data":"x"}',
        b'{"type":"text","text":"thinking aloud: \\"}], {\\u20ac"}',
        b'{"type":"tool_use","id":"tu%d%d","name":"t","input":{"z" : 1.10,"a":"\\u00e9"}}' % (turn, index),
    ]
    body = b'{"id":"msg","role":"assistant","content":[' + b",".join(content) + b"]}"
    plan = [call] if outcome == "calls" else []
    return replace(b.replied(outcome, turn, plan=plan, body=body), model=model, attempt=f"a{turn}")


def sent_to(model: str | None, *events: e.Event) -> bytes:
    run = b.run_after(*events)
    return request_body(run, Offer(b.agent(fallback="other"), [b.tool()]), model=model)


def test_a_model_gets_no_thinking_of_another_one() -> None:
    events = [thought_by(None, 0), b.returned(0), thought_by("other", 1), b.returned(1, turn=2)]
    own, other = sent_to(None, *events), sent_to("other", *events)
    for body, kept, dropped in ((own, b"s1", b"s2"), (other, b"s2", b"s1")):
        assert kept in body
        assert dropped not in body
    assert orjson.loads(own)["model"] == "m"
    assert orjson.loads(other)["model"] == "other"
    types = [
        [block["type"] for block in message["content"]] for message in orjson.loads(other)["messages"][1::2]
    ]  # fmt: skip
    assert types == [["text", "tool_use"], ["thinking", "redacted_thinking", "text", "tool_use"]]


def test_all_else_stays_the_bytes_that_it_was() -> None:
    events = [thought_by(None, 0), b.returned(0), thought_by("other", 1), b.returned(1, turn=2)]
    for body in (sent_to(None, *events), sent_to("other", *events)):
        assert body.count(b'"input":{"z" : 1.10,"a":"\\u00e9"}') == 2
        assert body.count(b'{"type":"text","text":"thinking aloud: \\"}], {\\u20ac"}') == 2
    assert b'{"type": "thinking","thinking":"hm \\u00e9 [{,]}","signature":"s1"}' in sent_to(None, *events)


def test_what_a_model_was_sent_of_earlier_turns_never_changes() -> None:
    """Its thinking is void otherwise: it is bound to all that stood before it."""
    turns = [
        (thought_by(None, 0), b.returned(0)), (thought_by("other", 1), b.returned(1, turn=2)),
        (thought_by(None, 2), b.returned(2, turn=3)), (thought_by("other", 3), b.returned(3, turn=4)),
    ]  # fmt: skip
    for model in (None, "other"):
        before: list[Any] = []
        for count in range(1, len(turns) + 1):
            events = [event for turn in turns[:count] for event in turn]
            messages = orjson.loads(sent_to(model, *events))["messages"]
            for message in messages:  # where the cache ends is no part of what is said
                for block in message["content"] if isinstance(message["content"], list) else []:
                    block.pop("cache_control", None)
            assert messages[: len(before)] == before
            before = messages


def test_of_a_pause_that_was_all_thinking_another_model_gets_nothing() -> None:
    paused = thought_by(None, 0, "pause", [b'{"type":"thinking","thinking":"hm","signature":"s1"}'])
    assert [message["role"] for message in orjson.loads(sent_to("other", paused))["messages"]] == ["user"]
    assert [message["role"] for message in orjson.loads(sent_to(None, paused))["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"[]", b"[]"),
        (b'[{"type":"thinking"}]', b"[]"),
        (b'[ {"type":"text","text":"thinking"} , {"type":"thinking"} ]', b'[{"type":"text","text":"thinking"}]'),
        (b'["thinking",{"type":["thinking"]}]', b'["thinking",{"type":["thinking"]}]'),
    ],
)
def test_only_blocks_that_think_are_left_out(content: bytes, left: bytes) -> None:
    assert without_thinking(content) == left


def test_what_was_thought_can_be_left_out_and_all_else_stays_the_bytes_that_it_is() -> None:
    thought = '{"type":"thinking","thinking":"hm [1] }","signature":"s"}'
    use = '{"type":"tool_use","id":"tu10","name":"t","input":{"n": 1.10, "b":12345678901234567890123}}'
    raw = f'{{"type":"message","stop_reason":"tool_use","usage":{{}},"content":[{thought}, {use}]}}'.encode()
    paused = b.replied("pause", turn=2, body=b.message([{"type": "redacted_thinking", "data": "x"}], "pause_turn"))
    run = b.run_after(b.calls(body=raw), b.returned(), paused)
    body = request_body(run, Offer(b.agent(), [b.tool()]))
    bare = without_thoughts(body)
    assert use.encode() in bare
    assert b"thinking" not in bare
    assert [message["role"] for message in orjson.loads(bare)["messages"]] == ["user", "assistant", "user"]
    assert without_thoughts(bare) == bare


# --- odd messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [["text"], {}, None, 7])
def test_a_block_with_an_odd_type_is_passed_on_for_the_provider_to_refuse(kind: Any) -> None:
    messages = [{"role": "user", "content": [{"type": kind, "text": "x" * 5000}]}]
    assert body_after(opens=b.opening(request=b.request(input=None, messages=messages)))["messages"] == messages
