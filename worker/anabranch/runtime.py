"""Starts, supervises, drains and stops a role: everything that lives as long as a worker does.

The order is: check what the App declares and how the topics are set up, register, join the group, serve until
asked to stop, finish what is in flight, leave. Whatever dies in between ends the worker loudly. The commands
call it, and tests; the roles know nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib.metadata import version
from typing import Final, Literal, Protocol

from anabranch.agent.model import Model
from anabranch.agent.station import Room, Station
from anabranch.agent.thinking import Clockwork, Thinker
from anabranch.agent.worker import AgentWorker
from anabranch.app import App
from anabranch.config import Settings
from anabranch.errors import ConfigError, TopicsError
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.seam import Appender, Broker, Subscription
from anabranch.registry import Registry, follow, register, worker_entry, worker_gone
from anabranch.specs import WorkerInfo
from anabranch.tools.executor import Executor
from anabranch.tools.worker import Bench, ToolWorker
from anabranch.topics import Namespace, TopicSpec

log = logging.getLogger(__name__)

READY_S: Final = 60.0


class Shutdown:
    """What the outside may ask: to drain (once), and to hurry (twice)."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.ready = asyncio.Event()

    def ask(self) -> None:
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    @asynccontextmanager
    async def on_signals(self) -> AsyncIterator[Shutdown]:
        """SIGINT and SIGTERM ask, while inside."""
        loop = asyncio.get_running_loop()
        caught = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        for number in caught:
            loop.add_signal_handler(number, self.ask)
        try:
            yield self
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


def namespace_of(app: App | None, settings: Settings) -> Namespace:
    """The one that is set, or the App's."""
    name = settings.worker.namespace or (app.namespace if app is not None else None)
    if name is None:
        raise ConfigError("no namespace: give --namespace, or set ANABRANCH_NAMESPACE")
    return Namespace(name.lower())


def topic_specs(app: App, settings: Settings) -> list[TopicSpec]:
    """Every topic that `app` needs."""
    return namespace_of(app, settings).specs(app.queues(), settings.kafka.partitions)


def broker_of(settings: Settings) -> Broker:
    return KafkaBroker(settings.kafka)


class _Worker(Protocol):
    """What both roles look like from here."""

    @property
    def running(self) -> int: ...
    def attach(self, subscription: Subscription) -> None: ...
    async def run(self) -> None: ...
    async def drain(self, timeout_s: float) -> int: ...


async def serve_agent(
    app: App,
    settings: Settings,
    shutdown: Shutdown,
    *,
    broker: Broker | None = None,
    model: Model | None = None,
) -> int:
    """Run an agent worker until asked to stop; returns how many model calls were abandoned."""
    app.check()
    broker, namespace = broker or broker_of(settings), namespace_of(app, settings)
    await _refuse_bad_topics(broker, app, namespace.specs(app.queues(), settings.kafka.partitions))
    worker_id = _new_worker_id("agent")
    async with broker.appender() as appender, _model(settings, model) as opened:
        registry = Registry()
        await register(appender, namespace, worker_id, app.tool_specs(), app.agent_specs())
        clockwork = Clockwork(time.time, lambda: secrets.token_hex(8), random.Random())
        station = Station(
            namespace=namespace,
            worker_id=worker_id,
            appender=appender,
            thinker=Thinker(opened, settings.agent, settings.prices, clockwork),
            registry=registry,
            settings=settings.agent,
            prices=settings.prices,
            clockwork=clockwork,
            room=Room(settings.agent.max_open_bytes),
            partitions=await broker.partitions(namespace.log),
            response_partitions=await broker.partitions(namespace.responses),
        )
        worker = AgentWorker(station, settings.worker.commit_s)
        info = _info(worker_id, "agent", None)

        async def with_registry(rest: Callable[[], Awaitable[int]]) -> int:
            return await _following(broker, namespace, registry, app, rest)

        async def join() -> int:
            topics = [namespace.requests, namespace.log]
            async with broker.subscribe(topics, namespace.agents_group, worker) as subscription:
                return await _live(worker, subscription, appender, namespace, info, settings, shutdown)

        return await with_registry(join)


