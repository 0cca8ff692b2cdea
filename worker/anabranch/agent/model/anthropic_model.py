"""One call of the model, and what its failure means. The only import of `anthropic`.

The SDK does transport, authentication, headers and errors. It does not retry (we do, under the run's deadline, in
`thinking.py`), and it does not parse the stream: its repairs would turn a broken reply into a plausible
one, so `agent/reply/reply.py` reads the raw events. Called by `Thinker`, and by nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import anthropic
import orjson
from anthropic._models import FinalRequestOptions

from anabranch.agent.model.allowance import left_of, retry_after_of
from anabranch.agent.model.seam import Failure, Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.reply.content import without_thoughts
from anabranch.agent.reply.reply import BrokenReply, ProviderError, Reply, ReplyBuilder, reply_of
from anabranch.agent.reply.sse import Event, Events
from anabranch.config import AnthropicSettings, is_http, without_secrets
from anabranch.errors import ConfigError
from anabranch.tasks import Silence

log = logging.getLogger(__name__)

ADDRESS: Final = "https://api.anthropic.com"
CONNECT_S: Final = 10.0
COUNT_S: Final = 5.0
"""How long the end of a reply that is broken already is waited for: it says what the reply has cost."""
END_S: Final = 0.1
"""How long the end of a stream is waited for after that of its reply: unless it was read, its connection cannot be used
again."""
ERROR_BYTES: Final = 1024**2
"""How much of a refusal is read: what it says lies in its first words."""
REPLY_BYTES: Final = 128 * 1024**2
"""How much of a reply is read: several times what the longest takes as a stream of single tokens."""
_TRANSIENT: Final = frozenset({408, 409, 429})
_TRANSIENT_KINDS: Final = frozenset({"overloaded_error", "api_error", "rate_limit_error", "timeout_error"})
_KINDS_OF_STATUS: Final[Mapping[int, Failure]] = {
    408: "conflict",
    409: "conflict",
    429: "rate_limit",
    529: "overload",
}
_KINDS_OF_EVENTS: Final[Mapping[str, Failure]] = {"rate_limit_error": "rate_limit", "overloaded_error": "overload"}
_SLOW_DOWN: Final[frozenset[Failure]] = frozenset({"rate_limit", "overload"})
_NO_CURE: Final = "enforced_spend_limit_reached"


class AnthropicModel:
    """The Messages API, streamed."""

    def __init__(self, client: anthropic.AsyncAnthropic, silence_s: float) -> None:
        self._client, self._silence_s = client, silence_s
        self._requests = Requests(client)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: AnthropicSettings, silence_s: float) -> AsyncIterator[AnthropicModel]:
        """Raises `ConfigError` if there is no key, or an address that is none."""
        if not settings.api_key and not settings.auth_token:
            raise ConfigError("no key for the model: set ANTHROPIC_API_KEY (tool workers need none)")
        if settings.base_url is not None and not is_http(settings.base_url):
            raise ConfigError(
                f"ANTHROPIC_BASE_URL={without_secrets(settings.base_url)} is no address of a model: it must be http:// "
                "or https:// and a host, for example https://gateway.example.com; leave it out for the provider's own"
            )
        client = anthropic.AsyncAnthropic(
            api_key=settings.api_key,
            auth_token=settings.auth_token,
            base_url=settings.base_url
            or ADDRESS,  # else the SDK takes a variable that is set to nothing for an address
            max_retries=0,
            timeout=anthropic.Timeout(None, connect=CONNECT_S),
            http_client=anthropic.DefaultAioHttpClient(limits=anthropic.DEFAULT_CONNECTION_LIMITS),
            open_telemetry=False,  # each attempt has a span of ours, with the same attributes
        )
        async with client:
            yield cls(client, silence_s)

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        builder = ReplyBuilder()
        try:
            return await self._reply(body, builder, on_event, on_left)
        except Exception as error:  # noqa: BLE001 - what is none of the provider's is raised as it is
            if isinstance(error, anthropic.APIStatusError):
                _tell(_headers_of(error.response), on_left)
            raise self._meant(error, builder.usage) from None

    async def _reply(self, body: bytes, builder: ReplyBuilder, on_event: OnEvent, on_left: OnLeft) -> Reply:
        try:
            async with Silence(self._silence_s) as silence:
                response = await self._asked_again(body)
                async with aclosing(response):
                    headers = _headers_of(response)
                    _tell(headers, on_left)
                    if (document := await _document(response, headers.get("content-type", ""))) is not None:
                        return reply_of(document)
                    await self._read(response, builder, on_event, silence)
        except Exception as error:
            if not ((builder.whole or builder.stopped) and _broke_off(error)):  # else all was said before
                raise
        return builder.finish()

    async def _asked_again(self, body: bytes) -> Any:
        """Newer models refuse what they thought once something before it has changed, such as a tool's description by a
        deploy. Without it the conversation goes on, and the refusal has cost nothing.
        """
        try:
            return await self._asked(body)
        except anthropic.BadRequestError as error:
            if _UNBOUND not in _message(error):
                raise
            log.warning("the model takes back nothing of what it has thought, for something before it was changed")
            return await self._asked(without_thoughts(body))

    async def _asked(self, body: bytes) -> Any:
        """The response, of which only the head has been read. Raises what the SDK would."""
        client = self._client
        response = await client._client.send(
            self._requests.of(body),
            stream=True,
            follow_redirects=False,  # the key and the money are for this address alone
        )
        if response.is_success:
            return response
        async with aclosing(response):
            response._content = await _refusal(response)
        raise client._make_status_error_from_response(response)

    async def _read(self, response: Any, builder: ReplyBuilder, on_event: OnEvent, silence: Silence) -> None:
        events, found, size = Events(), iter(list[Event]()), 0
        async with aclosing(response.aiter_bytes()) as pieces:
            try:
                while not builder.stopped and (piece := await anext(pieces, None)) is not None:
                    if (size := size + len(piece)) > REPLY_BYTES:
                        break
                    found = events.feed(piece)
                    _take(found, builder, on_event, silence)
            except BrokenReply:
                silence.ignore()
                await _count(events, found, pieces, builder)
                raise
            _refuse_endless(size, builder.usage)
            silence.within(END_S)
            async for _ in pieces:
                pass

    def _meant(self, error: Exception, usage: dict[str, Any]) -> Exception:
        """What a failure is to the run."""
        match error:
            case BrokenReply():
                return _from_broken(error)
            case ProviderError():
                return _from_event(error)
            case anthropic.APIStatusError():
                return _from_status(error)
            case TimeoutError():
                return Transient(f"the model said nothing for {self._silence_s:g} s", usage=usage, kind="silence")
            case UnicodeError():  # of the stream, or of the words behind a status
                return Transient(f"the answer is not UTF-8: {error}", broken=True, usage=usage)
            case _ if _broke_off(error):
                return Transient(f"the connection broke: {error!r}", usage=usage, kind="transport")
            case _:
                return error


class Requests:
    """What is sent to the provider: one request of the SDK's making for each set of betas, and of those that follow the
    same with another content. To make each anew, and to see it through, took a third of the CPU of a call.
    """

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client
        self._address = f"{str(client.base_url).rstrip('/')}/v1/messages"
        self._made: dict[str, Any] = {}

    def of(self, body: bytes) -> Any:
        """An `httpx2.Request`."""
        content, betas = _betas_apart(body)
        if (made := self._made.get(betas)) is None:
            made = self._made[betas] = self._first(betas)
        extensions = dict(made.extensions)
        return type(made)(made.method, made.url, headers=made.headers, content=content, extensions=extensions)

    def _first(self, betas: str) -> Any:
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if betas:
            headers["anthropic-beta"] = betas
        options = FinalRequestOptions.construct(method="post", url=self._address, content=b"", headers=headers)
        made = self._client._build_request(options)
        for name in "content-length", "cookie":  # the cookies are aiohttp's to keep
            made.headers.pop(name, None)
        return made


_UNBOUND: Final = "bound to a different conversation"
_TRANSPORT: Final = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "anyio", "h11"})


def _broke_off(error: Exception) -> bool:
    """Whether it is the connection that failed."""
    if isinstance(error, anthropic.APIStatusError):
        return False
    known = isinstance(error, anthropic.APIError | OSError | EOFError)
    return known or type(error).__module__.split(".")[0] in _TRANSPORT


def _headers_of(response: Any) -> dict[str, str]:
    """By their names in small letters: to ask the response itself takes a look at all of them each time."""
    return dict(response.headers.items())


async def _document(response: Any, kind: str) -> bytes | None:
    """What came instead of a stream: the reply as one document. Raises `BrokenReply` for a page."""
    if "html" in kind:
        raise BrokenReply(f"the answer is a page, of type {kind}, and no reply: is ANTHROPIC_BASE_URL right?")
    if "json" not in kind:
        return None
    document = bytearray()
    async with aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            document += piece
            _refuse_endless(len(document), {})
    return bytes(document)


async def _refusal(response: Any) -> bytes:
    """How the body of a refusal begins. Its status says what it is, also where the rest breaks off."""
    body = bytearray()
    try:
        async with aclosing(response.aiter_bytes()) as pieces:
            async for piece in pieces:
                body += piece[: ERROR_BYTES - len(body)]
                if len(body) == ERROR_BYTES:
                    break
    except Exception as error:
        if not _broke_off(error):
            raise
        log.debug("the end of a refusal cannot be read: %r", error)
    return bytes(body)


def _refuse_endless(size: int, usage: dict[str, Any]) -> None:
    if size > REPLY_BYTES:
        raise BrokenReply(f"it is longer than {REPLY_BYTES:,} bytes", usage, curable=False)


def _take(found: Iterator[Event], builder: ReplyBuilder, on_event: OnEvent, silence: Silence) -> None:
    """Take events up to the reply's last one. Raises `BrokenReply` or `ProviderError`."""
    for event in found:
        if event.name == "ping":
            continue  # pings come for ever: they are no sign of life
        said = builder.feed(event.data, event.name)
        if said["type"] == "ping":  # from a server that does not name its events
            continue
        on_event(said)
        silence.heard()
        if builder.stopped:
            return


