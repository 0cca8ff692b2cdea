"""While a queue is too far behind, no run is opened that would add to it; afterwards all go on.

Responsible for: `agent/admission/saturation.py` and what `Admission` makes of it, in virtual time where time matters.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.virtual import now, virtually
from tests.support.wait import until
from tests.unit.test_admission import admitting, good

from anabranch.agent.admission.saturation import OF_DEADLINE, TRUSTED, Saturation
from anabranch.codec import Outgoing
from anabranch.config import AgentSettings
from anabranch.registry import DEAD_S, Registry, worker_entry, worker_gone
from anabranch.specs import AgentLimits, AgentSpec, LimitSpec, WorkerInfo

HOLD_S = 30.0
LONG_S = 3600.0
FIRST = int(TRUSTED * LONG_S * OF_DEADLINE)


def tells(registry: Registry, waiting_s: float, *, queue: str = "q", worker: str = "t1", at: float = 0.0) -> None:
    """A tool worker gives a sign of life."""
    info = WorkerInfo(worker, "tool", "1", 0.0, at, queue, 1, waiting_s)
    take(registry, worker_entry(NAMESPACE, info), at)


def take(registry: Registry, entry: Outgoing, at: float = 0.0) -> None:
    registry.take(b.as_read(entry, 0, at))


def saturation(clock: Callable[[], float], registry: Registry | None = None) -> Saturation:
    registry = registry or Registry()
    registry.add([b.tool(), replace(b.tool("other"), queue="idle")])
    return Saturation(registry, HOLD_S, clock)


AGENT = b.agent()


async def waits(asked: Saturation, agent: AgentSpec = AGENT, deadline_s: float = LONG_S) -> bool:
    asking = asyncio.ensure_future(asked.until_kept_up(agent, deadline_s))
    await asyncio.sleep(0)
    is_waiting = not asking.done()
    asking.cancel()
    return is_waiting


async def test_from_the_threshold_on_requests_wait_until_half_of_it() -> None:
    asked = saturation(lambda: 0.0)
    found = []
    for waiting_s in (0, 29, 30, 29, 16, 14.9, 29, 31):
        tells(asked.registry, waiting_s)
        found.append(await waits(asked))
    assert found == [False, False, True, True, True, False, False, True]


@pytest.mark.parametrize("ahead_s", [3600.0, 1e12])
async def test_a_worker_whose_clock_is_ahead_is_dead_as_soon_as_others(ahead_s: float) -> None:
    """Also where the topic keeps the worker's own time: else its queue would hold requests up for ever."""
    clock = [1000.0]
    asked = saturation(lambda: clock[0], Registry(now=lambda: clock[0]))
    tells(asked.registry, 100, at=clock[0] + ahead_s)
    assert await waits(asked)
    clock[0] += DEAD_S + 1
    assert not await waits(asked)


async def test_an_agent_without_tools_of_that_queue_goes_on() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 100)
    assert await waits(asked)
    assert not await waits(asked, replace(AGENT, tools=["other"]))
    assert not await waits(asked, replace(AGENT, tools=[]))


@pytest.mark.parametrize(("deadline_s", "held"), [(39, True), (41, False)])
async def test_calls_with_little_time_wait_no_longer_than_a_part_of_it(deadline_s: float, held: bool) -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 10)
    assert await waits(asked, deadline_s=deadline_s) is held
    asked.registry.add([replace(b.tool(), deadline_s=deadline_s)])
    assert await waits(asked) is held


async def test_the_oldest_call_of_any_living_worker_counts() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 100, worker="t1")
    tells(asked.registry, 1, worker="t2")
    assert await waits(asked)
    take(asked.registry, worker_gone(NAMESPACE, "t1"))
    assert not await waits(asked)


async def test_what_was_told_counts_no_more_once_its_worker_counts_as_dead() -> None:
    clock = [0.0]
    asked = saturation(lambda: clock[0])
    tells(asked.registry, 100, worker="t1", at=0.0)
    tells(asked.registry, 40, worker="t2", at=10.0)
    found = []
    for clock[0] in (DEAD_S, DEAD_S + 5, DEAD_S + 11):
        oldest = asked._told_of("q")
        found.append((oldest.oldest_s, oldest.serve, await waits(asked)))
    assert found == [(100.0, True, True), (40.0, True, True), (0.0, False, False)]


