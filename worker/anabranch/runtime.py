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
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Literal, Protocol

from anabranch import memory, spans
from anabranch.about import WORKER
from anabranch.agent.jobs import Clockwork
from anabranch.agent.meters import AgentMeters
from anabranch.agent.model import Model
from anabranch.agent.placing import Placing
from anabranch.agent.room import Room
from anabranch.agent.saturation import Saturation
from anabranch.agent.station import Station
from anabranch.agent.thinking import Thinker
from anabranch.agent.traces import AgentTraces
from anabranch.agent.worker import AgentWorker
from anabranch.app import App
from anabranch.callers import callers_of
from anabranch.codec import Record
from anabranch.config import Settings, WorkerSettings
from anabranch.errors import ConfigError, TopicsError
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Appender, Broker, Place, Subscription
from anabranch.registry import Registry, follow, register, worker_entry, worker_gone
from anabranch.sealing import checked
from anabranch.signing import signer_of
from anabranch.spans import Traces
from anabranch.specs import AgentSpec, WorkerInfo
from anabranch.store import Store
from anabranch.store import opened as open_store
from anabranch.tasks import alongside, asked_by_signals
from anabranch.tools.executor import Executor
from anabranch.tools.meters import ToolMeters
from anabranch.tools.serving import Bench
from anabranch.tools.traces import ToolTraces
from anabranch.tools.worker import ToolWorker
from anabranch.topics import Namespace, TopicSpec
from anabranch.watch import Watch, Watched, watching

log = logging.getLogger(__name__)

READY_S: Final = 60.0
REBALANCE_S: Final = 2.5
"""What a rebalance takes beside a heartbeat's interval, which is a quarter of the session's time."""
_DRAWN: Final = 256
"""How many ids are drawn at once."""


