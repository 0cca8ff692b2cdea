"""The two roles, put together: everything that an agent worker or a tool worker is made of, and its start.

What the App declares and how the topics are set up is checked first, then the worker registers, and then `runtime.py`
lets it live. Must never: decide how a worker lives or ends. The commands call it, and tests; the roles themselves, in
`agent/` and `tools/`, know nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Final, Literal

from anabranch import spans
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
from anabranch.config import Settings
from anabranch.errors import ConfigError, TopicsError
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Broker
from anabranch.registry import Registry, follow, register
from anabranch.runtime import Post, Shutdown, serve
from anabranch.sealing import checked
from anabranch.signing import signer_of
from anabranch.spans import Traces
from anabranch.specs import AgentSpec, WorkerInfo
from anabranch.store import Store
from anabranch.store import opened as open_store
from anabranch.tasks import alongside
from anabranch.tools.executor import Executor
from anabranch.tools.meters import ToolMeters
from anabranch.tools.serving import Bench
from anabranch.tools.traces import ToolTraces
from anabranch.tools.worker import ToolWorker
from anabranch.topics import Namespace, TopicSpec
from anabranch.watch import Watch, watching

log = logging.getLogger(__name__)

READY_S: Final = 60.0
REBALANCE_S: Final = 2.5
"""What a rebalance takes beside a heartbeat's interval, which is a quarter of the session's time."""
_DRAWN: Final = 256
"""How many ids are drawn at once."""


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
    worker_id, registry = _new_worker_id("agent", clockwork), Registry(signer, clockwork.now)
    store = await _store(settings, namespace)
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
        post = Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch, newer)
        async with _following(broker, namespace, registry, app), alongside(placing.follow(), "placing"):
            await placing.learn()
            return await serve(post, shutdown)


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
            post = Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch)
            return await serve(post, shutdown)
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