async def test_a_wait_ends_with_the_word_that_the_queue_has_caught_up() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 31)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(asked.until_kept_up(AGENT, LONG_S)) for _ in range(3)]
        await asyncio.sleep(0)
        tells(asked.registry, 20)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        tells(asked.registry, 1)


def test_a_worker_that_died_holds_nothing_up_and_nothing_is_polled_meanwhile() -> None:
    async def until_dead() -> tuple[float, int]:
        asked, looks = saturation(now), 0
        tells(asked.registry, 100, at=now())
        looked = asked.now

        def counted() -> float:
            nonlocal looks
            looks += 1
            return looked()

        asked.now = counted
        await asked.until_kept_up(AGENT, LONG_S)
        return now(), looks

    after_s, looks = virtually(until_dead)
    assert DEAD_S <= after_s <= DEAD_S + 1
    assert looks < 10


# --- between two words ----------------------------------------------------------------------------------------------

SHORT = replace(b.agent(), tools=["quick"])
SHORT_S = 40.0


class Queue:
    """A queue that serves `rate` calls a second in their order, told of every five seconds, and a flood before it."""

    def __init__(self, rate: float, limits: tuple[LimitSpec, ...] = ()) -> None:
        self.asked, self.rate = saturation(now), rate
        spec = replace(b.tool("quick"), deadline_s=SHORT_S, limit=limits[0].name if limits else None)
        self.asked.registry.add([spec], limits=limits)
        self.put: list[float] = []
        self.waits: list[float] = []

    async def told(self) -> None:
        while True:
            oldest_s = now() - self.put[len(self.waits)] if len(self.waits) < len(self.put) else 0.0
            tells(self.asked.registry, oldest_s, at=now())
            await asyncio.sleep(5.0)

    async def serve(self) -> None:
        while True:
            await asyncio.sleep(1 / self.rate)
            if len(self.waits) < len(self.put):
                self.waits.append(now() - self.put[len(self.waits)])
                self.asked.returned("q")

    async def flood(self) -> None:
        """A thousand runs a second, each with three calls."""
        while True:
            await self.asked.until_kept_up(SHORT, LONG_S)
            for _ in range(3):
                self.asked.published("q")
                self.put.append(now())
            await asyncio.sleep(0.001)

    async def for_a_while(self, seconds: float) -> None:
        tasks = [asyncio.ensure_future(part) for part in (self.told(), self.serve(), self.flood())]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("rate", [TRUSTED, 60.0, 150.0])
def test_a_flood_into_a_queue_with_little_time_expires_nowhere_and_idles_little(rate: float) -> None:
    async def run() -> tuple[float, int]:
        queue = Queue(rate)
        await queue.for_a_while(100.0)
        before = len(queue.waits)
        await queue.for_a_while(100.0)
        return max(queue.waits), len(queue.waits) - before

    slowest_s, served = virtually(run)
    assert slowest_s < SHORT_S / 2
    assert served > 0.8 * 100 * rate, "it is kept busy"


def test_a_queue_with_a_low_limit_is_trusted_with_no_more_than_that() -> None:
    async def run() -> float:
        queue = Queue(1.0, (LimitSpec("api", "q", 1.0),))
        await queue.for_a_while(300.0)
        return max(queue.waits)

    assert virtually(run) < SHORT_S


async def test_calls_with_time_enough_are_not_held_up_before_the_first_word() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 0)
    for _ in range(FIRST - 1):
        asked.published("q")
    assert not await waits(asked)


async def test_a_worker_that_says_no_more_holds_up_no_word_of_the_others() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 0, worker="t1")
    tells(asked.registry, 0, worker="t2")
    for _ in range(FIRST):
        asked.published("q")
    assert await waits(asked)
    tells(asked.registry, 0, worker="t2", at=5.0)
    assert await waits(asked), "the other one may be about to say something else"
    tells(asked.registry, 0, worker="t2", at=10.0)
    assert not await waits(asked)


