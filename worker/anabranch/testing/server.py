"""The scripted model: an HTTP server on this machine that speaks the Messages API.

It receives, asks the script, and writes. It must never decide what a request may hold (`intake`, `rules`) or how a
reply looks (`sse`). Tests, the demo and the benchmark start it; the runtime never does.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from anabranch.errors import AnabranchError, ConfigError, DefinitionError
from anabranch.testing import sse
from anabranch.testing.caching import UNCACHED, Cache
from anabranch.testing.containers import Containers
from anabranch.testing.intake import MAX_BODY, check_betas, check_headers, parse
from anabranch.testing.quota import Meter, Metered, RateLimits, counted
from anabranch.testing.refusal import STATUS_OF, Refused, error_body, refuse, type_of
from anabranch.testing.replies import Answer, Failure, Reply, as_reply
from anabranch.testing.rules import check_count, check_message
from anabranch.testing.signatures import Signatures

Json = Any  # requests and replies, not ours
Request = dict[str, Json]
Script = Callable[[Request], Answer | Awaitable[Answer]] | Sequence[Answer]
"""A function of the request, or the replies of the valid requests in the order of their arrival."""

BACKLOG = 4096  # connections waiting for accept: a benchmark opens all of its own at once
CLOSE_S = 0.1  # how long replies under way may go on when the server closes

log = logging.getLogger(__name__)


class ScriptedModel:
    """A Messages API server that answers from a script.

    `port` 0 takes a free one. `models` are the names it knows. `headers` go with every response (say
    `anthropic-ratelimit-requests-remaining`) and `latency_s` is added to that of every reply. `keep` bounds the
    requests that are remembered. `limits` are enforced for each model, as the API does: replies say what is left, and
    what exceeds them is answered with a 429 and a `retry-after`. Prompts are cached as the API does it, from
    `cache_min_tokens` on, by the clock `now` (seconds). A prompt that is longer than its model's entry in `windows`
    (tokens) is refused; the API counts in its own tokens, this server a quarter of the bytes. With `binds_thinking` a
    thinking block is void once something before it was changed, as it is for the newest models.

    A script that raises, gives something unusable or is over is answered with a 500 `api_error` that says so.

    Raises:
        DefinitionError: the script is neither a function nor a sequence of answers.
        ConfigError: the port cannot be listened on (when it starts).
    """

    def __init__(
        self,
        script: Script,
        models: Sequence[str] = ("scripted",),
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        keep: int = 10_000,
        headers: Mapping[str, str] | None = None,
        latency_s: float = 0.0,
        limits: RateLimits | None = None,
        cache_min_tokens: int = 1024,
        windows: Mapping[str, int] | None = None,
        binds_thinking: bool = False,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._ask = _asker(script)
        self._models = (models,) if isinstance(models, str) else tuple(models)
        self._host, self._port = host, port
        self._headers, self._latency_s = dict(headers or {}), latency_s
        self._requests: deque[Request] = deque(maxlen=keep)
        self._refusals: deque[str] = deque(maxlen=keep)
        self._calls = 0
        self._meter = Meter(limits, keep)
        self._signatures = Signatures(binds=binds_thinking)
        self._cache, self._windows, self._clock = Cache(cache_min_tokens), dict(windows or {}), now or _now
        self._containers = Containers()
        self._runner: web.AppRunner | None = None

    @property
    def requests(self) -> list[Request]:
        """The bodies of `POST /v1/messages`, in order, refused ones too; the last `keep` of them."""
        return list(self._requests)

    @property
    def refusals(self) -> list[str]:
        """What was wrong with the requests that were refused. A correct client leaves it empty."""
        return list(self._refusals)

    @property
    def calls(self) -> int:
        """How many bodies of `POST /v1/messages` came in."""
        return self._calls

    @property
    def metered(self) -> list[Metered]:
        """What it counted towards its limits, in order; the last `keep` entries."""
        return list(self._meter.metered)

    @property
    def limited(self) -> int:
        """How many requests it answered with a 429 because of its limits; they are no `refusals`."""
        return self._meter.refused

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._runner is None or not self._runner.addresses:
            raise AnabranchError("the ScriptedModel is not running: use `async with` or await start()")
        return int(self._runner.addresses[0][1])

    @property
    def base_url(self) -> str:
        """What `AsyncAnthropic(base_url=...)` or `ANTHROPIC_BASE_URL` takes."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. Returns when connections are accepted."""
        if self._runner is not None:
            raise AnabranchError("the ScriptedModel runs already: make another one for a second server")
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._as_the_api])
        app.router.add_post("/v1/messages", self._on_message)
        app.router.add_post("/v1/messages/count_tokens", self._on_count)
        app.router.add_get("/v1/models", self._on_models)
        app.router.add_get("/v1/models/{id}", self._on_model)
        # Without cancellation a reply that hangs would outlive its client.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error}; use port 0 for a free one"
            ) from error
        self._runner = runner

    async def close(self) -> None:
        """Stop listening and end what is under way. Doing it twice is harmless."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # --- requests ---------------------------------------------------------------------------------

    @web.middleware
    async def _as_the_api(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Headers checked, every error in the API's shape."""
        try:
            check_headers(request.headers)
            return await handler(request)
        except Refused as refused:
            if refused.status < 500:
                self._refusals.append(str(refused))
            return self._failed(refused.status, Failure(refused.type, str(refused)))
        except orjson.JSONEncodeError as error:
            log.exception("the script of a ScriptedModel said what cannot be sent")
            message = f"the script failed: what it said cannot be written as JSON: {error}"
            return self._failed(500, Failure("api_error", message))
        except web.HTTPRequestEntityTooLarge:
            self._refusals.append("Request exceeds the maximum size")
            return self._failed(413, Failure("request_too_large", "Request exceeds the maximum size"))
        except web.HTTPException as error:
            return self._failed(error.status, Failure(type_of(error.status), error.reason))

    async def _on_message(self, http: web.Request) -> web.StreamResponse:
        data = await http.read()
        request = parse(data)
        self._calls += 1
        self._requests.append(request)
        check_betas(http.headers, request)
        check_message(request, self._models)
        self._signatures.check(request["messages"])
        self._signatures.check_binding(request)
        self._containers.check(request, time.time())
        model, estimate = request["model"], sse.tokens(len(data))
        if (most := self._windows.get(model, estimate)) < estimate:
            refuse(f"prompt is too long: {estimate} tokens > {most} maximum")
        if (refused := self._meter.refuses(model, estimate, _now())) is not None:
            return self._over_the_limit(model, *refused)
        self._meter.count(model, _now(), requests=1, input_tokens=estimate)
        reply, message = await self._answer(request, len(data))
        if self._latency_s + reply.latency_s > 0:
            await asyncio.sleep(self._latency_s + reply.latency_s)
        self._settle(reply, message, estimate, request.get("stream") is True)
        return await self._reply(http, reply, message, request)

    def _over_the_limit(self, model: str, limit: str, wait_s: float) -> web.Response:
        message = f"This request would exceed the rate limit of {limit.replace('_', ' ')} of {model}."
        headers = {**self._meter.headers(model, _now()), "retry-after": f"{math.ceil(wait_s * 1000) / 1000:g}"}
        return self._failed(429, Failure("rate_limit_error", message), headers)

    def _settle(self, reply: Reply, message: sse.Message, estimate: int, streaming: bool) -> None:
        """A reply counts as its usage says, a stream that breaks off as far as it said it, an error as no tokens."""
        used = sse.told(reply, message) if streaming else message.usage
        used_input, used_output = counted(used) if reply.status < 400 else (0, 0)
        self._meter.count(message.model, _now(), input_tokens=used_input - estimate, output_tokens=used_output)

    async def _on_count(self, http: web.Request) -> web.StreamResponse:
        data = await http.read()
        check_count(parse(data), self._models)
        return self._json(orjson.dumps({"input_tokens": sse.tokens(len(data))}))

    async def _on_models(self, http: web.Request) -> web.StreamResponse:
        ends = {"first_id": self._models[0], "last_id": self._models[-1]} if self._models else {}
        page = {"data": [_model(name) for name in self._models], "has_more": False, **ends}
        return self._json(orjson.dumps(page))

    async def _on_model(self, http: web.Request) -> web.StreamResponse:
        name = http.match_info["id"]
        if name not in self._models:
            refuse(f"model: {name}", "not_found_error")
        return self._json(orjson.dumps(_model(name)))

    async def _answer(self, request: Request, size: int) -> tuple[Reply, sse.Message]:
        try:
            answer = self._ask(request)
            reply = as_reply(await answer if inspect.isawaitable(answer) else answer)
            reply = sse.honour(reply, request)
            cached = self._cache.use(request, sse.tokens(size), self._clock()) if reply.status < 400 else UNCACHED
            message = sse.message_of(reply, request["model"], size, cached)
            container = self._containers.of(reply.container, message.content, request, time.time())
            return reply, replace(message, container=container)
        except Refused:
            raise
        except Exception as error:  # a user's script may raise anything; its client is told, and so is the log
            log.exception("the script of a ScriptedModel failed")
            raise Refused(f"the script failed: {type(error).__name__}: {error}", "api_error") from error

    # --- replies ------------------------------------------------------------------------------------

    async def _reply(
        self, http: web.Request, reply: Reply, message: sse.Message, request: Request
    ) -> web.StreamResponse:
        streaming = request.get("stream") is True
        kind = "text/event-stream; charset=utf-8" if streaming else "application/json"
        told = {**self._meter.headers(message.model, _now()), **reply.headers}
        headers = self._headers_of(kind, told)
        if reply.raw is not None:
            return web.Response(status=reply.status, body=reply.raw, headers=headers)
        if (failure := _failure(reply, streaming)) is not None:
            status = reply.status if reply.status >= 400 else STATUS_OF.get(failure.type, 500)
            return self._failed(status, failure, told)
        self._signatures.issued(message.content, request)
        if streaming:
            delivery = sse.streamed(reply, sse.events(message))
            return await _deliver(http, delivery, headers, reply.chunk_s)
        return await _deliver(http, sse.unstreamed(reply, sse.body(message)), headers, 0.0)

    def _failed(self, status: int, failure: Failure, headers: Mapping[str, str] | None = None) -> web.Response:
        sent = self._headers_of("application/json", headers or {})
        document = error_body(failure.type, failure.message, sent["request-id"], failure.details)
        return web.Response(status=status, body=document, headers=sent)

    def _json(self, document: bytes) -> web.Response:
        return web.Response(body=document, headers=self._headers_of("application/json", {}))

    def _headers_of(self, kind: str, extra: Mapping[str, str]) -> dict[str, str]:
        own = {"content-type": kind, "request-id": f"req_{uuid4().hex[:24]}"}
        return own | _lower(self._headers) | _lower(extra)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


