"""The real `anthropic` client in front of a scripted model: what tests ask, with a stream and without.

Responsible for: a server and a client that live as long as a test needs them. Must never: retry, or know what is asked
of the script. Called by: the integration tests of the scripted model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anthropic
import httpx2
import pytest

from anabranch.testing import Script, ScriptedModel

Json = Any
TOOLS: Json = [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}]
HELLO: Json = [{"role": "user", "content": "hello"}]
ASK: Json = {"model": "scripted", "max_tokens": 100, "messages": HELLO, "tools": TOOLS}
BROKEN = (httpx2.TransportError, aiohttp.ClientError, anthropic.APIConnectionError)


@asynccontextmanager
async def talking(script: Script, **settings: Any) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, ScriptedModel]]:
    async with (
        ScriptedModel(script, **settings) as server,
        anthropic.AsyncAnthropic(api_key="test", base_url=server.base_url, max_retries=0) as client,
    ):
        yield client, server


async def streamed(client: anthropic.AsyncAnthropic, **more: Any) -> anthropic.types.Message:
    async with client.messages.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_message()


async def created(client: anthropic.AsyncAnthropic, **more: Any) -> anthropic.types.Message:
    message: anthropic.types.Message = await client.messages.create(**{**ASK, **more})
    return message


BOTH = pytest.mark.parametrize("ask", [streamed, created])
Ask = Callable[..., Any]
