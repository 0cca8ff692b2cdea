"""The real `anthropic` client cannot tell the scripted model from the API on a good day."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
from pathlib import Path

import aiohttp
import anthropic
import pytest
from tests.support.talking import ASK, BOTH, HELLO, Ask, Json, created, streamed, talking

from anabranch.errors import AnabranchError, ConfigError
from anabranch.testing import (
    Reply,
    ScriptedModel,
    last_results,
    result_text,
    text,
    thinking,
    tool_use,
    turn_of,
)


@BOTH
async def test_a_reply_arrives_as_it_was_scripted(ask: Ask) -> None:
    content = [
        thinking("let me see " * 20),
        text("Grüße, 世界 " * 30),
        tool_use("look", {"at": ["é", 1.5, None]}, "call_1"),
    ]
    async with talking([Reply(content=content, usage={"input_tokens": 12, "output_tokens": 34})]) as (client, _):
        message = await ask(client)
    assert [block.to_dict() for block in message.content] == content
    assert (message.role, message.model, message.stop_reason) == ("assistant", "scripted", "tool_use")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (12, 34)
    assert message.id.startswith("msg_")


async def test_the_raw_stream_has_the_events_of_the_api() -> None:
    async with talking([["so", tool_use("look", {"at": 1})]]) as (client, _):
        stream = await client.messages.create(**ASK, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == 2


@BOTH
async def test_a_whole_conversation_with_parallel_calls_is_held(ask: Ask) -> None:
    def script(request: dict[str, Json]) -> Json:
        if turn_of(request) == 1:
            return [thinking("two at once"), tool_use("look", {"at": 1}), tool_use("look", {"at": 2})]
        return "+".join(sorted(map(result_text, last_results(request).values())))

    async with talking(script) as (client, server):
        first = await ask(client)
        calls = [block for block in first.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": c.id, "content": f"seen {c.input['at']}"} for c in calls]
        messages = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        last = await ask(client, messages=messages)
        with pytest.raises(anthropic.BadRequestError, match="without `tool_result` blocks immediately after"):
            await ask(client, messages=[*messages[:2], {"role": "user", "content": results[:1]}])
        with pytest.raises(anthropic.BadRequestError, match="must come before any other block"):
            await ask(client, messages=[*messages[:2], {"role": "user", "content": [text("so"), *results]}])
        forged = [{**first.content[0].to_dict(), "signature": "forged"}, *first.content[1:]]
        with pytest.raises(anthropic.BadRequestError, match="Invalid `signature` in `thinking` block"):
            await ask(client, messages=[messages[0], {"role": "assistant", "content": forged}, messages[2]])
        assert last.content[0].text == "seen 1+seen 2"
        assert server.calls == len(server.requests) == 5
        assert len(server.refusals) == 3


async def test_an_async_script_answers() -> None:
    async def script(request: dict[str, Json]) -> str:
        await asyncio.sleep(0)
        return request["messages"][0]["content"].upper()  # type: ignore[no-any-return]

    async with talking(script) as (client, _):
        assert (await created(client)).content[0].to_dict() == text("HELLO")


async def test_an_unknown_model_is_the_apis_400() -> None:
    async with talking(["hi"]) as (client, _):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await created(client, model="other")
    error = caught.value
    assert (error.type, error.api_message) == ("invalid_request_error", "model: other")
    assert error.request_id is not None
    assert error.body == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "model: other"},
        "request_id": error.request_id,
    }


async def test_a_removed_parameter_is_refused() -> None:
    async with talking(["hi"]) as (client, _):
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            await created(client, extra_body={"temperature": 1.0})


async def test_two_hundred_streams_at_once_are_served_to_the_aiohttp_client_too() -> None:
    async with (
        ScriptedModel(lambda request: ["hi", tool_use("look", {})]) as server,
        anthropic.AsyncAnthropic(
            api_key="test",
            base_url=server.base_url,
            max_retries=0,
            http_client=anthropic.DefaultAioHttpClient(),
        ) as client,
    ):
        replies = await asyncio.gather(*(streamed(client) for _ in range(200)))
    assert len({reply.content[1].id for reply in replies if reply.content[1].type == "tool_use"}) == 200


async def test_headers_of_server_and_reply_reach_the_client() -> None:
    left = {"anthropic-ratelimit-requests-remaining": "9"}
    async with talking([Reply(content=["hi"], headers={"x-own": "1"})], headers=left) as (client, _):
        response = await client.messages.with_raw_response.create(**ASK)
    assert response.headers["anthropic-ratelimit-requests-remaining"] == "9"
    assert response.headers["x-own"] == "1"
    assert response.headers["request-id"].startswith("req_")


async def test_tokens_are_counted_and_models_listed() -> None:
    async with talking([], models=("one", "two")) as (client, server):
        count = await client.messages.count_tokens(model="one", messages=HELLO)
        assert count.input_tokens > 0
        assert [model.id async for model in client.models.list()] == ["one", "two"]
        assert (await client.models.retrieve("two")).id == "two"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("three")
        assert server.calls == 0


async def test_what_is_no_request_of_the_api_gets_its_errors() -> None:
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    async with ScriptedModel(["hi"]) as server, aiohttp.ClientSession(server.base_url) as http:
        for method, path, sent, data, status, type_ in (
            ("POST", "/v1/messages", {}, b"{}", 401, "authentication_error"),
            ("POST", "/v1/messages", {"x-api-key": "k"}, b"{}", 400, "invalid_request_error"),
            ("POST", "/v1/messages", headers, b"{", 400, "invalid_request_error"),
            ("POST", "/v1/messages", headers, io.BytesIO(b" " * (32 * 1024 * 1024 + 1)), 413, "request_too_large"),
            ("GET", "/v1/messages", headers, None, 405, "invalid_request_error"),
            ("POST", "/v1/complete", headers, b"{}", 404, "not_found_error"),
        ):
            async with http.request(method, path, headers=sent, data=data) as response:
                body = await response.json()
                assert (response.status, body["error"]["type"]) == (status, type_)
                assert body["request_id"] == response.headers["request-id"]
        assert server.requests == []


async def test_only_the_last_requests_are_kept() -> None:
    async with talking(lambda request: "hi", keep=2) as (client, server):
        for said in ("one", "two", "three"):
            await created(client, messages=[{"role": "user", "content": said}])
        assert [request["messages"][0]["content"] for request in server.requests] == ["two", "three"]
        assert server.calls == 3


async def test_a_port_in_use_is_named() -> None:
    async with ScriptedModel([]) as first:
        with pytest.raises(ConfigError, match=str(first.port)):
            await ScriptedModel([], port=first.port).start()
    with pytest.raises(AnabranchError, match="not running"):
        _ = first.base_url


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_a_script_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    script, port_file = tmp_path / "served.py", tmp_path / "port"
    script.write_text("def model(request):\n    return 'served'\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "anabranch.testing", str(script), "--port-file", str(port_file),
        "--model", "one", "--model", "two", "--latency", "0.01",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line == f"listening on http://127.0.0.1:{port_file.read_text().strip()}\n"
        base_url = line.removeprefix("listening on ").strip()
        async with anthropic.AsyncAnthropic(api_key="test", base_url=base_url, max_retries=0) as client:
            assert (await created(client, model="two")).content[0].to_dict() == text("served")
            process.send_signal(number)
            _, errors = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, errors) == (0, b"")
    assert list(tmp_path.glob("*port*")) == []


async def test_the_command_explains_what_is_wrong() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "anabranch.testing", "gone.py", stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert errors.decode() == "Error: there is no file 'gone.py': name an existing script\n"


async def test_what_a_breakpoint_wrote_is_read_for_five_minutes() -> None:
    clock = [0.0]
    system = [{"type": "text", "text": "a long prompt " * 600, "cache_control": {"type": "ephemeral"}}]
    async with talking(lambda _: "hi", now=lambda: clock[0]) as (client, _):
        found = []
        for clock[0] in (0.0, 299.0, 598.0, 898.0):  # a read keeps it, the last one comes too late
            usage = (await created(client, system=system)).usage
            found.append((usage.cache_read_input_tokens, usage.cache_creation_input_tokens))
            assert usage.cache_creation is not None
            assert usage.cache_creation.ephemeral_5m_input_tokens == usage.cache_creation_input_tokens
    written = found[0][1]
    assert written is not None
    assert written > 2000
    assert found == [(0, written), (written, 0), (written, 0), (0, written)]


async def test_a_prompt_beyond_the_window_is_refused_in_the_words_of_the_api() -> None:
    async with talking(lambda _: "hi", windows={"scripted": 1000}) as (client, server):
        assert (await created(client)).content
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1000 maximum"):
            await created(client, system="long " * 1000)
    assert len(server.refusals) == 1
