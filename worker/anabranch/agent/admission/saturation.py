"""Which queues are so far behind that no run is opened that would put more calls into them.

Tool workers tell in the registry how long their oldest call has waited. From a threshold on, requests for agents that
use a tool of that queue stay in Kafka, where no deadline runs; below half of it they are taken up again. What was
opened goes on. Between two words of a queue's workers no more is put into it than `inflow.py` allows, for its age tells
only afterwards that this was too much. It waits for the registry to change, for results to come in, or for the time at
which a worker that told of old calls counts as dead: it never polls. A queue that no living worker serves holds nothing
up: who starts workers by the length of a queue needs calls in it. `admission.py` asks; `agent/publishing.py`,
`agent/early.py` and `agent/telemetry/audience.py` count.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from anabranch.agent.admission.inflow import Inflow
from anabranch.fields import Lane
from anabranch.registry import DEAD_S, Registry, is_alive
from anabranch.specs import AgentSpec, ToolSpec, WorkerInfo
from anabranch.values import frozen

log = logging.getLogger(__name__)

OF_DEADLINE: Final = 0.25
"""The part of a call's time that it may wait before no more are added: the calls behind it wait longer."""
TRUSTED: Final = 10.0
"""Calls a second that a queue is taken to serve of which nothing is known yet; fewer if a limit says so."""
LEAST_S: Final = 1.0
"""Below it no threshold falls: what is told is older than half of that."""
OF_LANE: Final[dict[Lane, float]] = {"interactive": 1.0, "bulk": 0.5}
"""The part of the threshold that holds for a lane: the bulk lane's requests stay in Kafka first, and are taken up again
last, so that a queue that is behind has its time for the interactive lane."""
GO_ON_AT: Final = 0.5
"""The part of the threshold below which requests are taken up again."""
SOON_S: Final = 0.02
"""How long what comes in is collected before those that wait look again."""


@frozen()
class Threshold:
    """How long the oldest call of a queue may have waited, in seconds, and how many it is trusted with unseen."""

    queue: str
    age_s: float
    first: float


class _Use(NamedTuple):
    """What an agent's tools make of a queue. Its calls have `time_s` seconds, and `rate` a second are trusted to it."""

    queue: str
    time_s: float
    rate: float


class _Told(NamedTuple):
    """What the living workers of a queue say, of whom the one heard of least lately was so at `seen_at`."""

    oldest_s: float
    seen_at: float
    serve: bool


