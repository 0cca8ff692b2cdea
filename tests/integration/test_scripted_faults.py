"""The real `anthropic` client cannot tell the scripted model from the API on a bad day, which a script can order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anthropic
import httpx2
import pytest
from aiohttp import web
from tests.support.talking import BOTH, BROKEN, Ask, Json, created, streamed, talking

from anabranch.testing import Reply, text, tool_use


@BOTH
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_an_error_is_the_sdks_exception(ask: Ask, status: int, kind: type[anthropic.APIStatusError]) -> None:
    async with talking([Reply.error(status, message="no", retry_after=7)]) as (client, _):
        with pytest.raises(kind) as caught:
            await ask(client)
    assert caught.value.status_code == status
    assert caught.value.api_message == "no"
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_spend_cap_is_told_from_a_rate_limit_by_its_details() -> None:
    details = {"error_code": "enforced_spend_limit_reached"}
    async with talking([Reply.error(429, details=details)]) as (client, _):
        with pytest.raises(anthropic.RateLimitError) as caught:
            await created(client)
    assert caught.value.error_code == "enforced_spend_limit_reached"


async def test_the_sdks_own_retries_work_against_it() -> None:
    async with talking([Reply.error(529, retry_after=0.01), "fine"]) as (client, server):
        message = await streamed(client.with_options(max_retries=1))
        assert server.calls == 2
    assert message.content[0].to_dict() == text("fine")


async def test_a_cut_stream_raises_nothing_and_has_no_stop_reason() -> None:
    async with talking([Reply(content=[tool_use("look", {"at": "x" * 100})], cut_after=6)]) as (client, _):
        message = await streamed(client)
    assert message.stop_reason is None
    assert message.content[0].type == "tool_use"


@BOTH
@pytest.mark.parametrize("after", [0, 3])
async def test_a_dropped_connection_is_a_transport_error(ask: Ask, after: int) -> None:
    async with talking([Reply(content=["x" * 100], drop_after=after)]) as (client, _):
        with pytest.raises(BROKEN):
            await ask(client)


@BOTH
async def test_a_hanging_reply_is_silent_and_closes_with_the_server(ask: Ask) -> None:
    asked = asyncio.Event()

    def script(request: dict[str, Json]) -> Reply:
        asked.set()
        return Reply(content=["x" * 100], hang_after=3)

    async with talking(script) as (client, server):
        hanging = asyncio.create_task(ask(client))
        await asyncio.wait_for(asked.wait(), 10)
        done, _ = await asyncio.wait([hanging], timeout=0.1)
        assert not done
        await asyncio.wait_for(server.close(), 5)
        with pytest.raises(BROKEN):
            await asyncio.wait_for(hanging, 5)


async def test_a_client_with_a_timeout_leaves_a_hanging_reply() -> None:
    async with talking([Reply(content=["x" * 100], hang_after=3), "fine"]) as (client, _):
        with pytest.raises((httpx2.TimeoutException, anthropic.APITimeoutError)):
            await streamed(client, timeout=0.2)
        assert (await streamed(client)).content[0].to_dict() == text("fine")


async def test_a_client_that_has_left_in_the_midst_of_a_reply_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server may write on before it has heard of it: here it always does."""
    write = web.StreamResponse.write

    async def write_after_it_has_left(response: web.StreamResponse, data: bytes) -> None:
        assert response._req is not None
        assert response._req.transport is not None
        response._req.transport.close()
        await write(response, data)

    monkeypatch.setattr(web.StreamResponse, "write", write_after_it_has_left)
    async with talking([Reply(content=["one two"], chunk_s=0.001)]) as (client, _):
        with pytest.raises(BROKEN):
            await streamed(client)
    assert not caplog.records


async def test_an_error_in_the_middle_of_a_stream_has_status_200() -> None:
    async with talking([Reply(content=["x" * 100], sse_error=("overloaded_error", "busy"))]) as (client, _):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await streamed(client)
    assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")


async def test_without_a_stream_that_error_is_the_response() -> None:
    async with talking([Reply(sse_error=("overloaded_error", "busy"))]) as (client, _):
        with pytest.raises(anthropic.InternalServerError) as caught:
            await created(client)
    assert caught.value.status_code == 529


async def test_a_raw_body_is_sent_verbatim() -> None:
    async with talking([Reply(raw=b"<html>", status=502), Reply(raw=b"")]) as (client, _):
        with pytest.raises(anthropic.InternalServerError) as caught:
            await created(client)
        assert caught.value.body == "<html>"
        with pytest.raises(AssertionError):
            await streamed(client)


async def test_a_paused_stream_arrives_piece_by_piece() -> None:
    async with talking([Reply(content=["x" * 100], chunk_s=0.02)]) as (client, _):
        started = time.monotonic()
        message = await streamed(client)
    assert time.monotonic() - started > 0.1
    assert message.content[0].to_dict() == text("x" * 100)


async def test_latency_passes_before_the_reply_and_replies_do_not_queue() -> None:
    async with talking(lambda request: Reply(content=["hi"], latency_s=0.3), latency_s=0.1) as (client, _):
        started = time.monotonic()
        await asyncio.gather(*(streamed(client) for _ in range(20)))
    assert 0.4 <= time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([], "the script is over"),
        (lambda request: 1 // 0, "ZeroDivisionError"),
        (lambda request: None, "a script gave None"),
        (lambda request: "half \ud800", "cannot be written as JSON"),
        (lambda request: [{"type": "tool_use"}], "has no 'name'"),
    ],
)
async def test_a_mistake_of_the_script_is_told_to_the_client(script: Any, reason: str) -> None:
    async with talking(script) as (client, server):
        with pytest.raises(anthropic.InternalServerError, match=reason) as caught:
            await created(client)
        assert server.refusals == []
    assert caught.value.type == "api_error"