async def serve_tools(
    app: App, queue: str, settings: Settings, shutdown: Shutdown, *, broker: Broker | None = None
) -> int:
    """Run a tool worker until asked to stop; returns how many calls were abandoned."""
    app.check()
    tools = app.tools_of(queue)
    if not tools:
        known = ", ".join(sorted({tool.spec.queue for tool in app.tools.values()})) or "none"
        raise ConfigError(f"App {app.name!r} has no tool in queue {queue!r}; its queues are: {known}")
    broker, namespace = broker or broker_of(settings), namespace_of(app, settings)
    await _refuse_bad_topics(broker, app, namespace.specs([queue], settings.kafka.partitions))
    worker_id = _new_worker_id("tool")
    executor = Executor(settings.tool)
    try:
        async with broker.appender() as appender:
            await register(appender, namespace, worker_id, [tool.spec for tool in tools], [])
            bench = Bench(namespace, worker_id, app, queue, appender, executor, settings.tool, time.time)
            worker = ToolWorker(bench, settings.worker.commit_s)
            info = _info(worker_id, "tool", queue)
            topics, group = [namespace.calls(queue)], namespace.tools_group(queue)
            async with broker.subscribe(topics, group, worker) as subscription:
                return await _live(worker, subscription, appender, namespace, info, settings, shutdown)
    finally:
        executor.close()


# --- the parts ------------------------------------------------------------------------------------------------


def _model(settings: Settings, model: Model | None) -> AbstractAsyncContextManager[Model]:
    if model is not None:
        return _given(model)
    from anabranch.agent.anthropic_model import AnthropicModel  # a second of imports that tool workers are spared

    return AnthropicModel.opened(settings.anthropic, settings.agent.model_silence_s)


@asynccontextmanager
async def _given(model: Model) -> AsyncIterator[Model]:
    yield model


async def _refuse_bad_topics(broker: Broker, app: App, specs: list[TopicSpec]) -> None:
    """A topic that is missing or would lose data is refused at start, with the command that mends it."""
    lacks = await broker.lacks(specs)
    for lack in lacks:
        if not lack.dangerous:
            log.warning("%s", lack.message)
    if dangerous := [lack.message for lack in lacks if lack.dangerous]:
        raise TopicsError("\n".join([*dangerous, "Mend them with: anabranch topics apply APP"]))


async def _following(
    broker: Broker, namespace: Namespace, registry: Registry, app: App, rest: Callable[[], Awaitable[int]]
) -> int:
    """Follow the registry, and do `rest` once it is known."""
    async with asyncio.TaskGroup() as tasks:
        ready = asyncio.Event()
        following = tasks.create_task(follow(broker, namespace, registry, ready), name="registry")
        async with asyncio.timeout(READY_S):
            await ready.wait()
        for agent in app.agent_specs():
            for name in agent.tools:
                if registry.tool(name) is None:
                    log.warning(
                        "agent %s: nobody has registered tool %r yet: a call of it gets an error", agent.name, name
                    )
        try:
            return await rest()
        finally:
            following.cancel()


async def _live(
    worker: _Worker,
    subscription: Subscription,
    appender: Appender,
    namespace: Namespace,
    info: Callable[[_Worker], WorkerInfo],
    settings: Settings,
    shutdown: Shutdown,
) -> int:
    """Serve until asked to stop, then drain."""
    worker.attach(subscription)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(worker.run(), name="worker")
        heart = tasks.create_task(_beat(worker, appender, namespace, info, settings.worker.heartbeat_s), name="heart")
        log.info("%s is up", info(worker).id)
        shutdown.ready.set()
        asked = tasks.create_task(shutdown.asked.wait(), name="shutdown")
        await asyncio.wait({asked, serving}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        log.info("draining: %d in flight", worker.running)
        abandoned = await _drain(worker, settings.worker.drain_s, shutdown)
        heart.cancel()
        subscription.stop()
        await asyncio.wait({serving})
        with suppress(Exception):
            appender.append(worker_gone(namespace, info(worker).id))
            await appender.flush(1.0)
    log.info("stopped: %d abandoned", abandoned)
    return abandoned


async def _drain(worker: _Worker, timeout_s: float, shutdown: Shutdown) -> int:
    """Bounded by the settings, and by the second signal."""
    draining = asyncio.ensure_future(worker.drain(timeout_s))
    hurried = asyncio.ensure_future(shutdown.hurry.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not draining.done():
        draining.cancel()
        await asyncio.wait({draining})
        return worker.running
    return draining.result()


async def _beat(
    worker: _Worker,
    appender: Appender,
    namespace: Namespace,
    info: Callable[[_Worker], WorkerInfo],
    every_s: float,
) -> None:
    """A sign of life, every few seconds."""
    while True:
        appender.append(worker_entry(namespace, info(worker)))
        await asyncio.sleep(every_s)


def _info(worker_id: str, role: Literal["agent", "tool"], queue: str | None) -> Callable[[_Worker], WorkerInfo]:
    started, release = time.time(), version("anabranch")

    def info(worker: _Worker) -> WorkerInfo:
        waiting = float(getattr(worker, "oldest_waiting_s", 0.0))
        return WorkerInfo(worker_id, role, release, started, time.time(), queue, worker.running, waiting)

    return info


def _new_worker_id(role: str) -> str:
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:60]
    return f"{role}-{host}-{os.getpid()}-{secrets.token_hex(3)}"
