"""The tool role, put together: everything that a tool worker is made of, and its start.

What the App declares and how the topics are set up is checked first, then the worker registers, and then `runtime.py`
lets it live. Must never: decide how a worker lives or ends, or know of the agent role, whose imports would double the
time that a start takes. Called by: the commands, and tests; `tools/` knows nothing of it.
"""

from __future__ import annotations

from contextlib import closing
from typing import Final

from anabranch.app import App
from anabranch.clockwork import Clockwork, real_clockwork
from anabranch.config import Settings
from anabranch.errors import ConfigError
from anabranch.kafka.seam import Broker
from anabranch.registry import register
from anabranch.roles import broker_of, ground, info_of, namespace_of
from anabranch.runtime import Post, Shutdown, serve
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
    tools = app.tools_of(queue)
    if not tools:
        known = ", ".join(sorted({tool.spec.queue for tool in app.tools.values()})) or "none"
        raise ConfigError(f"App {app.name!r} has no tool in queue {queue!r}; its queues are: {known}")
    clockwork = clockwork or real_clockwork()
    limits = [limit for limit in app.limit_specs() if limit.queue == queue]
    meters = ToolMeters(queue, [tool.name for tool in tools], [limit.name for limit in limits])
    specs = _of_tools(namespace_of(app, settings), queue, settings.kafka.partitions)
    with closing(Executor(settings.tool, clockwork.now)) as executor:
        async with (
            watching(settings.worker, watch) as watch,
            ground(app, settings, "tool", specs, broker or broker_of(settings, meters), clockwork) as on,
        ):
            namespace, appender, worker_id = on.namespace, on.appender, on.worker_id
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
                partitions=await on.broker.partitions(namespace.calls(queue)),
                rebalance_s=settings.kafka.session_timeout_s / 4 + REBALANCE_S,
                lenient=lenient,
                store=on.store,
                sealing=on.sealing,
                meters=meters,
                traces=None if on.tracing is None else ToolTraces(on.tracing, queue),
            )
            worker = ToolWorker(bench, settings.worker.commit_s)
            info = info_of(
                worker_id, "tool", clockwork.now, lambda: worker.running, queue, lambda: worker.oldest_waiting_s
            )
            group, topics = namespace.tools_group(queue), [namespace.calls(queue)]
            post = Post(worker, info, topics, group, on.broker, appender, namespace, settings.worker, meters, watch)
            return await serve(post, shutdown)


def _of_tools(namespace: Namespace, queue: str, partitions: int) -> list[TopicSpec]:
    """The topics that a tool worker has to do with: of the others it may not even be allowed to know."""
    its = {namespace.calls(queue), namespace.log, namespace.registry, namespace.dead_letters}
    return [spec for spec in namespace.specs([queue], partitions) if spec.name in its]
