"""Who is allowed what: an App, a fleet of those who may do everything, and users who may not.

Must never: judge. Called by: the tests of what each role is allowed, `tests/integration/test_access*.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from anabranch import App, Limit
from anabranch.cli import anabranch, frame
from anabranch.codec import Outgoing
from anabranch.config import Settings
from anabranch.events import RunEvent, Text
from anabranch.roles import broker_of
from anabranch.security.access import Grant
from anabranch.testing import Answer, last_results, prompt_of, result_text, tool_use, turn_of
from anabranch.topics import Namespace
from tests.support.acls import Entry, put
from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.kafka_secured import SecuredKafka

QUEUE = "io"

app = App("access")
gate = SimpleNamespace(open=asyncio.Event())


@app.tool(queue=QUEUE, limit=Limit("api", "50/s", concurrency=5))
async def near() -> str:
    """Answers, under a limit."""
    return "near"


@app.tool(queue=QUEUE, timeout=60)
async def long() -> str:
    """Takes until the test says so."""
    await gate.open.wait()
    return "long"


app.agent("caller", model="scripted", tools=[near, long])


def script(request: dict[str, Any]) -> Answer:
    """Calls the tools that the prompt names, all at once, and answers with their results."""
    if turn_of(request) == 1:
        return [tool_use(name, {}) for name in prompt_of(request).split()]
    return " | ".join(result_text(block) for block in last_results(request).values())


def as_user(settings: Settings, kafka: SecuredKafka, user: str) -> Settings:
    return replace(settings, kafka=replace(settings.kafka, **kafka.as_user(user)))


async def allow(kafka: SecuredKafka, user: str, granted: Sequence[Grant]) -> str:
    await put(kafka.open, [Entry(user, grant.operation, grant.kind, grant.name, grant.prefixed) for grant in granted])
    return user


@asynccontextmanager
async def around(
    kafka: SecuredKafka, namespace: str, settings: Settings | None = None, **options: Any
) -> AsyncIterator[Fleet]:
    """A fleet of those who may do everything, beside which one who may not is tried; its gate is closed."""
    gate.open = asyncio.Event()  # one belongs to the loop in which it was waited for
    async with fleet(app, script, settings or settings_for(kafka.open, namespace), **options) as running:
        yield running


async def heard(run: Any) -> list[Text]:
    return [event async for event in run.events() if isinstance(event, Text)]


async def steps(run: Any) -> list[str]:
    return [type(event.event).__name__ async for event in run.events() if isinstance(event, RunEvent)]


async def response_of(run: Any) -> Any:
    return await run


def request_topics(ns: Namespace) -> tuple[str, str]:
    return ns.requests, ns.bulk_requests


async def appended(its: Settings, topic: str) -> None:
    async with broker_of(its).appender() as appender:
        await appender.append(Outgoing(topic, b"key", b"{}", (), 0))


LOOKS = (("runs", "list"), ("agents",), ("tools",), ("workers",), ("usage", "--by", "model"), ("dlq", "list"))


async def commanded(settings: Settings, patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The status of a command, run as the user of `settings`."""
    given = settings.kafka
    for name in ("bootstrap", "security_protocol", "sasl_username", "sasl_password"):
        patch.setenv(f"ANABRANCH_{name.upper()}", str(getattr(given, name)))
    patch.setenv("ANABRANCH_NAMESPACE", str(settings.worker.namespace))
    return await asyncio.to_thread(frame.invoke, anabranch, list(arguments))
