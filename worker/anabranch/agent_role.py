"""The agent role, put together: everything that an agent worker is made of, and its start.

What the App declares and how the topics are set up is checked first, then the worker registers and learns who else is
there, and then `runtime.py` lets it live. Must never: decide how a worker lives or ends, or know of the tool role.
Called by: the commands, and tests; `agent/` knows nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

from anabranch.agent.admission.room import Room
from anabranch.agent.admission.saturation import Saturation
from anabranch.agent.model.seam import Model
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.placing import Placing
from anabranch.agent.station import Station
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.agent.telemetry.traces import AgentTraces
from anabranch.agent.worker import AgentWorker
from anabranch.app import App
from anabranch.clockwork import Clockwork, real_clockwork
from anabranch.config import Settings
from anabranch.declarations.callers import callers_of
from anabranch.kafka.seam import Broker
from anabranch.registry import Registry, follow, keep_up, register
from anabranch.roles import broker_of, ground, info_of, topic_specs
from anabranch.runtime import Post, Shutdown, serve
from anabranch.security.signing import signer_of
from anabranch.specs import AgentSpec, ToolSpec
from anabranch.tasks import alongside
from anabranch.topics import Namespace
from anabranch.watch import Watch, watching

log = logging.getLogger(__name__)

READY_S: Final = 60.0


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
    clockwork, meters, signer = clockwork or real_clockwork(), AgentMeters(), signer_of(settings.signing)
    specs = topic_specs(app, settings)
    meters.know(app.agent_specs())
    async with (
        watching(settings.worker, watch) as watch,
        ground(app, settings, "agent", specs, broker or broker_of(settings, meters), clockwork) as on,
        _model(settings, model) as opened,
    ):
        broker, namespace, appender, worker_id = on.broker, on.namespace, on.appender, on.worker_id
        registry = Registry(signer, clockwork.now)
        traces = None if on.tracing is None else AgentTraces(on.tracing, namespace, clockwork.now)
        thinker = Thinker(
            opened, settings.agent, settings.prices, clockwork, settings.models, on.store, meters, traces, on.sealing
        )
        await register(appender, namespace, worker_id, app.tool_specs(), app.agent_specs(), app.limit_specs(), signer)
        placing = Placing(broker, namespace, registry, clockwork.chance)
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
            store=on.store,
            sealing=on.sealing,
            signer=signer,
            meters=meters,
            traces=traces,
        )
        worker = AgentWorker(station, broker, settings.worker.commit_s)
        info = info_of(worker_id, "agent", clockwork.now, lambda: worker.running)
        topics, newer, group = [namespace.requests, namespace.log], [namespace.bulk_requests], namespace.agents_group
        post = Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch, newer)
        async with (
            _following(broker, namespace, registry, app),
            alongside(placing.follow(), "placing"),
            alongside(keep_up(registry, appender, namespace, worker_id, signer), "registry's upkeep"),
        ):
            await placing.learn()
            return await serve(post, shutdown)


def _model(settings: Settings, model: Model | None) -> AbstractAsyncContextManager[Model]:
    if model is not None:
        return nullcontext(model)
    from anabranch.agent.model.anthropic_model import AnthropicModel  # a second of imports that other models are spared

    return AnthropicModel.opened(settings.anthropic, settings.agent.model_silence_s)


@asynccontextmanager
async def _following(broker: Broker, namespace: Namespace, registry: Registry, app: App) -> AsyncIterator[None]:
    """Follow the registry; what is inside begins when it is known."""
    ready = asyncio.Event()
    async with alongside(follow(broker, namespace, registry, ready), "registry"):
        async with asyncio.timeout(READY_S):
            await ready.wait()
        warn_of_unknown(app.agent_specs(), registry)
        yield


def warn_of_unknown(agents: Sequence[AgentSpec], registry: Registry) -> None:
    """Names that may be misspelt, or of tools whose worker has never been started; of a tool only once."""
    used: dict[str, ToolSpec] = {}
    for agent in agents:
        for name in agent.tools:
            tool = registry.tool(name)
            if tool is None:
                log.warning("agent %s: nobody has registered tool %r yet: a call gets an error", agent.name, name)
                continue
            used[name] = tool
            if not callers_of(tool, agent):
                who = " and ".join(tool.allowed_callers)
                log.warning("agent %s: tool %r may be called by %s alone, and is not offered", agent.name, name, who)
    for name, tool in used.items():
        for earlier in tool.after:
            if registry.tool(earlier) is None:
                log.warning("tool %s: nobody has registered tool %r, so it waits for no call of it", name, earlier)