async def test_a_queue_that_answers_as_fast_as_it_is_asked_holds_nothing_up_between_two_words() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 0)
    for _ in range(3 * FIRST):
        asked.published("q")
        asked.returned("q")
    assert not await waits(asked)
    for _ in range(FIRST // 2):
        asked.published("q")
    assert await waits(asked), "so many are out"


async def test_runs_that_end_without_a_call_hold_nothing_up() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 0)
    for _ in range(3 * FIRST):
        await asked.until_kept_up(AGENT, LONG_S)
        asked.ended(AGENT)
    assert not await waits(asked)
    for _ in range(FIRST // 2 - 1):
        await asked.until_kept_up(AGENT, LONG_S)
    assert await waits(asked), "so many are open"


async def test_a_request_that_waits_for_room_goes_on_with_the_results_that_make_some() -> None:
    asked = saturation(lambda: 0.0)
    tells(asked.registry, 0)
    for _ in range(FIRST):
        asked.published("q")
    for _ in range(FIRST // 2):
        asked.returned("q")
    waiting = asyncio.ensure_future(asked.until_kept_up(AGENT, LONG_S))
    await asyncio.sleep(0)
    assert not waiting.done()
    asked.returned("q")
    await asyncio.wait_for(waiting, 5)


async def test_without_a_living_worker_nothing_is_held_up() -> None:
    asked = saturation(lambda: 0.0)
    for _ in range(100_000):
        asked.published("q")
    assert not await waits(asked, SHORT)


# --- what admission makes of it ---------------------------------------------------------------------------------------


async def test_requests_wait_in_their_order_while_the_queue_is_behind_and_their_time_begins_afterwards() -> None:
    desk = Desk(settings=AgentSettings(hold_after_s=HOLD_S)).begin()
    tells(desk.registry, 31, at=desk.clock.now)
    async with admitting(desk) as admission:
        admission.feed([good(0), good(1)])
        await asyncio.sleep(0.02)
        assert desk.appended == []
        desk.clock.now = 20.0
        tells(desk.registry, 0, at=desk.clock.now)
        await until(lambda: len(desk.appended) == 2)
    assert [event.request_offset for event in desk.appended] == [0, 1]  # type: ignore[union-attr]
    assert desk.appended[0].opening.deadline == 20.0 + AgentLimits().deadline_s  # type: ignore[union-attr]


async def test_who_has_waited_gets_the_agent_as_it_is_by_then() -> None:
    desk = Desk(settings=AgentSettings(hold_after_s=HOLD_S)).begin()
    tells(desk.registry, 31, at=desk.clock.now)
    async with admitting(desk) as admission:
        admission.feed([good(0)])
        await asyncio.sleep(0.02)
        desk.registry.add(agents=[b.agent(revision="later")])
        tells(desk.registry, 0, at=desk.clock.now)
        await until(lambda: len(desk.appended) == 1)
    assert desk.appended[0].opening.revision == "later"  # type: ignore[union-attr]


async def test_what_opens_no_run_waits_for_no_queue() -> None:
    desk = Desk().begin()
    tells(desk.registry, 100, at=desk.clock.now)
    grows = b'{"agent":"a","input":[{"numbers":[%b]}]}' % b",".join([b"1e15"] * 60_000)
    bad: list[dict[str, Any] | bytes] = [
        {"run_id": "x", "cancel": True},
        {"agent": "nobody"},
        {"agent": "a", "messages": []},
        grows,
    ]
    async with admitting(desk) as admission:
        admission.feed([b.raw_request(request, offset) for offset, request in enumerate(bad)])

        async def all_of_them() -> bool:
            await desk.sent.ack(NAMESPACE.dead_letters)
            return len(desk.appended) == len(bad)

        await until(all_of_them)


async def test_what_opens_no_run_counts_in_no_queue() -> None:
    desk = Desk().begin()
    desk.registry.add([b.tool(limit="low")], limits=[LimitSpec("low", "q", 1 / 3600)])
    tells(desk.registry, 0, at=desk.clock.now)
    async with admitting(desk) as admission:
        admission.feed([b.raw_request({"agent": "a", "messages": []}, 0), good(1)])

        async def both() -> bool:
            await desk.sent.ack(NAMESPACE.dead_letters)
            return len(desk.appended) == 2

        await until(both)