async def _count(events: Events, found: Iterator[Event], pieces: AsyncIterator[bytes], builder: ReplyBuilder) -> None:
    """What a broken reply costs, which its end says, if that comes soon: in what was `found`, or in later `pieces`."""
    try:
        async with asyncio.timeout(COUNT_S):
            while True:
                for event in found:
                    builder.count(event.data)
                if builder.stopped or (piece := await anext(pieces, None)) is None:
                    return
                found = events.feed(piece)
    except UnicodeDecodeError as error:
        log.debug("the end of a broken reply did not come: %r", error)
    except Exception as error:
        if not _broke_off(error):
            raise
        log.debug("the end of a broken reply did not come: %r", error)


_BETAS: Final = re.compile(rb'\{"betas":(\["[^\]]*"\]),')


def _betas_apart(body: bytes) -> tuple[bytes, str]:
    """A request as the provider takes it: the betas that it names first belong into a header."""
    if (found := _BETAS.match(body)) is None:
        return body, ""
    return b"{" + body[found.end() :], ",".join(orjson.loads(found.group(1)))


def _tell(headers: Mapping[str, str], on_left: OnLeft) -> None:
    if (left := left_of(headers)) is not None:
        on_left(left)


def _from_broken(error: BrokenReply) -> Exception:
    if error.curable:
        return Transient(error.reason, broken=True, usage=error.usage)
    return Hopeless("model_unavailable", f"the reply cannot be used: {error.reason}", error.usage)


