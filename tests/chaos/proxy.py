"""A TCP proxy that can misbehave: it cuts connections, delays what passes, or lets them stand half open.

Responsible for: passing bytes both ways between its own port and the broker's, as its mode says.
Must never: read more of the protocol than whether a request writes records.
Called by: `fleet.py`, one proxy for each place of a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Literal

Mode = Literal["pass", "delay", "mute", "silent"]
CHUNK: Final = 64 * 1024
API_KEY, PRODUCE = slice(4, 6), b"\0\0"
"""A request begins with its length and with what it asks for."""


class Proxy:
    """Has `port` of this machine from the first, listens there after `start`, and connects to `target`.

    `silent` takes bytes, and passes none on; `mute` does so with what would write records, as if that connection alone
    were half open.
    """

    def __init__(self, port: int, target: int, delay_s: float = 0.4) -> None:
        self.port, self._target, self._delay_s = port, target, delay_s
        self._passing = asyncio.Event()
        self._passing.set()
        self._mode: Mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))  # nobody else gets it while the broker starts

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    def give_back(self) -> None:
        """Of a proxy that was never started."""
        self._socket.close()

    async def close(self) -> None:
        self.set("pass")
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def set(self, mode: Mode) -> None:
        """From now on, for connections that are open too."""
        self._mode = mode
        (self._passing.clear if mode in ("mute", "silent") else self._passing.set)()

    def mend(self) -> None:
        """As new: what was held back is lost, for who sent it has died."""
        if self._mode != "pass":
            self.cut()
            self.set("pass")

    def cut(self) -> None:
        """Reset every connection that is open. What was held back of it is lost."""
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
                both.create_task(self._pass(reader, onward, towards_broker=True))
                both.create_task(self._pass(onward_reader, writer, towards_broker=False))
        finally:
            self._open -= {writer, onward}
            writer.transport.abort()
            onward.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards_broker: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._mode == "delay":
                    await asyncio.sleep(self._delay_s)
                if self._mode != "mute" or (towards_broker and data[API_KEY] == PRODUCE):
                    await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # and so the other direction ends too