class Shutdown:
    """What the outside may ask: to drain (once), and to hurry (twice). What it is told: `ready`, and `failed`.

    `on_failure` is called when a worker finds that it cannot go on: it ends then, but what it cancels may not.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.ready = asyncio.Event()
        self.failed = False
        self.on_failure: Callable[[], None] | None = None

    def ask(self) -> None:
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    def fail(self, why: str) -> None:
        """Say so once, and at once."""
        if not self.failed:
            self.failed = True
            log.error("this worker cannot go on, and ends: %s", why)
            if self.on_failure is not None:
                self.on_failure()

    @asynccontextmanager
    async def on_signals(self, at_once: Callable[[], None] | None = None) -> AsyncIterator[Shutdown]:
        """SIGINT, SIGTERM and SIGHUP ask, while inside; see `asked_by_signals`."""
        with asked_by_signals(self.ask, at_once):
            yield self


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


class _Worker(Watched, Protocol):
    """What both roles look like from here: they are also the listeners of their subscriptions."""

    on_failure: Callable[[BaseException], None]

    @property
    def running(self) -> int: ...
    def attach(self, subscription: Subscription) -> None: ...
    async def run(self) -> None: ...
    async def release(self, for_s: float) -> None: ...
    async def finish(self, timeout_s: float) -> int: ...
    def end(self) -> None: ...
    def assigned(self, places: frozenset[Place]) -> None: ...
    async def revoked(self, places: frozenset[Place], lost: bool) -> None: ...
    def records(self, place: Place, records: Sequence[Record]) -> None: ...
    def position(self, place: Place, offset: int) -> None: ...
    def known(self, place: Place) -> int: ...
    @property
    def is_answering(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Post:
    """A worker, and where it works. It gets `newer` topics once no member of its group knows them not."""

    worker: _Worker
    info: Callable[[], WorkerInfo]
    topics: Sequence[str]
    group: str
    broker: Broker
    appender: Appender
    namespace: Namespace
    settings: WorkerSettings
    meters: RoleMeters
    watch: Watch
    newer: Sequence[str] = ()


async def serve_agent(
    app: App,
    settings: Settings,
    shutdown: Shutdown,
    *,
    broker: Broker | None = None,
    model: Model | None = None,
    clockwork: Clockwork | None = None,
    watch: Watch | None = None,
) -> int:
    """Run an agent worker until asked to stop; returns how many model calls were abandoned.

    `watch` is that of the process, where it has several roles.
    """
    app.check()
    async with watching(settings.worker, watch) as watch:
        return await _serve_agent(app, settings, shutdown, broker, model, clockwork or _clockwork(), watch)


async def _serve_agent(
    app: App,
    settings: Settings,
    shutdown: Shutdown,
    broker: Broker | None,
    model: Model | None,
    clockwork: Clockwork,
    watch: Watch,
) -> int:
    meters = AgentMeters()
    meters.know(app.agent_specs())
    signer = signer_of(settings.signing)
    broker, namespace = broker or broker_of(settings, meters), namespace_of(app, settings)
    await _refuse_bad_topics(broker, namespace.specs(app.queues(), settings.kafka.partitions))
    worker_id, registry, store = _new_worker_id("agent", clockwork), Registry(signer), await _store(settings, namespace)
    sealing = await checked(settings.sealing, namespace.name, store, app.keys)
    WORKER.set(worker_id)
    async with (
        _tracing(settings, "anabranch-agent", worker_id) as tracing,
        broker.appender() as appender,
        _model(settings, model) as opened,
    ):
        traces = None if tracing is None else AgentTraces(tracing, namespace, clockwork.now)
        thinker = Thinker(
            opened, settings.agent, settings.prices, clockwork, settings.models, store, meters, traces, sealing
        )
        await register(appender, namespace, worker_id, app.tool_specs(), app.agent_specs(), app.limit_specs(), signer)
        placing = Placing(broker, namespace, registry)
        station = Station(
            namespace=namespace,
            worker_id=worker_id,
            appender=appender,
            thinker=thinker,
            registry=registry,
            settings=settings.agent,
            prices=settings.prices,
            clockwork=clockwork,
            room=Room(settings.agent.max_open_bytes),
            saturation=Saturation(registry, settings.agent.hold_after_s, clockwork.now),
            partitions=await broker.partitions(namespace.log),
            response_partitions=await broker.partitions(namespace.responses),
            place=placing.partition,
            store=store,
            sealing=sealing,
            signer=signer,
            meters=meters,
            traces=traces,
        )
        worker = AgentWorker(station, broker, settings.worker.commit_s)
        info = _info(worker, worker_id, "agent", None, clockwork.now)
        topics, newer, group = [namespace.requests, namespace.log], [namespace.bulk_requests], namespace.agents_group
        post = _Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch, newer)
        async with _following(broker, namespace, registry, app), alongside(placing.follow(), "placing"):
            await placing.learn()
            return await _serve(post, shutdown)


async def serve_tools(
    app: App,
    queue: str,
    settings: Settings,
    shutdown: Shutdown,
    *,
    broker: Broker | None = None,
    lenient: bool = False,
    clockwork: Clockwork | None = None,
    watch: Watch | None = None,
) -> int:
    """Run a tool worker until asked to stop; returns how many calls were abandoned.

    `lenient` serves at-most-once tools on a broker that cannot keep that promise, for `dev`; `watch` is that of the
    process, where it has several roles.
    """
    app.check()
    if not app.tools_of(queue):
        known = ", ".join(sorted({tool.spec.queue for tool in app.tools.values()})) or "none"
        raise ConfigError(f"App {app.name!r} has no tool in queue {queue!r}; its queues are: {known}")
    async with watching(settings.worker, watch) as watch:
        return await _serve_tools(app, queue, settings, shutdown, broker, lenient, clockwork or _clockwork(), watch)


async def _serve_tools(
    app: App,
    queue: str,
    settings: Settings,
    shutdown: Shutdown,
    broker: Broker | None,
    lenient: bool,
    clockwork: Clockwork,
    watch: Watch,
) -> int:
    tools = app.tools_of(queue)
    limits = [limit for limit in app.limit_specs() if limit.queue == queue]
    meters = ToolMeters(queue, [tool.name for tool in tools], [limit.name for limit in limits])
    broker, namespace = broker or broker_of(settings, meters), namespace_of(app, settings)
    await _refuse_bad_topics(broker, _of_tools(namespace, queue, settings.kafka.partitions))
    worker_id, store = _new_worker_id("tool", clockwork), await _store(settings, namespace)
    sealing = await checked(settings.sealing, namespace.name, store, app.keys)
    WORKER.set(worker_id)
    executor = Executor(settings.tool, clockwork.now)
    try:
        async with _tracing(settings, "anabranch-tool", worker_id) as tracing, broker.appender() as appender:
            await register(appender, namespace, worker_id, [tool.spec for tool in tools], [], limits)
            bench = Bench(
                namespace=namespace,
                worker_id=worker_id,
                app=app,
                queue=queue,
                appender=appender,
                executor=executor,
                settings=settings.tool,
                now=clockwork.now,
                partitions=await broker.partitions(namespace.calls(queue)),
                rebalance_s=settings.kafka.session_timeout_s / 4 + REBALANCE_S,
                lenient=lenient,
                store=store,
                sealing=sealing,
                meters=meters,
                traces=None if tracing is None else ToolTraces(tracing, queue),
            )
            worker = ToolWorker(bench, settings.worker.commit_s)
            info = _info(worker, worker_id, "tool", queue, clockwork.now)
            group, topics = namespace.tools_group(queue), [namespace.calls(queue)]
            post = _Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch)
            return await _serve(post, shutdown)
    finally:
        executor.close()


async def _store(settings: Settings, namespace: Namespace) -> Store:
    """The store of the settings; one that cannot be written and read ends the start."""
    opened = open_store(settings.storage, namespace)
    await opened.check()
    return opened


@asynccontextmanager
async def _tracing(settings: Settings, service: str, worker_id: str) -> AsyncIterator[Traces | None]:
    """Where spans go, if anywhere; at the end what is left is sent, for some seconds at most."""
    traces = spans.opened(settings.telemetry, service, worker_id)
    try:
        yield traces
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close)


# --- the parts ------------------------------------------------------------------------------------------------


def _model(settings: Settings, model: Model | None) -> AbstractAsyncContextManager[Model]:
    if model is not None:
        return _given(model)
    from anabranch.agent.anthropic_model import AnthropicModel  # a second of imports that tool workers are spared

    return AnthropicModel.opened(settings.anthropic, settings.agent.model_silence_s)


@asynccontextmanager
async def _given(model: Model) -> AsyncIterator[Model]:
    yield model


def _of_tools(namespace: Namespace, queue: str, partitions: int) -> list[TopicSpec]:
    """The topics that a tool worker has to do with: of the others it may not even be allowed to know."""
    its = {namespace.calls(queue), namespace.log, namespace.registry, namespace.dead_letters}
    return [spec for spec in namespace.specs([queue], partitions) if spec.name in its]


async def _refuse_bad_topics(broker: Broker, specs: list[TopicSpec]) -> None:
    """A topic that is missing or would lose data is refused at start, with the command that mends it."""
    lacks = await broker.lacks(specs)
    for lack in lacks:
        if not lack.dangerous:
            log.warning("%s", lack.message)
    if dangerous := [lack.message for lack in lacks if lack.dangerous]:
        raise TopicsError("\n".join([*dangerous, "Mend them with: anabranch topics apply APP"]))


@asynccontextmanager
async def _following(broker: Broker, namespace: Namespace, registry: Registry, app: App) -> AsyncIterator[None]:
    """Follow the registry; what is inside begins when it is known."""
    ready = asyncio.Event()
    async with alongside(follow(broker, namespace, registry, ready), "registry"):
        async with asyncio.timeout(READY_S):
            await ready.wait()
        for agent in app.agent_specs():
            _warn_of_unknown(agent, registry)
        yield


def _warn_of_unknown(agent: AgentSpec, registry: Registry) -> None:
    """Names that may be misspelt, or of tools whose worker has never been started."""
    for name in agent.tools:
        tool = registry.tool(name)
        if tool is None:
            log.warning("agent %s: nobody has registered tool %r yet: a call gets an error", agent.name, name)
            continue
        if not callers_of(tool, agent):
            who = " and ".join(tool.allowed_callers)
            log.warning("agent %s: tool %r may be called by %s alone, and is not offered", agent.name, name, who)
        for earlier in tool.after:
            if registry.tool(earlier) is None:
                log.warning("tool %s: nobody has registered tool %r, so it waits for no call of it", name, earlier)


# --- the life of a worker ----------------------------------------------------------------------------------------


async def _serve(post: _Post, shutdown: Shutdown) -> int:
    """Serve until asked to stop; then give up all that is ours, leave the group, and finish what is in flight."""
    worker, drain_s = post.worker, post.settings.drain_s
    health = post.watch.take(post.meters, worker)

    def on_failure(error: BaseException) -> None:
        health.drain()
        shutdown.fail(f"{type(error).__name__}: {error}")

    worker.on_failure = on_failure
    memory.settle()
    async with alongside(worker.run(), "worker", on_failure), alongside(_beat(post), "heart", on_failure):
        async with post.broker.subscribe(post.topics, post.group, worker, post.newer) as subscription:
            worker.attach(subscription)
            lag = post.watch.follow_lag(post.meters, worker, subscription.ends)
            reading = alongside(subscription.run(), "subscription", on_failure)
            async with reading, alongside(lag, "lag", on_failure):
                log.info("%s is up", post.info().id)
                shutdown.ready.set()
                await _asked(shutdown)
                health.drain()
                log.info("draining: %d in flight", worker.running)
                await _unless_hurried(worker.release(drain_s * 1.25 + 1), shutdown)
                subscription.stop()
        await _unless_hurried(worker.finish(drain_s), shutdown)
        abandoned = worker.running
        worker.end()
        post.appender.append(worker_gone(post.namespace, post.info().id))
        await post.appender.flush(1.0)
    log.info("stopped: %d abandoned", abandoned)
    return abandoned


async def _asked(shutdown: Shutdown) -> None:
    """Wait until asked to stop. What ends the wait otherwise is the death of something that we cannot go on without."""
    try:
        await shutdown.asked.wait()
    except asyncio.CancelledError:
        shutdown.fail("something that it needs has failed, or it was cancelled")
        raise


async def _unless_hurried(work: Coroutine[Any, Any, object], shutdown: Shutdown) -> None:
    """Do it, but for no longer than until the second signal."""
    doing = asyncio.ensure_future(work)
    hurried = asyncio.ensure_future(shutdown.hurry.wait())
    try:
        await asyncio.wait({doing, hurried}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurried.cancel()
        if not doing.done():
            doing.cancel()
        await asyncio.wait({doing})
    if not doing.cancelled():
        doing.result()


async def _beat(post: _Post) -> None:
    """A sign of life, every few seconds."""
    while True:
        post.appender.append(worker_entry(post.namespace, post.info()))
        await asyncio.sleep(post.settings.heartbeat_s)


def _info(
    worker: AgentWorker | ToolWorker,
    worker_id: str,
    role: Literal["agent", "tool"],
    queue: str | None,
    now: Callable[[], float],
) -> Callable[[], WorkerInfo]:
    started, release = now(), version("anabranch")

    def info() -> WorkerInfo:
        waiting = worker.oldest_waiting_s if isinstance(worker, ToolWorker) else 0.0
        return WorkerInfo(worker_id, role, release, started, now(), queue, worker.running, waiting)

    return info


def _clockwork() -> Clockwork:
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:60]
    process, steady = f"{host}-{os.getpid()}", asyncio.get_running_loop().time
    return Clockwork(time.time, partial(next, _ids()), random.Random(), process, steady)


def _ids() -> Iterator[str]:
    """64 bits each, which nobody can guess. The system is asked for many at once: for one it takes about as long."""
    while True:
        drawn = secrets.token_hex(8 * _DRAWN)
        yield from (drawn[at : at + 16] for at in range(0, len(drawn), 16))


def _new_worker_id(role: str, clockwork: Clockwork) -> str:
    return f"{role}-{clockwork.process}-{clockwork.new_id()[:6]}"