def _from_event(error: ProviderError) -> Exception:
    if error.kind in _TRANSIENT_KINDS:
        kind = _KINDS_OF_EVENTS.get(error.kind, "server")
        return Transient(f"{error.kind}: {error.message}", usage=error.usage, slow_down=kind in _SLOW_DOWN, kind=kind)
    return Hopeless("model_rejected", f"{error.kind}: {error.message}", error.usage)


def _from_status(error: anthropic.APIStatusError) -> Exception:
    status, message = error.status_code, _message(error)
    if 300 <= status < 400:
        where = error.response.headers.get("location", "nowhere")
        return Hopeless("model_rejected", f"{status}: the model's address redirects to {where}: set ANTHROPIC_BASE_URL")
    if status == 429 and _NO_CURE in str(error.body):
        return Hopeless("model_unavailable", f"the spend limit is reached: {message}")
    if status in _TRANSIENT or status >= 500:
        after, kind = retry_after_of(error.response.headers), _KINDS_OF_STATUS.get(status, "server")
        return Transient(f"{status}: {message}", after, slow_down=kind in _SLOW_DOWN, kind=kind)
    code = "context_exceeded" if "prompt is too long" in message else "model_rejected"
    return Hopeless(code, f"{status}: {message}")


def _message(error: anthropic.APIStatusError) -> str:
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("message"), str):
        return str(inner["message"])[:2000]
    return " ".join(error.message.split())[:500]  # a page of a proxy's, perhaps
