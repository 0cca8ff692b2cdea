"""A TCP proxy that can misbehave: it cuts connections, delays what passes, or lets them stand half open.

Responsible for: passing bytes both ways between its own port and the broker's, as `mode` says.
Must never: read the protocol. Called by: `fleet.py`, one proxy for each place of a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Literal

Mode = Literal["pass", "delay", "silent"]
CHUNK: Final = 64 * 1024


class Proxy:
    """Listens on `port` of this machine and connects to `target`. `silent` takes bytes, and passes none on."""

    def __init__(self, port: int, target: int, delay_s: float = 0.4) -> None:
        self.port, self._target, self._delay_s = port, target, delay_s
        self._passing = asyncio.Event()
        self._passing.set()
        self._mode: Mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        self.set("pass")
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def set(self, mode: Mode) -> None:
        """From now on, for connections that are open too."""
        self._mode = mode
        (self._passing.clear if mode == "silent" else self._passing.set)()

    def cut(self) -> None:
        """Reset every connection that is open."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()  # the broker is down, and the client may as well know
            return
        self._open |= {writer, onward}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, onward))
                both.create_task(self._pass(onward_reader, writer))
        finally:
            self._open -= {writer, onward}
            writer.transport.abort()
            onward.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._mode == "delay":
                    await asyncio.sleep(self._delay_s)
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # and so the other direction ends too
