"""A server that answers with what a test wrote, byte for byte: what no library of HTTP would send.

Responsible for: reading requests, and writing what the test gives for each.
Must never: know the Messages API, or correct anything.
Called by: integration tests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What is written before the connection is closed, or who writes it."""

STREAM = "text/event-stream; charset=utf-8"


_NONE: Final[Mapping[str, str]] = {}


def http(
    body: bytes = b"",
    status: int = 200,
    kind: str | None = STREAM,
    *,
    length: int | None = None,
    headers: Mapping[str, str] = _NONE,
) -> bytes:
    """A response with its length, or with the wrong one."""
    size = str(len(body) if length is None else length)
    return head(status, kind, headers={"content-length": size, **headers}) + body


def head(status: int = 200, kind: str | None = STREAM, *, headers: Mapping[str, str] = _NONE) -> bytes:
    """A status line and headers, and the empty line behind them."""
    named = {"connection": "close"} if kind is None else {"connection": "close", "content-type": kind}
    lines = [f"{name}: {value}" for name, value in {**named, **headers}.items()]
    return "\r\n".join([f"HTTP/1.1 {status} So", *lines, "", ""]).encode()


def chunked(pieces: Iterable[bytes], *, ends: bool = True, headers: Mapping[str, str] = _NONE) -> bytes:
    """A stream in chunks; unless it `ends`, the last one that says so is missing."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    return head(headers={"transfer-encoding": "chunked", **headers}) + chunks + (b"0\r\n\r\n" if ends else b"")


@dataclass(slots=True)
class Wire:
    """Where it listens, the requests that came (head and body), and over how many connections."""

    port: int = 0
    connections: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def wire(*answers: Answer, kept: bool = False) -> AsyncIterator[Wire]:
    """Give each request the next answer, the last one for ever. A connection is for one request, or is `kept`."""
    told = Wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                told.requests.append(await _request(reader))
                answer = answers[min(len(told.requests), len(answers)) - 1]
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(writer)
                if not kept:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return head, await reader.readexactly(int(length.group(1)) if length else 0)
