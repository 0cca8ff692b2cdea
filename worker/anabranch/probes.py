"""The HTTP server of a worker: `/livez`, `/readyz`, `/startupz`, `/metrics`, in threads beside the event loop.

Responsible for: the port, and bounds on what a stranger at it can take: some threads, for some seconds. Must never: ask
the loop anything, or serve what a message says. `watch.py` opens it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from io import BufferedIOBase
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from anabranch.errors import ConfigError
from anabranch.health import Process, Verdict
from anabranch.metrics import Wsgi

THREADS: Final = 64
"""Requests at once; who comes on top is not answered."""
TIMEOUT_S: Final = 5.0
"""How long one may be silent while it says what it wants, or take to hear the answer."""
WHOLE_S: Final = 10.0
"""How long one may take in all, however little it says at a time."""
POLL_S: Final = 0.1
"""How soon the server notices that it is to end."""


class _Writer(BufferedIOBase):
    """To who asked. One that does not listen is one that has gone away: `wsgiref` shows a traceback for any other."""

    def __init__(self, to: BufferedIOBase) -> None:
        self._to = to

    def write(self, data: Any) -> int:
        try:
            return self._to.write(data)
        except TimeoutError:
            raise ConnectionAbortedError from None


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        self.wfile = _Writer(self.wfile)

    def log_message(self, format: str, *args: Any) -> None:
        """A probe every few seconds is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, host: str | None, port: int) -> None:
        self._everywhere = host is None
        self._places = threading.BoundedSemaphore(THREADS)
        self._due: dict[Any, float] = {}
        if host is None:
            self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        else:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host or "", port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of our own name that `HTTPServer` makes: a slow DNS would hold the start up."""
        if self._everywhere and self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "anabranch", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            self._due[request] = time.monotonic() + WHOLE_S
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        self._due.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called every `POLL_S`, and at each request. The thread of who is late finds that there is nobody any more."""
        now = time.monotonic()
        for request, due in list(self._due.items()):
            if now > due:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone away, or was too slow: that is its own affair."""


@asynccontextmanager
async def serving(host: str | None, port: int, process: Process, metrics: Wsgi) -> AsyncIterator[int]:
    """Answer at `port` (0: any that is free) while inside; gives the port. Raises `ConfigError` if it cannot be had."""
    try:
        server = _Server(host, port)
    except OSError as error:
        where = "all addresses" if host is None else host
        raise ConfigError(
            f"cannot listen at port {port} of {where} for health and metrics: {error.strerror or error}: choose "
            "another ANABRANCH_HTTP_PORT (0: none) or ANABRANCH_HTTP_HOST"
        ) from None
    server.set_app(_application(process, metrics))
    thread = threading.Thread(target=server.serve_forever, args=[POLL_S], name="health and metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


def _application(process: Process, metrics: Wsgi) -> Wsgi:
    probes: dict[str, Callable[[], Verdict]] = {
        "/livez": lambda: process.live(time.monotonic()),
        "/readyz": lambda: process.ready(time.monotonic()),
        "/startupz": process.started,
    }

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return _text(start_response, "405 Method Not Allowed", "GET alone")
        if path == "/metrics":
            return metrics(environ, start_response)
        if (probe := probes.get(path)) is None:
            return _text(start_response, "404 Not Found", f"here are {', '.join(probes)} and /metrics")
        verdict = probe()
        return _text(start_response, "200 OK" if verdict.good else "503 Service Unavailable", verdict.text)

    return application


def _text(start_response: Callable[..., Any], status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, ("Cache-Control", "no-store")])
    return [body]
