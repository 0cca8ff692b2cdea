"""Puts calls of a limited tool into a queue, runs workers that come and go, and judges when the calls started.

Responsible for: `tests/support/apps/metered.py` as processes on a given Kafka, and the figures of its starts.
Must never: look inside a worker; it sees what the tool has written down.
Called by: tests of limits, `tests.bench.limits`.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from anabranch.bodies import whole
from anabranch.codec import cloud_event
from anabranch.homes import homes, in_turn
from anabranch.kafka.seam import Broker
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.roles import broker_of
from anabranch.specs import LimitSpec
from anabranch.topics import Namespace
from anabranch.units import rate
from tests.support.fleet import settings_for
from tests.support.process import Command, GuardedProcess, tail
from tests.support.wait import until

APP = Path(__file__).parent / "apps" / "metered.py"
UP_S = 90.0
PARTITIONS = 24


@dataclass(frozen=True)
class Readings:
    """When calls of the limited tool started, in seconds of the monotonic clock, in order."""

    per_second: float
    homes: int
    at: Sequence[float]

    def between(self, begin: float, end: float) -> int:
        return bisect_left(self.at, end) - bisect_left(self.at, begin)

    @property
    def window_s(self) -> float:
        """What the rate is judged over: ten seconds, or a hundred calls."""
        return max(10.0, 100 / self.per_second)

    def rates(self, begin: float, end: float) -> list[float]:
        """The rate over each window that lies within, as a part of the limit; windows begin every half second."""
        count = int((end - begin - self.window_s) * 2) + 1
        begins = [begin + n / 2 for n in range(max(count, 0))]
        return [self.between(b, b + self.window_s) / self.window_s / self.per_second for b in begins]

    @property
    def most_in_a_second(self) -> int:
        return max(self.between(when, when + 1) for when in self.at)

    @property
    def allowed_in_a_second(self) -> float:
        """2 % above the limit, and one call a home."""
        return 1.02 * self.per_second + self.homes


@dataclass
class Meter:
    """One limit on a queue of its own: `with Meter(...) as meter`, then `start`, `put`, `stop`."""

    kafka: str
    folder: Path
    written: str
    places: int | None = None
    takes_s: float = 0.0
    session_s: float = 6.0
    workers: list[GuardedProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespace = f"meter-{uuid.uuid4().hex[:8]}"
        self.limit = LimitSpec("api", "q", rate(self.written), self.places)
        self.homes = homes(self.limit, None, PARTITIONS)
        self._stack, self._file, self._put = ExitStack(), self.folder / f"{self.namespace}.starts", 0
        self._started = 0
        self._kills: list[float] = []

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def broker(self) -> Broker:
        return broker_of(settings_for(self.kafka, self.namespace))

    async def make_topics(self) -> None:
        await self.broker.apply(Namespace(self.namespace).specs(["q"], 4))

    async def put(self, count: int, *, tool: str = "hit", partition: int | None = None) -> None:
        """Publish calls as an agent worker would, or all to one partition."""
        space = Namespace(self.namespace)
        async with self.broker.appender() as appender:
            for _ in range(count):
                self._put += 1
                where = in_turn(self._put, self.homes) if partition is None else partition
                call_id = f"r/{self._put}"
                body = ToolCall(
                    call_id=call_id, run_id="r", agent="a", tool=tool, input={"n": self._put}, dispatch=1,
                    deadline=time.time() + 3600, idempotency_key=call_id, reply=ReplyTopic(space.log, 0),
                )  # fmt: skip
                pairs = [("ce_runid", "r"), ("ce_life", "0"), ("ce_callid", call_id)]
                appender.append(cloud_event(space.calls("q"), "tool.call", "t", call_id, whole(body), pairs, where))
                if self._put % 1000 == 0:
                    await appender.flush(30)
            assert await appender.flush(60) == 0

    async def start(self) -> GuardedProcess:
        """One more worker; returns when it says that it is up."""
        self._started += 1
        log = self.folder / f"{self.namespace}-{self._started}.log"
        argv = [sys.executable, "-m", "anabranch.cli", "worker", "tool", str(APP), "--queue", "q"]
        process = GuardedProcess(Command(argv, self._environment()), log)
        self._stack.callback(process.kill)
        await until(lambda: "is up" in tail(log) or not process.is_running(), UP_S, f"{log.name} is up")
        assert process.is_running(), tail(log)
        self.workers.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return {
            "ANABRANCH_BOOTSTRAP": self.kafka,
            "ANABRANCH_NAMESPACE": self.namespace,
            "ANABRANCH_PARTITIONS": "4",
            "ANABRANCH_SESSION_TIMEOUT_S": str(self.session_s),
            "ANABRANCH_DRAIN_S": "20",
            "METER_RATE": self.written,
            "METER_PLACES": str(self.places or 0),
            "METER_TAKES_S": str(self.takes_s),
            "METER_FILE": str(self._file),
        }

    async def stop(self, worker: GuardedProcess) -> None:
        """SIGTERM; returns when it is gone."""
        self.workers.remove(worker)
        await asyncio.to_thread(worker.stop, 30)

    def kill(self, worker: GuardedProcess) -> None:
        self.workers.remove(worker)
        worker.kill()
        self._kills.append(time.monotonic())

    # --- what was read -------------------------------------------------------------------------------------------

    def lines(self, kind: str = "start") -> list[tuple[int, float]]:
        """The numbers of calls, and when."""
        return [(int(n), float(when)) for what, n, when, *_ in self._words() if what == kind]

    def readings(self) -> Readings:
        return Readings(self.limit.per_second, len(self.homes), sorted(when for _, when in self.lines()))

    def at_once(self, since: float = 0.0) -> int:
        """The most calls that were under way at one time from `since` on; those of a killed worker end with it."""
        words = self._words()
        ends = {(number, pid): float(when) for what, number, when, pid in words if what == "end"}
        seen = {pid: float(when) for _, _, when, pid in words}
        steps: list[tuple[float, int]] = []
        for number, began, pid in (rest for what, *rest in words if what == "start"):
            killed = min((at for at in self._kills if at >= seen[pid]), default=float("inf"))
            steps += [(float(began), 1), (ends.get((number, pid), killed), -1)]
        now = most = 0
        for when, step in sorted(steps):
            now += step
            most = max(most, now) if when >= since else most
        return most

    def _words(self) -> list[list[str]]:
        return [line.split() for line in self._file.read_text().splitlines()] if self._file.exists() else []
