"""One call of the model, and what its failure means. The only import of `anthropic`.

The SDK does transport, authentication and errors. It does not retry (we do, under the run's deadline, in
`thinking.py`), and it does not parse the stream: its repairs would turn a broken reply into a plausible
one, so `reply.py` reads the raw events. Called by `Thinker`, and by nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anthropic
from anthropic import AsyncStream

from anabranch.agent.allowance import left_of, retry_after_of
from anabranch.agent.model import Hopeless, OnEvent, OnLeft, Transient
from anabranch.agent.reply import BrokenReply, ProviderError, Reply, ReplyBuilder, reply_of
from anabranch.config import AnthropicSettings
from anabranch.errors import ConfigError

CONNECT_S: Final = 10.0
_TRANSIENT: Final = frozenset({408, 409, 429})
_TRANSIENT_KINDS: Final = frozenset({"overloaded_error", "api_error", "rate_limit_error", "timeout_error"})
_SLOW_DOWN: Final = frozenset({429, 529})
_SLOW_DOWN_KINDS: Final = frozenset({"rate_limit_error", "overloaded_error"})
_NO_CURE: Final = "enforced_spend_limit_reached"


class AnthropicModel:
    """The Messages API, streamed."""

    def __init__(self, client: anthropic.AsyncAnthropic, silence_s: float) -> None:
        self._client, self._silence_s = client, silence_s

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: AnthropicSettings, silence_s: float) -> AsyncIterator[AnthropicModel]:
        """Raises `ConfigError` if there is no key."""
        if not settings.api_key and not settings.auth_token:
            raise ConfigError("no key for the model: set ANTHROPIC_API_KEY (tool workers need none)")
        client = anthropic.AsyncAnthropic(
            api_key=settings.api_key,
            auth_token=settings.auth_token,
            base_url=settings.base_url,
            max_retries=0,
            timeout=anthropic.Timeout(None, connect=CONNECT_S),
            http_client=anthropic.DefaultAioHttpClient(limits=anthropic.DEFAULT_CONNECTION_LIMITS),
            open_telemetry=False,  # each attempt has a span of ours (`traces.py`), with the same attributes
        )
        async with client:
            yield cls(client, silence_s)

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        builder = ReplyBuilder()
        try:
            async with asyncio.timeout(self._silence_s) as silence:
                stream = await self._asked(body)
                _tell(stream.response.headers, on_left)
                return await self._read(stream, builder, on_event, silence)
        except BrokenReply as error:
            raise Transient(error.reason, broken=True, usage=error.usage) from None
        except ProviderError as error:
            raise _from_event(error) from None
        except anthropic.APIStatusError as error:
            _tell(error.response.headers, on_left)
            raise _from_status(error) from None
        except TimeoutError:
            raise Transient(f"the model said nothing for {self._silence_s:g} s", usage=builder.usage) from None
        except (anthropic.APIError, OSError, EOFError) as error:
            raise Transient(f"{type(error).__name__}: {error}", usage=builder.usage) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in _TRANSPORT:
                raise
            raise Transient(f"the connection broke: {error!r}", usage=builder.usage) from None

    async def _asked(self, body: bytes) -> AsyncStream[object]:
        return await self._client.post(
            "/v1/messages",
            cast_to=object,
            content=body,
            options={"headers": {"content-type": "application/json", "accept": "text/event-stream"}},
            stream=True,
            stream_cls=AsyncStream[object],
        )

    async def _read(
        self, stream: AsyncStream[object], builder: ReplyBuilder, on_event: OnEvent, silence: asyncio.Timeout
    ) -> Reply:
        loop = asyncio.get_running_loop()
        async with stream:
            if "json" in stream.response.headers.get("content-type", ""):
                return reply_of(await stream.response.aread())
            async for sse in AsyncStream.raw_events(stream.response):
                if not sse.data or sse.event == "ping":
                    continue  # pings come for ever: they are no sign of life
                event = builder.feed(sse.data)
                if event["type"] == "ping":  # from a server that does not name its events
                    continue
                on_event(event)
                silence.reschedule(loop.time() + self._silence_s)
                if builder.stopped:
                    break
        return builder.finish()


_TRANSPORT: Final = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "anyio", "h11"})


def _tell(headers: Mapping[str, str], on_left: OnLeft) -> None:
    if (left := left_of(headers)) is not None:
        on_left(left)


def _from_event(error: ProviderError) -> Exception:
    if error.kind in _TRANSIENT_KINDS:
        slow_down = error.kind in _SLOW_DOWN_KINDS
        return Transient(f"{error.kind}: {error.message}", usage=error.usage, slow_down=slow_down)
    return Hopeless("model_rejected", f"{error.kind}: {error.message}", error.usage)


def _from_status(error: anthropic.APIStatusError) -> Exception:
    status, message = error.status_code, _message(error)
    if status == 429 and _NO_CURE in str(error.body):
        return Hopeless("model_unavailable", f"the spend limit is reached: {message}")
    if status in _TRANSIENT or status >= 500:
        after = retry_after_of(error.response.headers)
        return Transient(f"{status}: {message}", after, slow_down=status in _SLOW_DOWN)
    code = "context_exceeded" if "prompt is too long" in message else "model_rejected"
    return Hopeless(code, f"{status}: {message}")


def _message(error: anthropic.APIStatusError) -> str:
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("message"), str):
        return str(inner["message"])[:2000]
    return error.message[:2000]
