"""Places for calls go round: by tenant, and within a tenant by run; within a run they go in order.

Responsible for: `tools/slots.py`, and that `ToolWorker` and `Executor` give their places out by it.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress

import pytest
from tests.support.bench import ToolBench, call
from tests.support.wait import until

from anabranch import App
from anabranch.config import ToolSettings
from anabranch.tools.slots import TURN, Slots, Whose

FLOOD = 200


class Line:
    """Who asks for a place, and in which order they get it; each gives it back when `served` is called."""

    def __init__(self, places: int) -> None:
        self.slots, self.inside = Slots(places), asyncio.Queue[str]()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """A name is `tenant/run/number`; a tenant `bulk` comes by that lane."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._wait(name))
        await asyncio.sleep(0)

    async def _wait(self, name: str) -> None:
        tenant, run_id, _ = name.split("/")
        await self.slots.acquire(Whose(tenant or None, run_id, "bulk" if tenant == "bulk" else "interactive"))
        self.inside.put_nowait(name)

    async def served(self, count: int) -> list[str]:
        """The next so many that are inside, one after the other."""
        found = []
        for _ in range(count):
            found.append(await asyncio.wait_for(self.inside.get(), 5))
            self.slots.release()
            await asyncio.sleep(0)
        return found


async def test_a_run_with_many_calls_yields_after_its_turn_and_its_calls_stay_in_order() -> None:
    line = Line(1)
    await line.ask(*(f"/big/{number}" for number in range(2 * TURN + 3)), "/small/0", "/small/1", "/other/0")
    served = await line.served(2 * TURN + 6)
    assert served[1 + TURN : 4 + TURN] == ["/small/0", "/small/1", "/other/0"]
    assert [name for name in served if "big" in name] == [f"/big/{number}" for number in range(2 * TURN + 3)]


async def test_runs_with_few_calls_are_served_as_they_came() -> None:
    line, asked = Line(1), [f"/run{number}/{call}" for number in range(5) for call in range(3)]
    await line.ask(*asked)
    assert await line.served(len(asked)) == asked


async def test_a_tenants_thousand_runs_take_one_turn_in_two() -> None:
    line = Line(1)
    await line.ask(*(f"loud/r{number}/0" for number in range(1000)), *(f"quiet/q{number}/0" for number in range(3)))
    served = await line.served(8)
    assert [name for name in served if name.startswith("quiet")] == ["quiet/q0/0", "quiet/q1/0", "quiet/q2/0"]


async def test_calls_of_the_bulk_lane_get_one_place_in_five_while_others_wait() -> None:
    line = Line(1)
    await line.ask(*(f"bulk/r{number}/0" for number in range(1000)), *(f"/q{number}/0" for number in range(8)))
    served = await line.served(12)
    assert [name.partition("/")[0] for name in served[1:]] == [*[""] * 4, "bulk", *[""] * 4, "bulk", "bulk"]


async def test_no_place_is_lost_and_no_more_are_given_than_there_are(seed: int) -> None:
    chance, slots, inside, most, done = random.Random(seed), Slots(3), 0, 0, 0

    async def one(number: int) -> None:
        nonlocal inside, most, done
        async with slots.slot(Whose(f"t{number % 3}", f"r{number % 7}")):
            inside += 1
            most = max(most, inside)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1
        done += 1

    tasks = [asyncio.create_task(one(number)) for number in range(300)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel() if chance.random() < 0.3 else None
        await asyncio.sleep(0)
    assert (inside, most) == (0, 3)
    assert done == sum(not task.cancelled() for task in tasks)
    for _ in range(3):  # all of them are there again
        await asyncio.wait_for(slots.acquire(Whose(None, "r")), 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slots.acquire(Whose(None, "r")), 0.01)


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    line = Line(1)
    await line.ask("/a/0", "/b/0", "/c/0")
    line.tasks["/b/0"].cancel()
    with suppress(asyncio.CancelledError):
        await line.tasks["/b/0"]
    assert await line.served(2) == ["/a/0", "/c/0"]


# --- in a worker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loop", "thread", "concurrency"])
async def test_a_run_with_two_hundred_calls_does_not_hold_up_one_with_three(kind: str) -> None:
    app, begun, gate = App("t"), list[str](), threading.Semaphore(0)

    async def look(run: str) -> str:
        """Looks."""
        begun.append(run)
        while not gate.acquire(blocking=False):  # noqa: ASYNC110 - the same gate as in threads
            await asyncio.sleep(0.001)
        return "found"

    def look_in_thread(run: str) -> str:
        """Looks."""
        begun.append(run)
        gate.acquire()
        return "found"

    if kind == "thread":
        app.tool(queue="q", name="look")(look_in_thread)
    else:
        app.tool(queue="q", concurrency=4 if kind == "concurrency" else None)(look)
    settings = ToolSettings(concurrency=4 if kind == "loop" else 1000, threads=4)
    async with ToolBench(app, settings=settings).running() as bench:
        await bench.assign()
        bench.deliver(*(call(number, "look", {"run": "big"}, run_id="big") for number in range(FLOOD)))
        await until(lambda: len(begun) == 4, what="all places are taken")
        bench.deliver(*(call(FLOOD + number, "look", {"run": "small"}, run_id="small") for number in range(3)))
        await asyncio.sleep(0.01)
        gate.release(TURN + 3)
        await until(lambda: len(begun) == TURN + 7, what="a turn has passed, and three calls more")
        assert begun.count("small") == 3
        gate.release(FLOOD)
        await until(lambda: len(bench.sent.returned) == FLOOD + 3, what="all have a result")
