"""Which queues are so far behind that no run is opened that would put more calls into them.

Tool workers tell in the registry how long their oldest call has waited. From a threshold on, requests for agents that
use a tool of that queue stay in Kafka, where no deadline runs; below half of it they are taken up again. What was
opened goes on. It waits for the registry to change, or for the time at which a worker that told of old calls counts
as dead: it never polls. A queue that no living worker serves holds nothing up: who starts workers by the length of a
queue needs calls in it. `admission.py` asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from anabranch.registry import DEAD_S, Registry, is_alive
from anabranch.specs import AgentSpec, ToolSpec, WorkerInfo

log = logging.getLogger(__name__)

OF_DEADLINE: Final = 0.25
"""The part of a call's time that it may wait before no more are added: the calls behind it wait longer."""
LEAST_S: Final = 1.0
"""Below it no threshold falls: what is told is older than half of that."""
GO_ON_AT: Final = 0.5
"""The part of the threshold below which requests are taken up again."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """How long the oldest call of a queue may have waited, in seconds."""

    queue: str
    age_s: float


@dataclass(slots=True)
class Saturation:
    """See the module. `hold_after_s` is the threshold of calls with time enough; `now` is epoch seconds."""

    registry: Registry
    hold_after_s: float
    now: Callable[[], float]
    _over: dict[Threshold, bool] = field(default_factory=dict)
    _waiters: set[asyncio.Future[None]] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _may_hold: bool = False

    def __post_init__(self) -> None:
        self.registry.on_workers.append(self._look_again)

    @property
    def may_hold(self) -> bool:
        """Whether calls wait anywhere for so long that it is worth asking."""
        return self._may_hold

    @property
    def holds(self) -> bool:
        """Whether a request waits for a queue."""
        return bool(self._waiters)

    async def until_kept_up(self, agent: AgentSpec, deadline_s: float) -> None:
        """Wait until no queue of the agent's tools is too far behind for a run that has `deadline_s` seconds."""
        while self._is_over(agent, deadline_s):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            self._watch()
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _is_over(self, agent: AgentSpec, deadline_s: float) -> bool:
        return any(self._look(threshold) for threshold in self._thresholds(agent, deadline_s))

    def _thresholds(self, agent: AgentSpec, deadline_s: float) -> Iterator[Threshold]:
        tools = [spec for name in agent.tools if (spec := self.registry.tool(name)) is not None]
        for queue in sorted({spec.queue for spec in tools}):
            time_s = min(_time_of(spec, deadline_s) for spec in tools if spec.queue == queue)
            yield Threshold(queue, min(self.hold_after_s, max(LEAST_S, time_s * OF_DEADLINE)))

    def _look(self, threshold: Threshold) -> bool:
        """Whether the queue is over it: from there on until it has fallen well below."""
        age_s = oldest_waiting_s(self._alive(), threshold.queue)
        was_over = self._over.get(threshold, False)
        is_over = age_s >= threshold.age_s * (GO_ON_AT if was_over else 1) and age_s > 0
        if is_over and not was_over:
            what = "requests for agents that use it wait in Kafka until it is half as long"
            log.warning("queue %s: its oldest call has waited %.1f s: %s", threshold.queue, age_s, what)
        elif was_over and not is_over:
            log.info("queue %s: its oldest call has waited %.1f s: requests are taken up", threshold.queue, age_s)
        if is_over:
            self._over[threshold] = True
        else:
            self._over.pop(threshold, None)
        return is_over

    def _alive(self) -> Iterator[WorkerInfo]:
        now = self.now()
        return (worker for worker in self.registry.workers.values() if is_alive(worker, now))

    # --- waking up ----------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """A worker has told something, or has died."""
        oldest_s = max((worker.oldest_waiting_s for worker in self.registry.workers.values()), default=0.0)
        self._may_hold = oldest_s >= GO_ON_AT * min(LEAST_S, self.hold_after_s)
        still_over = [self._look(threshold) for threshold in list(self._over)]
        if not all(still_over):
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._watch()

    def _watch(self) -> None:
        """Nobody tells when a worker dies: look when the next of those that hold requests up would count as dead."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queues = {threshold.queue for threshold in self._over}
        seen = [worker.seen_at for worker in self._alive() if worker.queue in queues and worker.oldest_waiting_s > 0]
        if self._waiters and seen:
            after_s = max(0.0, min(seen) + DEAD_S - self.now()) + 0.1
            self._timer = asyncio.get_running_loop().call_later(after_s, self._look_again)


def oldest_waiting_s(workers: Iterable[WorkerInfo], queue: str) -> float:
    """How long the oldest call of a queue has waited, by what these workers say; 0 if none of them serves it."""
    return max((worker.oldest_waiting_s for worker in workers if worker.queue == queue), default=0.0)


def _time_of(spec: ToolSpec, deadline_s: float) -> float:
    """How long a call of this tool has, from its publication."""
    return deadline_s if spec.deadline_s is None else min(spec.deadline_s, deadline_s)
