"""What both roles are put together from: the namespace and its topics, the broker, the store, where spans go, what a
worker tells of itself. `agent_role.py` and `tool_role.py` put them together.

Must never: import a role. Called by: those two, the commands, and tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Literal

from anabranch import spans
from anabranch.app import App
from anabranch.config import Settings
from anabranch.errors import ConfigError, TopicsError
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Broker
from anabranch.spans import Traces
from anabranch.specs import WorkerInfo
from anabranch.store import Store
from anabranch.store import opened as open_store
from anabranch.topics import Namespace, TopicSpec

log = logging.getLogger(__name__)


def namespace_of(app: App | None, settings: Settings) -> Namespace:
    """The one that is set, or the App's."""
    name = settings.worker.namespace or (app.namespace if app is not None else None)
    if name is None:
        raise ConfigError("no namespace: give --namespace, or set ANABRANCH_NAMESPACE")
    return Namespace(name.lower())


def topic_specs(app: App, settings: Settings) -> list[TopicSpec]:
    """Every topic that `app` needs."""
    return namespace_of(app, settings).specs(app.queues(), settings.kafka.partitions)


def broker_of(settings: Settings, meters: RoleMeters | None = None) -> Broker:
    return KafkaBroker(settings.kafka, meters)


async def store_of(settings: Settings, namespace: Namespace) -> Store:
    """The store of the settings; one that cannot be written and read ends the start."""
    opened = open_store(settings.storage, namespace)
    await opened.check()
    return opened


@asynccontextmanager
async def tracing_of(settings: Settings, service: str, worker_id: str) -> AsyncIterator[Traces | None]:
    """Where spans go, if anywhere; at the end what is left is sent, for some seconds at most."""
    traces = spans.opened(settings.telemetry, service, worker_id)
    try:
        yield traces
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close)


async def refuse_bad_topics(broker: Broker, specs: list[TopicSpec]) -> None:
    """A topic that is missing or would lose data is refused at start, with what mends it."""
    lacks = await broker.lacks(specs)
    for lack in lacks:
        if not lack.dangerous:
            log.warning("%s", lack.message)
    if dangerous := [lack.message for lack in lacks if lack.dangerous]:
        raise TopicsError("\n".join(dangerous))


def info_of(
    worker_id: str,
    role: Literal["agent", "tool"],
    now: Callable[[], float],
    running: Callable[[], int],
    queue: str | None = None,
    waiting_s: Callable[[], float] = lambda: 0.0,
) -> Callable[[], WorkerInfo]:
    """What a worker says of itself whenever it is asked: how many calls run, and for how long its oldest one waits."""
    started, release = now(), version("anabranch")

    def info() -> WorkerInfo:
        return WorkerInfo(worker_id, role, release, started, now(), queue, running(), waiting_s())

    return info