async def _deliver(
    http: web.Request, delivery: sse.Delivery, headers: Mapping[str, str], chunk_s: float
) -> web.StreamResponse:
    """Write the pieces. What has neither a fault nor a pause goes out in one write."""
    if delivery.ending == "end" and not chunk_s:
        whole = web.Response(body=b"".join(delivery.pieces), headers=headers)
        if headers["content-type"].startswith("text/event-stream"):
            whole.enable_chunked_encoding()
        return whole
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(http)
        await _write(response, delivery.pieces, chunk_s)
    except ConnectionError:
        return response  # the client has left, and nobody is told
    if delivery.ending == "hang":
        # Cancelled when the client leaves or the server closes.
        await asyncio.get_running_loop().create_future()
    if delivery.ending == "abort" and http.transport is not None:
        http.transport.abort()
    return response


async def _write(response: web.StreamResponse, pieces: Sequence[bytes], chunk_s: float) -> None:
    if not chunk_s:
        pieces = [b"".join(pieces)]
    for index, piece in enumerate(pieces):
        if index:
            await asyncio.sleep(chunk_s)
        await response.write(piece)


def _failure(reply: Reply, streaming: bool) -> Failure | None:
    """The error that a reply is, if it is one. Without a stream there is no event to carry an `sse_error`."""
    if reply.status >= 400:
        type_ = type_of(reply.status)
        return reply.failure or Failure(type_, type_.replace("_", " "))
    if reply.sse_error is not None and not streaming:
        return Failure(*reply.sse_error)
    return None


def _model(name: str) -> dict[str, Json]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "2025-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def _asker(script: Script) -> Callable[[Request], Answer | Awaitable[Answer]]:
    """One way to ask, whatever the script is."""
    if callable(script):
        return script
    if isinstance(script, list | tuple):
        for answer in script:
            as_reply(answer)
        return _in_turn(iter(script), len(script))
    raise DefinitionError(
        f"a script is a function of the request or a list of replies, not {script!r}: put one reply in a list"
    )


def _in_turn(answers: Iterator[Answer], count: int) -> Callable[[Request], Answer]:
    def ask(request: Request) -> Answer:
        with suppress(StopIteration):
            return next(answers)
        return refuse(f"the script is over: all of its {count} replies are used up", "api_error")

    return ask
