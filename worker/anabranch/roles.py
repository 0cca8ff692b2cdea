"""What both roles are put together from: the namespace and its topics, the broker, the store, keys, where spans go,
what a worker tells of itself. `agent_role.py` and `tool_role.py` put them together.

Must never: import a role. Called by: those two, the commands, and tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from anabranch import spans
from anabranch.about import WORKER
from anabranch.app import App
from anabranch.clockwork import Clockwork
from anabranch.config import Settings
from anabranch.errors import ConfigError, TopicsError
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Appender, Broker
from anabranch.security.sealing import Sealing, checked
from anabranch.spans import Traces
from anabranch.specs import Role, WorkerInfo
from anabranch.store import Store
from anabranch.store import opened as open_store
from anabranch.topics import Namespace, TopicSpec
from anabranch.values import frozen

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


@frozen()
class Ground:
    """What a worker stands on. `tracing` None: its spans go nowhere."""

    namespace: Namespace
    worker_id: str
    broker: Broker
    appender: Appender
    store: Store
    sealing: Sealing
    tracing: Traces | None


@asynccontextmanager
async def ground(
    app: App, settings: Settings, role: Role, specs: list[TopicSpec], broker: Broker, clockwork: Clockwork
) -> AsyncIterator[Ground]:
    """All that there must be for a worker to start: topics that lose nothing, a store and keys that can be had.

    At the end the spans that are left are sent, for some seconds at most.
    """
    await refuse_bad_topics(broker, specs)
    namespace, worker_id = namespace_of(app, settings), clockwork.new_worker_id(role)
    store = open_store(settings.storage, namespace)
    await store.check()
    sealing = await checked(settings.sealing, namespace.name, store, app.keys)
    WORKER.set(worker_id)
    traces = spans.opened(settings.telemetry, f"anabranch-{role}", worker_id)
    try:
        async with broker.appender() as appender:
            yield Ground(namespace, worker_id, broker, appender, store, sealing, traces)
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
    role: Role,
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
