"""While a queue is too far behind, no run is opened that would add to it; afterwards all go on.

Responsible for: `agent/saturation.py` and what `Admission` makes of it, in virtual time where time matters.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.virtual import now, virtually
from tests.support.wait import until
from tests.unit.test_admission import admitting, good

from anabranch.agent.saturation import Saturation
from anabranch.codec import Outgoing
from anabranch.config import AgentSettings
from anabranch.registry import DEAD_S, Registry, worker_entry, worker_gone
from anabranch.specs import AgentLimits, AgentSpec, WorkerInfo

HOLD_S = 30.0
LONG_S = 3600.0


def tells(registry: Registry, waiting_s: float, *, queue: str = "q", worker: str = "t1", at: float = 0.0) -> None:
    """A tool worker gives a sign of life."""
    info = WorkerInfo(worker, "tool", "1", 0.0, at, queue, 1, waiting_s)
    take(registry, worker_entry(NAMESPACE, info))


def take(registry: Registry, entry: Outgoing) -> None:
    registry.take(b.as_read(entry, 0))


def saturation(clock: Callable[[], float]) -> Saturation:
    registry = Registry()
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


async def test_what_opens_no_run_waits_for_no_queue() -> None:
    desk = Desk().begin()
    tells(desk.registry, 100, at=desk.clock.now)
    async with admitting(desk) as admission:
        admission.feed([b.raw_request({"run_id": "x", "cancel": True}, 0), b.raw_request({"agent": "nobody"}, 1)])

        async def both() -> bool:
            await desk.sent.ack(NAMESPACE.dead_letters)
            return len(desk.appended) == 2

        await until(both)
