"""The tool role, put together: everything that a tool worker is made of, and its start.

What the App declares and how the topics are set up is checked first, then the worker registers, and then `runtime.py`
lets it live. Must never: decide how a worker lives or ends, or know of the agent role, whose imports would double the
time that a start takes. Called by: the commands, and tests; `tools/` knows nothing of it.
"""

from __future__ import annotations

from typing import Final

from anabranch.about import WORKER
from anabranch.app import App
from anabranch.clockwork import Clockwork, real_clockwork
from anabranch.config import Settings
from anabranch.errors import ConfigError
from anabranch.kafka.seam import Broker
from anabranch.registry import register
from anabranch.roles import broker_of, info_of, namespace_of, refuse_bad_topics, store_of, tracing_of
from anabranch.runtime import Post, Shutdown, serve
from anabranch.security.sealing import checked
from anabranch.tools.executor import Executor
from anabranch.tools.meters import ToolMeters
from anabranch.tools.serving import Bench
from anabranch.tools.traces import ToolTraces
from anabranch.tools.worker import ToolWorker
from anabranch.topics import Namespace, TopicSpec
from anabranch.watch import Watch, watching

REBALANCE_S: Final = 2.5
"""What a rebalance takes beside a heartbeat's interval, which is a quarter of the session's time."""


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
        return await _serve_tools(app, queue, settings, shutdown, broker, lenient, clockwork or real_clockwork(), watch)


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
    await refuse_bad_topics(broker, _of_tools(namespace, queue, settings.kafka.partitions))
    worker_id, store = clockwork.new_worker_id("tool"), await store_of(settings, namespace)
    sealing = await checked(settings.sealing, namespace.name, store, app.keys)
    WORKER.set(worker_id)
    executor = Executor(settings.tool, clockwork.now)
    try:
        async with tracing_of(settings, "anabranch-tool", worker_id) as tracing, broker.appender() as appender:
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
            info = info_of(
                worker_id, "tool", clockwork.now, lambda: worker.running, queue, lambda: worker.oldest_waiting_s
            )
            group, topics = namespace.tools_group(queue), [namespace.calls(queue)]
            post = Post(worker, info, topics, group, broker, appender, namespace, settings.worker, meters, watch)
            return await serve(post, shutdown)
    finally:
        executor.close()


def _of_tools(namespace: Namespace, queue: str, partitions: int) -> list[TopicSpec]:
    """The topics that a tool worker has to do with: of the others it may not even be allowed to know."""
    its = {namespace.calls(queue), namespace.log, namespace.registry, namespace.dead_letters}
    return [spec for spec in namespace.specs([queue], partitions) if spec.name in its]
