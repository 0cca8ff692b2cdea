"""The life of a worker: it is supervised, serves until asked to stop, is drained, and leaves.

The order is: join the group, serve until asked to stop, give up all that is ours, finish what is in flight, leave.
Whatever dies in between ends the worker loudly. Must never: know which role it is. Called by: `agent_role.py` and
`tool_role.py`, which put the workers together; the commands and tests, which ask one to stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from anabranch import memory
from anabranch.clockwork import Skew
from anabranch.config import WorkerSettings
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Appender, Broker, Listener, Subscription
from anabranch.kafka.sent import Sent
from anabranch.registry import worker_entry, worker_gone
from anabranch.specs import WorkerInfo
from anabranch.tasks import alongside
from anabranch.topics import Namespace
from anabranch.watch import Watch, Watched

log = logging.getLogger(__name__)

OLD_S: Final = 1.0
"""A worker that says so of its oldest call looks every `LOOK_S` whether it is still true: that costs some microseconds
for each call that waits.
"""
YOUNG_S: Final = 0.25
LOOK_S: Final = 0.5


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


class Worker(Watched, Listener, Protocol):
    """What both roles look like from here."""

    on_failure: Callable[[BaseException], None]

    @property
    def running(self) -> int: ...
    def attach(self, subscription: Subscription) -> None: ...
    async def run(self) -> None: ...
    async def release(self, for_s: float) -> None: ...
    async def finish(self, timeout_s: float) -> int: ...
    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Post:
    """A worker, and where it works. It gets `newer` topics once no member of its group knows them not."""

    worker: Worker
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


async def serve(post: Post, shutdown: Shutdown) -> int:
    """Serve until asked to stop; then give up all that is ours, leave the group, and finish what is in flight."""
    worker, drain_s = post.worker, post.settings.drain_s
    health = post.watch.take(post.meters, worker)

    def on_failure(error: BaseException) -> None:
        health.drain()
        shutdown.fail(f"{type(error).__name__}: {error}")

    worker.on_failure = on_failure
    memory.settle()
    async with alongside(worker.run(), "worker", on_failure), alongside(_beat(post), "heart", on_failure) as heart:
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
        heart.cancel()  # no sign of life after the word that it is gone
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


async def _beat(post: Post) -> None:
    """A sign of life, every few seconds, unless the last one is on its way yet. Its acknowledgement tells what the
    broker's clock says. If it said that calls are old, the next one comes as soon as none is: work waits for that word.
    """
    skew, last, info = Skew(), None, post.info()
    while True:
        if last is None or last.done():
            info = post.info()
            last = post.appender.append(worker_entry(post.namespace, info))
            last.add_done_callback(partial(_compare, skew, info.seen_at, lambda: post.info().seen_at))
        left_s = post.settings.heartbeat_s
        while info.oldest_waiting_s >= OLD_S and left_s > LOOK_S:
            await asyncio.sleep(LOOK_S)
            left_s = left_s - LOOK_S if post.info().oldest_waiting_s >= YOUNG_S else 0.0
        await asyncio.sleep(left_s)


def _compare(skew: Skew, before: float, now: Callable[[], float], sent: Sent) -> None:
    if sent.is_written and (at_ms := sent.result().at_ms) is not None:
        skew.compare(before, at_ms / 1000, now())
