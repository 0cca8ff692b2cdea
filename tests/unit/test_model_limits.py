"""A fleet of thinkers against a provider that enforces its limits, in virtual time: kept, reached, and no run fails.

Responsible for: what the provider counts, with one worker and with several, while partitions move, and for how the
fleet finds a limit that nobody declared. On a real Kafka: `tests/integration/test_model_limits.py`.
Must never: wait for real time, or decide by our own counters.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from tests.support import builders as b
from tests.support.virtual import now, virtually

from anabranch import log_events as e
from anabranch.agent.model.allowance import left_of
from anabranch.agent.model.budget import BURST_S, MINUTE_S
from anabranch.agent.model.jobs import Job, Request
from anabranch.agent.model.lanes import GAINED_LATE_S
from anabranch.agent.model.seam import OnEvent, OnLeft, Transient
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.reply import Reply
from anabranch.clockwork import Clockwork
from anabranch.config import AgentSettings, ModelLimits
from anabranch.testing.quota import Meter, RateLimits

PARTITIONS = 24
BODY = b"x" * 3000
MEAN = {"requests": 1, "input_tokens": 700, "output_tokens": 300}
"""What a call uses: the tokens vary by a half."""


class Provider:
    """Takes a moment to accept or refuse, and some seconds to answer. Without `says` no header names a limit."""

    def __init__(self, limits: RateLimits, says: bool, seed: int) -> None:
        self.meter, self._says, self._chance = Meter(limits, keep=100_000), says, random.Random(seed)

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        await asyncio.sleep(self._chance.uniform(0.05, 0.3))
        used_input, used_output = (
            round(MEAN[f"{kind}_tokens"] * self._chance.uniform(0.5, 1.5)) for kind in ("input", "output")
        )
        refused = self.meter.refuses("m", used_input, now())
        if refused is None:
            self.meter.count("m", now(), requests=1, input_tokens=used_input)
        if self._says and (left := left_of(self.meter.headers("m", now()))) is not None:
            on_left(left)
        if refused is not None:
            raise Transient(f"429: {refused[0]}", refused[1], slow_down=True)
        on_event({"type": "message_start"})
        await asyncio.sleep(self._chance.uniform(1, 8))
        self.meter.count("m", now(), output_tokens=used_output)
        return Reply(
            "final",
            "end_turn",
            b.message([b.text("done")]),
            (),
            {"input_tokens": used_input, "output_tokens": used_output},
        )


@dataclass
class Fleet:
    """Workers, and the runs that they have been given. `events` are what came of these."""

    provider: Provider
    workers: list[Thinker]
    events: list[e.Event] = field(default_factory=list)

    def give(self, worker: int, count: int, deadline: float = 1e6) -> None:
        for number in range(count):
            context = BatchContext(f"{worker}-{number}", 1, "", b.agent(), True, lambda tool: None)
            request = Request("0", context, deadline, BODY)
            job = Job("", "m", lambda r=request: r, self.take, lambda *_: None)  # type: ignore[misc]
            self.workers[worker].submit(job)

    def take(self, event: e.Event) -> None:
        """What only names the attempts that were refused is no end of a run."""
        if not isinstance(event, e.ModelDiscarded):
            self.events.append(event)

    def own(self, *shares: range) -> None:
        """A rebalance: everything is revoked, and given anew."""
        for worker in self.workers:
            worker.disown(lost=False)
        for worker, share in zip(self.workers, shares, strict=False):
            worker.own(frozenset(share), PARTITIONS)

    async def done(self, count: int) -> None:
        async with asyncio.timeout(7200):
            while len(self.events) < count:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(1)

    def most(self, kind: str, seconds: float = MINUTE_S, since: float = 0.0) -> float:
        window: deque[tuple[float, int]] = deque()
        most = held = 0
        for at, amount in self._counted(kind, since):
            window.append((at, amount))
            held += amount
            while window[0][0] <= at - seconds:
                held -= window.popleft()[1]
            most = max(most, held)
        return most

    def rate(self, kind: str, since: float, until: float) -> float:
        """A minute, between two moments."""
        return sum(n for at, n in self._counted(kind, since) if at < until) / (until - since) * MINUTE_S

    def _counted(self, kind: str, since: float) -> list[tuple[float, int]]:
        entries = [entry for entry in self.provider.meter.metered if entry.at >= since]
        return [(entry.at, getattr(entry, kind)) for entry in entries if getattr(entry, kind)]


def played(
    play: Callable[[Fleet], Awaitable[object]], limits: RateLimits, declared: bool, workers: int, says: bool = True
) -> Fleet:
    async def run() -> Fleet:
        ids = itertools.count()
        provider = Provider(limits, says, seed=workers)
        table = {"m": ModelLimits(limits.requests, limits.input_tokens, limits.output_tokens)} if declared else {}
        clockwork = Clockwork(now, lambda: f"id{next(ids)}", random.Random(1))
        thinkers = [Thinker(provider, AgentSettings(), {}, clockwork, table) for _ in range(workers)]
        running = [asyncio.create_task(thinker.run()) for thinker in thinkers]
        fleet = Fleet(provider, thinkers)
        await play(fleet)
        for task in running:
            task.cancel()
        return fleet

    return virtually(run)


def evenly(workers: int) -> list[range]:
    part = PARTITIONS // workers
    return [range(worker * part, (worker + 1) * part) for worker in range(workers)]


LIMITS = {
    "requests": RateLimits(requests=50, input_tokens=10**6, output_tokens=10**6),
    "many requests": RateLimits(requests=1000, input_tokens=10**8, output_tokens=10**8),
    "input_tokens": RateLimits(requests=1000, input_tokens=50 * 700, output_tokens=10**6),
    "output_tokens": RateLimits(requests=1000, input_tokens=10**6, output_tokens=50 * 300),
}


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("name", LIMITS)
def test_a_declared_limit_is_kept_and_reached_and_provokes_no_refusal(name: str, workers: int) -> None:
    """Above it in any minute: what is kept for a quarter of a second, and three calls a worker (of output also those
    that end together although they began apart). Reached: 97 % of it, from when the first calls have ended.
    """
    limits, kind = LIMITS[name], name.removeprefix("many ")
    limit = getattr(limits, kind)
    runs = 1600 if name.startswith("many") else 400

    async def play(fleet: Fleet) -> None:
        fleet.own(*evenly(workers))
        for worker in range(workers):
            fleet.give(worker, runs // workers)
        await fleet.done(runs)

    fleet = played(play, limits, declared=True, workers=workers)
    assert all(isinstance(event, e.ModelReplied) for event in fleet.events)
    spread = 0.15 * limit if kind == "output_tokens" else 0.0
    call = 1.5 * MEAN[kind]
    assert fleet.most(kind) <= limit * (1 + BURST_S / MINUTE_S) + 3 * workers * call + spread
    end = fleet.provider.meter.metered[-1].at
    assert fleet.rate(kind, 15, end - 15) >= 0.97 * limit
    assert fleet.provider.meter.refused == 0


def test_a_share_moves_with_the_partitions_and_the_sum_stays_within_the_limit() -> None:
    """Four workers come and go, every half a minute; none has work that it could not do."""
    limits = RateLimits(requests=600)
    shares = [evenly(1), evenly(2), evenly(4), evenly(3), evenly(2), evenly(1)]

    async def play(fleet: Fleet) -> None:
        for worker in range(4):
            fleet.give(worker, 2000)
        for share in shares:
            fleet.own(*share)
            await asyncio.sleep(30)

    fleet = played(play, limits, declared=True, workers=4)
    moves = len(shares)
    assert fleet.most("requests") <= 600 * (1 + BURST_S / MINUTE_S) + 2 * 4
    assert fleet.most("requests", 10.0) <= 100 * (1 + BURST_S / 10.0) + 2 * 4
    lost = moves * GAINED_LATE_S / (moves * 30)
    assert fleet.rate("requests", 0, 30.0 * moves) >= 600 * (1 - lost) * 0.98
    assert fleet.provider.meter.refused == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_limit_that_only_the_provider_names_is_found_from_its_first_replies(workers: int) -> None:
    """At first as many go out as the settings allow, for nobody knows better; after that hardly one is refused."""
    limits = RateLimits(requests=50)

    async def play(fleet: Fleet) -> None:
        fleet.own(*evenly(workers))
        for worker in range(workers):
            fleet.give(worker, 400 // workers)
        await asyncio.sleep(30)
        fleet.provider.meter.refused = 0
        await fleet.done(400)

    fleet = played(play, limits, declared=False, workers=workers)
    assert all(isinstance(event, e.ModelReplied) for event in fleet.events)
    assert fleet.provider.meter.refused <= 20
    end = fleet.provider.meter.metered[-1].at
    assert fleet.rate("requests", 60, end - 15) >= 0.9 * 50


def test_a_limit_that_nobody_names_is_found_by_its_refusals() -> None:
    """No run fails, most of the limit is used, and it takes about one refusal a call."""
    limits = RateLimits(requests=50)

    async def play(fleet: Fleet) -> None:
        fleet.own(*evenly(1))
        fleet.give(0, 400)
        await asyncio.sleep(30)
        fleet.provider.meter.refused = 0
        await fleet.done(400)

    fleet = played(play, limits, declared=False, workers=1, says=False)
    assert all(isinstance(event, e.ModelReplied) for event in fleet.events)
    end = fleet.provider.meter.metered[-1].at
    assert fleet.rate("requests", 60, end - 15) >= 0.8 * 50
    assert fleet.provider.meter.refused <= 500


def test_somebody_else_who_uses_up_the_limit_is_made_way_for() -> None:
    """The organisation's other programs take half of it: few calls are refused by what is left, and no run fails."""
    limits = RateLimits(requests=600)

    async def play(fleet: Fleet) -> None:
        async def others() -> None:
            while True:
                fleet.provider.meter.count("m", now(), requests=1)
                await asyncio.sleep(0.2)

        taking = asyncio.create_task(others())
        fleet.own(*evenly(2))
        for worker in range(2):
            fleet.give(worker, 1000)
        await fleet.done(2000)
        taking.cancel()

    fleet = played(play, limits, declared=True, workers=2)
    assert all(isinstance(event, e.ModelReplied) for event in fleet.events)
    assert fleet.provider.meter.refused <= 400


def test_a_pause_longer_than_the_time_left_fails_only_the_runs_that_it_really_outlasts() -> None:
    """Requests: one a minute. The second call waits for its turn and is refused by nobody."""

    async def play(fleet: Fleet) -> None:
        fleet.own(*evenly(1))
        fleet.give(0, 3, deadline=150.0)
        await fleet.done(3)

    fleet = played(play, RateLimits(requests=1), declared=True, workers=1)
    assert all(isinstance(event, e.ModelReplied) for event in fleet.events)
