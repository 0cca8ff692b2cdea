"""Answers that are no replies, and connections that fail: what a server of the Messages API does beside answering.

Responsible for: what `AnthropicModel` makes of each: something to try again, or an end that says why.
Must never: run a fleet or start a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Mapping
from contextlib import suppress

import pytest
from tests.support.attempt import HELLO, JSON, TWO, asked, attempt, attempts, streamed
from tests.support.stream import sse, start
from tests.support.wire import STREAM, Answer, chunked, head, http, wire

from anabranch.agent.model import anthropic_model

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
WHOLE = sse(HELLO)


# --- answers that are no replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [http(), http(b"\n\n\n"), http(b": nothing\n\n"), chunked([]), head()])
async def test_an_empty_200_is_broken(answer: bytes) -> None:
    assert "does not begin" in (await asked(answer)).transient.reason


DOCUMENT = b'{"id":"m","content":[{"type":"tool_use","id":"x","name":"t","input":{"a":1}}],"stop_reason":"tool_use"}'


NO_REPLIES = [DOCUMENT[:-20], b"", b"[]", b"{}", b'{"content":"x"}', b'{"content":[1]}', b'{"content":[{}]}', b"null",
              DOCUMENT.replace(b"1}", b"NaN}"), DOCUMENT.replace(b'"tool_use"}', b"[]}")]  # fmt: skip


@pytest.mark.parametrize("body", NO_REPLIES)
async def test_a_document_that_is_no_reply_is_broken(body: bytes) -> None:
    assert (await asked(http(body, kind=JSON))).transient.broken


async def test_a_document_that_is_an_error_is_the_error_that_it_says() -> None:
    error = b'{"type":"error","error":{"type":"%b","message":"no"}}'
    assert (await asked(http(error % b"overloaded_error", kind=JSON))).transient.slow_down
    assert (await asked(http(error % b"invalid_request_error", kind=JSON))).hopeless.code == "model_rejected"


async def test_a_page_instead_of_a_reply_is_said_to_be_one() -> None:
    found = (await asked(http(b"<html>Sign in</html>", kind="text/html; charset=utf-8"))).transient
    assert found.broken
    assert "ANTHROPIC_BASE_URL" in found.reason


def endless(sent: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x" * 100_000)
                await writer.drain()

    return answer


async def test_a_refusal_without_an_end_is_told_by_its_beginning() -> None:
    found = (await asked(endless(head(500, "text/html")))).transient
    assert (found.failure, found.reason) == ("server", "500: " + "x" * 500)


async def test_a_refusal_that_cannot_be_decoded_is_what_its_status_says() -> None:
    found = (await asked(http(b"no gzip", 400, JSON, headers={"content-encoding": "gzip"}))).hopeless
    assert (found.code, found.message[:4]) == ("model_rejected", "400:")


async def test_a_status_whose_words_are_no_text_is_worth_another_try() -> None:
    found = (await asked(http(b"{}", 500, JSON).replace(b" So\r\n", b" \xff\r\n"))).transient
    assert "not UTF-8" in found.reason


@pytest.mark.parametrize("sent", [head() + sse([start()]), head(kind=JSON)])
async def test_a_reply_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(anthropic_model, "REPLY_BYTES", 1024**2)
    found = (await asked(endless(sent))).hopeless
    assert (found.code, "longer than" in found.message) == ("model_unavailable", True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(status: int) -> None:
    async with wire(http(WHOLE)) as other, wire(http(b"", status, headers={"location": other.base_url})) as server:
        found = (await attempt(server.base_url)).hopeless
        assert other.requests == []
    assert found.code == "model_rejected"
    assert other.base_url in found.message


def error(
    status: int,
    body: bytes = b'{"type":"error","error":{"type":"x","message":"so"}}',
    headers: Mapping[str, str] | None = None,
) -> bytes:
    return http(body, status, JSON, headers=headers or {})


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 451])
async def test_a_request_that_is_refused_is_not_sent_again(status: int) -> None:
    async with wire(error(status)) as server:
        assert (await attempt(server.base_url)).hopeless.message == f"{status}: so"
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 520, 529])
async def test_a_failure_that_may_pass_is_for_us_to_try_again_and_never_for_the_sdk(status: int) -> None:
    async with wire(error(status, headers={"retry-after": "0"})) as server:
        found = (await attempt(server.base_url)).transient
        assert (len(server.requests), found.slow_down) == (1, status in (429, 529))
        assert found.retry_after == 0


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_a_proxys_page_is_told_in_a_line(status: int) -> None:
    page = b"<html>\n<h1>Bad\nGateway</h1>" + b" " * 5000 + b"</html>"
    found = (await asked(http(page, status, "text/html"))).transient
    assert not found.broken
    assert "\n" not in found.reason
    assert len(found.reason) < 600


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[1]", b'{"error":"no"}', b'{"error":{"message":5}}', b"\xff"])
async def test_an_error_that_cannot_be_read_is_still_one(body: bytes) -> None:
    assert (await asked(error(529, body))).transient.slow_down
    assert (await asked(error(400, body))).hopeless.code == "model_rejected"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3600"}, 3600),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "Sat, 21 Nov 2026 20:00:30 GMT", "date": "Sat, 21 Nov 2026 20:00:00 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 19:00:30 GMT", "date": "Sat, 21 Nov 2026 20:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e12"}, None),
        ({}, None),
    ],
)
async def test_a_retry_after_is_told_whatever_way_it_is_written(headers: dict[str, str], seconds: float | None) -> None:
    assert (await asked(error(429, headers=headers))).transient.retry_after == seconds


async def test_a_spend_cap_is_a_429_that_no_waiting_cures() -> None:
    body = (
        b'{"error":{"type":"rate_limit_error","message":"cap","details":{"error_code":"enforced_spend_limit_reached"}}}'
    )
    assert (await asked(error(429, body, {"retry-after": "5"}))).hopeless.code == "model_unavailable"


async def test_a_context_that_is_exceeded_is_said_so() -> None:
    body = b'{"error":{"type":"invalid_request_error","message":"prompt is too long: 2 tokens > 1 maximum"}}'
    assert (await asked(error(400, body))).hopeless.code == "context_exceeded"


@pytest.mark.parametrize(
    ("kind", "slow_down"), [("overloaded_error", True), ("rate_limit_error", True), ("api_error", False)]
)
async def test_an_error_in_the_stream_has_a_status_of_200_and_may_pass(kind: str, slow_down: bool) -> None:
    found = await streamed([*TWO[:-2], {"type": "error", "error": {"type": kind, "message": "busy"}}])
    assert (found.transient.slow_down, found.transient.broken) == (slow_down, False)
    assert found.transient.usage == {"input_tokens": 7, "output_tokens": 1}


async def test_an_error_in_the_stream_that_cannot_pass_ends_the_run() -> None:
    found = await streamed([start(), {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}])
    assert (found.hopeless.code, found.hopeless.usage) == ("model_rejected", {"input_tokens": 7, "output_tokens": 1})


# --- connections ----------------------------------------------------------------------------------------------------


async def hang(writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    await writer.wait_closed()


def hanging(sent: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await hang(writer)

    return answer


SILENT = {"before the headers": b"", "after the headers": head(), "inside a call": head() + sse(TWO[:6]),
          "inside an event": head() + sse(TWO[:6])[:-9],
          "inside a document": head(kind=JSON) + DOCUMENT[:9]}  # fmt: skip


@pytest.mark.parametrize("where", SILENT)
async def test_silence_is_bounded(where: str) -> None:
    found = await asked(hanging(SILENT[where]), silence_s=0.2)
    assert "said nothing for 0.2 s" in found.transient.reason
    assert found.took_s < 5


async def test_pings_are_no_sign_of_life_but_slow_events_are() -> None:
    async def pings(writer: asyncio.StreamWriter) -> None:
        writer.write(head() + sse(TWO[:6]))
        while not writer.is_closing():
            writer.write(PING + b": alive\n\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        for event in TWO:
            writer.write(sse([event]))
            await writer.drain()
            await asyncio.sleep(0.1)

    assert "said nothing" in (await asked(pings, silence_s=0.3)).transient.reason
    slow = await asked(slowly, silence_s=0.5)
    assert slow.took_s > 0.5
    assert slow.reply.calls


async def test_a_connection_is_used_again_once_its_stream_has_ended_behind_the_reply() -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(chunked([WHOLE], ends=False).replace(b"connection: close\r\n", b""))
        await writer.drain()
        await asyncio.sleep(0.02)  # behind the last event, as over a network
        writer.write(b"0\r\n\r\n")

    async with wire(late, kept=True) as server:
        first, second = await attempts(server.base_url, 2)
        assert (len(server.requests), server.connections) == (2, 1)
    assert first.reply.body == second.reply.body


async def test_an_endless_stream_behind_a_reply_holds_it_up_for_a_moment_only() -> None:
    async def chatty(writer: asyncio.StreamWriter) -> None:
        writer.write(head() + WHOLE)
        while not writer.is_closing():
            writer.write(PING)
            await writer.drain()
            await asyncio.sleep(0.02)

    found = await asked(chatty)
    assert found.reply.outcome == "final"
    assert found.took_s < 2


async def test_silence_behind_the_end_of_a_reply_costs_no_second_one() -> None:
    found = await asked(hanging(head() + sse(TWO[:-1])), silence_s=0.2)
    assert found.reply.calls[0].input == {"a": 1}


def reset(sent: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 s: the close is a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    return answer


CUT = {
    "a chunk is missing": chunked([sse(TWO[:6])], ends=False),
    "a chunk is cut": chunked([sse(TWO[:6])], ends=False)[:-40],
    "a chunk has no size": head(headers={"transfer-encoding": "chunked"}) + b"what\r\n" + sse(TWO),
    "bytes are missing": http(sse(TWO[:6]), length=99_999),
    "the gzip is cut": http(gzip.compress(sse(TWO[:6]))[:-12], headers={"content-encoding": "gzip"}),
    "the gzip is none": http(sse(TWO), headers={"content-encoding": "gzip"}),
    "the document is cut": http(DOCUMENT[:50], kind=JSON, length=len(DOCUMENT)),
    "the headers are cut": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "no word was said": b"",
    "it is no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "it was reset": reset(head() + sse(TWO[:6])),
    "it was reset at once": reset(b""),
}


@pytest.mark.parametrize("how", CUT)
async def test_a_connection_that_breaks_discards_the_reply(how: str) -> None:
    found = (await asked(CUT[how])).transient
    assert not found.slow_down
    assert found.reason


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9", "http://nobody.invalid"])
async def test_a_server_that_is_not_there_may_come_back(base_url: str) -> None:
    assert (await attempt(base_url)).transient.usage in (None, {})


async def test_a_request_has_its_body_as_it_was_and_one_key() -> None:
    async with wire(http(WHOLE)) as server:
        await attempt(server.base_url)
    ((head_sent, body),) = server.requests
    assert body == b"{}"
    assert head_sent.startswith(b"POST /v1/messages HTTP/1.1\r\n")
    assert head_sent.count(b"secret") == 1
    assert STREAM.split(";")[0].encode() in head_sent


async def test_betas_go_into_a_header_and_the_rest_of_the_body_stays_as_it_was() -> None:
    async with wire(http(WHOLE)) as server:
        await attempt(server.base_url, body=b'{"betas":["a-2025-01-01","b"],"x":1.10,"betas":["y"]}')
        await attempt(server.base_url, body=b'{"x":{"betas":["a"]}}')
    (first, body), (second, untouched) = server.requests
    assert b"anthropic-beta: a-2025-01-01,b\r\n" in first
    assert body == b'{"x":1.10,"betas":["y"]}'
    assert b"anthropic-beta" not in second
    assert untouched == b'{"x":{"betas":["a"]}}'
