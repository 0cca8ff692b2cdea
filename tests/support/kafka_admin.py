"""What the harness asks of a Kafka: does it serve, and drop these topics.

Responsible for: calls of Kafka's admin API that work from any thread, in or outside of an event loop.
Must never: be used by the tests for what they test.
Called by: `tests.support.kafka`, `tests/conftest.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

PROBE_DEADLINE_S = 5.0
DROP_DEADLINE_S = 20.0
T = TypeVar("T")


def answers(bootstrap: str) -> bool:
    """Whether a broker at `bootstrap` knows of itself, that is, takes topics and records."""
    try:
        return _apart(lambda: _has_brokers(bootstrap), PROBE_DEADLINE_S)
    except (KafkaError, OSError, TimeoutError) as error:
        logging.getLogger(__name__).debug("no answer from %s: %r", bootstrap, error)
        return False


def drop_topics(bootstrap: str, prefix: str) -> None:
    """Delete all topics whose name starts with `prefix`. Raises KafkaError or TimeoutError."""
    _apart(lambda: _drop(bootstrap, prefix), DROP_DEADLINE_S)


@asynccontextmanager
async def admin_of(bootstrap: str, **arguments: Any) -> AsyncIterator[Any]:
    """aiokafka's admin client, started (`Any`, because most of its methods have no types)."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **arguments)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _has_brokers(bootstrap: str) -> bool:
    async with admin_of(bootstrap) as admin:
        cluster = await admin.describe_cluster()
        return bool(cluster["brokers"])


async def _drop(bootstrap: str, prefix: str) -> None:
    async with admin_of(bootstrap) as admin:
        topics = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if topics:
            await admin.delete_topics(topics)


def _apart(start: Callable[[], Coroutine[Any, Any, T]], deadline_s: float) -> T:
    """Run a coroutine in a thread and a loop of its own, so that the caller may be inside of a loop."""

    async def bounded() -> T:
        async with asyncio.timeout(deadline_s):
            return await start()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(bounded())).result()