@dataclass(slots=True)
class Saturation:
    """See the module. `hold_after_s` is the threshold of calls with time enough; `now` is epoch seconds."""

    registry: Registry
    hold_after_s: float
    now: Callable[[], float]
    _over: dict[Threshold, bool] = field(default_factory=dict)
    _uses: dict[tuple[str, ...], tuple[_Use, ...]] = field(default_factory=dict)
    _version: int = 0  # of what is registered, that `_uses` are of
    _told: dict[str, _Told] = field(default_factory=dict)
    _waiters: set[asyncio.Future[None]] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _soon: asyncio.TimerHandle | None = None
    _inflows: dict[str, Inflow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry.on_workers.append(self._look_again)

    def published(self, queue: str) -> None:
        """A call was put into it."""
        (self._inflows.get(queue) or self._inflow(queue)).published += 1

    def returned(self, queue: str) -> None:
        """A call that was in it has its result."""
        (self._inflows.get(queue) or self._inflow(queue)).returned += 1
        if self._waiters:
            self._wake_soon()

    def ended(self, agent: AgentSpec) -> None:
        """A run of this agent is over, and puts no more into any queue."""
        for use in self._uses_of(agent):
            self._inflow(use.queue).ended += 1
        if self._waiters:
            self._wake_soon()

    def is_behind(self, queue: str) -> bool:
        """Whether requests wait in Kafka because of this queue."""
        return any(threshold.queue == queue for threshold in self._over)

    @property
    def holds(self) -> bool:
        """Whether a request waits for a queue."""
        return bool(self._waiters)

    async def until_kept_up(self, agent: AgentSpec, deadline_s: float, lane: Lane = "interactive") -> bool:
        """Wait until no queue of the agent's tools is too far behind for a run that has `deadline_s` seconds, which is
        opened then. Returns whether that took any time.
        """
        has_waited = False
        while self._is_over(agent, deadline_s, lane):
            has_waited = True
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            self._watch()
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        for use in self._uses_of(agent):
            self._inflow(use.queue).opened += 1
        return has_waited

    def _is_over(self, agent: AgentSpec, deadline_s: float, lane: Lane) -> bool:
        part = OF_LANE[lane]
        for use in self._uses_of(agent):
            time_s = max(LEAST_S, OF_DEADLINE * min(use.time_s, deadline_s))
            threshold = Threshold(use.queue, part * min(self.hold_after_s, time_s), part * (time_s * use.rate))
            told = self._told_of(use.queue)
            if self._look(threshold, told.oldest_s) or (self._is_full(threshold) and told.serve):
                return True
        return False

    def _is_full(self, threshold: Threshold) -> bool:
        return self._inflow(threshold.queue).is_full(threshold.first, threshold.age_s)

    def _inflow(self, queue: str) -> Inflow:
        if (found := self._inflows.get(queue)) is None:
            found = self._inflows[queue] = Inflow()
            self._hear()
        return found

    def _uses_of(self, agent: AgentSpec) -> tuple[_Use, ...]:
        """In the order of the queues; kept until something else is registered."""
        if self._version != self.registry.version:
            self._version = self.registry.version
            self._uses.clear()
        names = tuple(agent.tools)
        if (found := self._uses.get(names)) is None:
            tools = [spec for name in names if (spec := self.registry.tool(name)) is not None]
            found = self._uses[names] = tuple(self._use(queue, tools) for queue in sorted({t.queue for t in tools}))
        return found

    def _use(self, queue: str, tools: Iterable[ToolSpec]) -> _Use:
        ours = [spec for spec in tools if spec.queue == queue]
        rates = [limit.per_second for s in ours if (limit := self.registry.limits.get(s.limit or "")) is not None]
        time_s = min(math.inf if spec.deadline_s is None else spec.deadline_s for spec in ours)
        return _Use(queue, time_s, min([TRUSTED, *rates]))

    def _told_of(self, queue: str) -> _Told:
        """Kept until a worker tells something, or dies."""
        if (found := self._told.get(queue)) is None or self.now() - found.seen_at > DEAD_S:
            alive = [worker for worker in self._alive() if worker.queue == queue]
            seen_at = min((worker.seen_at for worker in alive), default=math.inf)
            found = self._told[queue] = _Told(_oldest_waiting_s(alive), seen_at, bool(alive))
        return found

    def _look(self, threshold: Threshold, age_s: float) -> bool:
        """Whether the queue is over it: from there on until it has fallen well below."""
        if not self._over and age_s < threshold.age_s:
            return False
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
        self._told.clear()
        still_over = [self._look(threshold, self._told_of(threshold.queue).oldest_s) for threshold in list(self._over)]
        if self._hear() or not all(still_over):
            self._wake()
        self._watch()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _wake_soon(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._wake_now)

    def _wake_now(self) -> None:
        self._soon = None
        self._wake()

    def _hear(self) -> bool:
        """Whether a queue's workers have all spoken anew, or it has none any more."""
        alive = list(self._alive())
        news = False
        for queue, inflow in self._inflows.items():
            workers = [worker for worker in alive if worker.queue == queue]
            news |= inflow.hear({worker.id: worker.seen_at for worker in workers}, _oldest_waiting_s(workers))
        return news

    def _watch(self) -> None:
        """Nobody tells when a worker dies: look when the next of those that hold requests up would count as dead."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queues = {threshold.queue for threshold in self._over} | self._inflows.keys()
        seen = [worker.seen_at for worker in self._alive() if worker.queue in queues]
        if self._waiters and seen:
            after_s = max(0.0, min(seen) + DEAD_S - self.now()) + 0.1
            self._timer = asyncio.get_running_loop().call_later(after_s, self._look_again)


def _oldest_waiting_s(workers: Iterable[WorkerInfo]) -> float:
    """How long the oldest call of a queue has waited, by what its workers say; 0 if it has none."""
    return max((worker.oldest_waiting_s for worker in workers), default=0.0)
