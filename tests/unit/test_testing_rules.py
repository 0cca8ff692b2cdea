"""The scripted model refuses what the real API refuses, with the reason, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch.testing.intake import check_headers, parse
from anabranch.testing.refusal import Refused
from anabranch.testing.rules import check_count, check_message
from anabranch.testing.signatures import Signatures

Json = Any


def call(id_: str, **more: Json) -> Json:
    return {"type": "tool_use", "id": id_, "name": "look", "input": {}, **more}


def result(id_: str, **more: Json) -> Json:
    return {"type": "tool_result", "tool_use_id": id_, "content": "found", **more}


def said(value: str) -> Json:
    return {"type": "text", "text": value}


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def tool(name: str = "look", **schema: Json) -> Json:
    return {"name": name, "description": "Looks.", "input_schema": {"type": "object", **schema}}


def request(*messages: Json, **more: Json) -> dict[str, Json]:
    return {"model": "scripted", "max_tokens": 100, "messages": list(messages) or [HELLO], **more}


HELLO = {"role": "user", "content": "hello"}
MARKED = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}


def refusal_of(body: dict[str, Json]) -> str:
    with pytest.raises(Refused) as caught:
        check_message(body, ("scripted",))
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        request(),
        request(HELLO, HELLO, assistant(said("yes")), assistant(said("no")), HELLO),
        request(HELLO, assistant(said("I look"), call("a"), call("b")), user(result("b"), result("a"), said("go"))),
        request(HELLO, assistant(call("a")), user(result("a", content=""))),
        request(HELLO, assistant(call("a")), user({"type": "tool_result", "tool_use_id": "a"})),
        request(HELLO, assistant(call("a")), user(result("a", is_error=True, content=[said("broke")]))),
        request(HELLO, assistant({"type": "server_tool_use", "id": "srvtoolu_1", "name": "s", "input": {}})),
        request(HELLO, assistant({"type": "of_tomorrow", "anything": [1, 2]}), HELLO),
        request(HELLO, {"role": "system", "content": "be brief"}, HELLO),
        request(HELLO, assistant({"type": "thinking", "thinking": "", "signature": "s"}, said("a")), HELLO),
        request(system="", tools=[tool()], tool_choice={"type": "any", "disable_parallel_tool_use": True}),
        request(tools=[tool(), {"type": "web_search_20260209", "name": "web_search"}]),
        request(tools=[tool()], tool_choice={"type": "tool", "name": "look"}, cache_control=None, stream=True),
        request(system=[MARKED, MARKED], messages=[user(MARKED, MARKED)]),
        request(thinking={"type": "adaptive"}, context_management={"edits": []}, stop_sequences=["."]),
    ],
)
def test_what_the_api_accepts_is_accepted(body: dict[str, Json]) -> None:
    check_message(body, ("scripted",))


def test_a_missing_tool_result_is_refused_as_the_api_does() -> None:
    message = refusal_of(request(HELLO, assistant(call("a"), call("b")), user(result("a"))))
    assert message.startswith(
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: b."
    )


@pytest.mark.parametrize(
    "following", [[], [HELLO], [assistant(said("x"))], [HELLO, user(result("a"))], [user(result("x"))]]
)
def test_a_call_needs_its_result_in_the_very_next_message(following: list[Json]) -> None:
    assert "tool_" in refusal_of(request(HELLO, assistant(call("a")), *following))


@pytest.mark.parametrize("blocks", [(said("so"), result("a")), (result("b"), said("so"), result("a"))])
def test_results_after_another_block_are_refused(blocks: tuple[Json, ...]) -> None:
    asked = [call(block["tool_use_id"]) for block in blocks if block["type"] == "tool_result"]
    message = refusal_of(request(HELLO, assistant(*asked), user(*blocks)))
    assert "immediately after: a." in message
    assert "must come before any other block" in message


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
ANSWERED = (assistant(call("a")), user(result("a")))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        (["hello"], "messages.0: Input should be an object"),
        ([{"role": "user"}], "messages.0.content: Field required"),
        ([{"role": "tool", "content": "x"}], "messages.0.role"),
        ([{**HELLO, "id": 1}], "messages.0.id: Extra inputs"),
        ([{"role": "user", "content": 7}], "valid string or a list"),
        ([user("hello")], "an object with a `type`"),
        ([assistant(said("hi")), HELLO], 'first message must use the "user" role'),
        ([user()], "non-empty content"),
        ([HELLO, assistant(), HELLO], "non-empty content"),
        ([user(said(""))], "messages.0.content.0: text content blocks must be non-empty"),
        ([user(said(" \n"))], "non-whitespace"),
        ([user({"type": "text"})], "text.text: Field required"),
        ([user({**said("x"), "parsed_output": None})], "text.parsed_output: Extra inputs"),
        ([user(result("a"))], "unexpected `tool_use_id` found in `tool_result` blocks: a"),
        ([HELLO, *ANSWERED, user(result("a"))], "unexpected `tool_use_id`"),
        ([HELLO, assistant(call("a")), user(result("a"), result("z"))], "unexpected `tool_use_id`"),
        ([HELLO, assistant(call("a")), user(result("a"), result("a"))], "must have a single result"),
        ([HELLO, assistant(call("a"), call("a")), user(result("a"))], "ids must be unique"),
        ([HELLO, *ANSWERED, *ANSWERED], "ids must be unique"),
        ([HELLO, assistant(call("a", input=[1])), user(result("a"))], "tool_use.input: Input should be an object"),
        ([HELLO, assistant(call("a", input="{}")), user(result("a"))], "Input should be an object"),
        ([HELLO, assistant(call("a b")), user(result("a b"))], "String should match pattern"),
        ([user(call("a"))], "`tool_use` blocks can only be in `assistant` messages"),
        ([user(THOUGHT)], "`thinking` blocks can only be in `assistant` messages"),
        ([HELLO, assistant(result("a"))], "`tool_result` blocks can only be in `user` messages"),
        ([HELLO, assistant(call("a")), user(result("a", is_error=True, content=""))], "content cannot be empty"),
        ([HELLO, assistant(call("a")), user(result("a", is_error=True, content=[]))], "content cannot be empty"),
        ([HELLO, assistant(call("a")), user(result("a", is_error="yes"))], "valid boolean"),
        ([HELLO, assistant(call("a")), user(result("a", content={"x": 1}))], "valid string or a list"),
        ([HELLO, assistant(call("a")), user(result("a", content=[said("")]))], "non-empty"),
        ([HELLO, assistant(call("a")), user(result("a", content=[call("b")]))], "expected tags"),
        ([HELLO, assistant(call("a")), user(result("a", name="look"))], "tool_result.name: Extra inputs"),
        ([HELLO, assistant(call("a")), user(result("a", content=[{**said("x"), "title": "t"}]))], "text.title: Extra"),
        ([HELLO, assistant(call("a", name="x" * 201)), user(result("a"))], "at most 200 characters"),
        ([HELLO, assistant(call("a", name="")), user(result("a"))], "at least 1 character"),
        ([HELLO, assistant({"type": "thinking", "thinking": "hm"})], "signature: Field required"),
    ],
)
def test_a_broken_conversation_is_refused(messages: list[Json], reason: str) -> None:
    assert reason in refusal_of({**request(), "messages": messages})


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"model": "other"}, "model: other"),
        ({"model": 1}, "model: Input should be a non-empty string"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"messages": "hello"}, "messages: Input should be a valid list"),
        ({"stream": 1}, "stream: Input should be a valid boolean"),
        ({"system": [{"type": "image"}]}, "system.0: Input should be a text block"),
        ({"system": [said("")]}, "system.0: text content blocks must be non-empty"),
        ({"temperature": 1.0}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 3}, "top_k"),
        ({"functions": []}, "functions: Extra inputs are not permitted"),
        ({"tools": [{"name": "a"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [tool("no spaces")]}, "String should match pattern"),
        ({"tools": [tool("x" * 129)]}, "String should match pattern"),
        ({"tools": [tool("line\n")]}, "String should match pattern"),
        ({"tools": [tool(), tool()]}, "Tool names must be unique"),
        ({"tools": [tool(type="array")]}, "input_schema.type: Input should be 'object'"),
        ({"tools": [tool(anyOf=[{}])]}, "does not support oneOf, allOf, or anyOf at the top level"),
        ({"tools": [tool(properties={"a": {"type": "text"}})]}, "JSON schema is invalid"),
        ({"tools": [{**tool(), "parameters": {}}]}, "parameters: Extra inputs"),
        ({"tools": [tool()], "tool_choice": {"type": "tool", "name": "gone"}}, "'gone' not found"),
        ({"tools": [tool()], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice: Input should be an object"),
        ({"tool_choice": {"type": "any"}}, "may only be specified while providing `tools`"),
        ({"tool_choice": {"type": "none", "disable_parallel_tool_use": True}}, "Extra inputs"),
        ({"cache_control": {"type": "forever"}}, "cache_control: Input should be"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1d"}}, "cache_control.ttl"),
    ],
)
def test_a_wrong_field_is_refused(more: dict[str, Json], reason: str) -> None:
    assert reason in refusal_of(request(**more))


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
def test_a_missing_field_is_refused(name: str) -> None:
    body = request()
    del body[name]
    assert refusal_of(body) == f"{name}: Field required"


def test_a_fifth_cache_breakpoint_is_refused_wherever_it_is() -> None:
    body = request(
        HELLO,
        assistant(call("a")),
        user(result("a", content=[MARKED], cache_control={"type": "ephemeral"})),
        tools=[{**tool(), "cache_control": {"type": "ephemeral"}}],
        system=[MARKED],
    )
    check_message(body, ("scripted",))
    message = refusal_of({**body, "cache_control": {"type": "ephemeral"}})
    assert message == "A maximum of 4 blocks with cache_control may be provided. Found 5."


def test_counting_needs_no_max_tokens_and_takes_none() -> None:
    body = request()
    del body["max_tokens"]
    check_count(body, ("scripted",))
    with pytest.raises(Refused, match="max_tokens: Extra inputs"):
        check_count(request(), ("scripted",))


def test_a_changed_thinking_block_is_refused() -> None:
    signatures = Signatures()
    signatures.issued([THOUGHT, {**THOUGHT, "thinking": "another"}])
    signatures.check([HELLO, assistant(THOUGHT), assistant({**THOUGHT, "thinking": "another"})])
    for changed in ({**THOUGHT, "signature": "forged"}, {**THOUGHT, "thinking": "edited"}):
        with pytest.raises(Refused, match=r"messages.1.content.0: Invalid `signature` in `thinking` block"):
            signatures.check([HELLO, assistant(changed)])


def test_a_thinking_block_of_another_server_is_let_through() -> None:
    signatures = Signatures(keep=1)
    signatures.issued([THOUGHT])
    signatures.check([HELLO, assistant({"type": "thinking", "thinking": "other", "signature": "own"})])
    signatures.issued([{**THOUGHT, "thinking": "new", "signature": "new"}])
    signatures.check([HELLO, assistant({**THOUGHT, "signature": "forgotten"})])


def test_a_key_and_a_version_are_asked_for() -> None:
    check_headers({"x-api-key": "k", "anthropic-version": "2023-06-01"})
    check_headers({"authorization": "Bearer k", "anthropic-version": "2023-06-01"})
    with pytest.raises(Refused, match="x-api-key") as caught:
        check_headers({"anthropic-version": "2023-06-01"})
    assert (caught.value.status, caught.value.type) == (401, "authentication_error")
    with pytest.raises(Refused, match="anthropic-version"):
        check_headers({"x-api-key": "k"})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"a": Infinity, "b": 12345678901234567890}', b"[" * 5000]
)
def test_a_body_that_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(Refused, match="not valid JSON"):
        parse(data)


def test_large_integers_keep_their_digits() -> None:
    assert parse(b'{"n": 123456789012345678901234567890}') == {"n": 123456789012345678901234567890}
