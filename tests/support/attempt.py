"""One attempt at the model, over a real connection to a server that answers as a test wants.

Responsible for: asking as a worker does, and keeping what came of it.
Must never: try again.
Called by: the tests of what the Messages API does over the wire.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from anabranch.agent.model.anthropic_model import AnthropicModel
from anabranch.agent.model.seam import Hopeless, Transient
from anabranch.agent.reply.reply import Reply
from anabranch.config import AnthropicSettings
from tests.support.stream import Event, called, end, said, sse, start
from tests.support.wire import Answer, http, wire

HELLO: list[Event] = [start(), *said(0, "Hel", "lo"), *end(output_tokens=9)]
CALL: list[Event] = [start(), *called(0, '{"a":', " 1.10}"), *end("tool_use", output_tokens=9)]
TWO: list[Event] = [start(), *said(0, "Hm"), *called(1, '{"a":', "1}"), *end("tool_use", output_tokens=9)]
JSON = "application/json"


@dataclass(slots=True)
class Asked:
    """What one attempt came to."""

    said: Reply | Exception
    heard: list[dict[str, Any]] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def reply(self) -> Reply:
        assert isinstance(self.said, Reply), self.said
        return self.said

    @property
    def transient(self) -> Transient:
        assert isinstance(self.said, Transient), self.said
        return self.said

    @property
    def hopeless(self) -> Hopeless:
        assert isinstance(self.said, Hopeless), self.said
        return self.said

    @property
    def content(self) -> Any:
        return orjson.loads(self.reply.body)["content"]


async def attempts(base_url: str, count: int, silence_s: float = 10.0, body: bytes = b"{}") -> list[Asked]:
    """So many attempts, one after the other, by one worker."""
    settings = AnthropicSettings(api_key="secret", base_url=base_url)
    async with AnthropicModel.opened(settings, silence_s) as model:
        return [await _attempt(model, body) for _ in range(count)]


async def _attempt(model: AnthropicModel, body: bytes) -> Asked:
    asked = Asked(AssertionError("nothing was said"))
    began = time.monotonic()
    try:
        asked.said = await model.reply(body, asked.heard.append, lambda left: None)
    except (Transient, Hopeless) as error:
        asked.said = error
    asked.took_s = time.monotonic() - began
    return asked


async def attempt(base_url: str, silence_s: float = 10.0, body: bytes = b"{}") -> Asked:
    return (await attempts(base_url, 1, silence_s, body))[0]


async def asked(answer: Answer, silence_s: float = 10.0) -> Asked:
    async with wire(answer) as server:
        return await attempt(server.base_url, silence_s)


async def asked_each(answers: Sequence[Answer]) -> list[Asked]:
    """What came of each answer, in their order."""
    async with wire(*answers) as server:
        return await attempts(server.base_url, len(answers))


async def streamed(events: Iterable[Event]) -> Asked:
    return await asked(http(sse(events)))
