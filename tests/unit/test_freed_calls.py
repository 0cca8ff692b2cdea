"""What a call holds is freed when it is over, whatever it came to: its input may be large, and Python's collector looks
late, for it counts objects and not bytes, and last of all at those that have waited or run for long.

Responsible for: calls in a tool worker. Must never: run a broker; tests/integration/test_garbage.py has whole runs.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import pytest
from tests.support.bench import ToolBench, call
from tests.support.garbage import Garbage, collected
from tests.support.wait import until

from anabranch import App, Limit, RateLimited, Retryable

CALLS = 20


@pytest.fixture(scope="module")
def garbage() -> Iterator[Garbage]:
    with collected() as garbage:
        yield garbage


async def _fine(n: int) -> str:
    return "fine"


async def _fails(n: int) -> str:
    raise ValueError("no")


async def _hangs(n: int) -> str:
    await asyncio.sleep(3600)
    return "never"


async def _is_never_ready(n: int) -> str:
    raise Retryable("not yet")


def _fine_in_a_thread(n: int) -> str:
    return "fine"


def _fails_in_a_thread(n: int) -> str:
    raise ValueError("no")


def _is_late_in_a_thread(n: int) -> str:
    time.sleep(0.1)
    return "late"


def _at_first(error: Callable[[], Exception]) -> Callable[[int], Any]:
    """One that fails once for each call."""
    seen = Counter[int]()

    async def tool(n: int) -> str:
        seen[n] += 1
        if seen[n] == 1:
            raise error()
        return "fine"

    return tool


@pytest.mark.parametrize(
    ("function", "options"),
    [
        pytest.param(_fine, {}, id="it succeeds"),
        pytest.param(_fails, {}, id="it fails"),
        pytest.param(_hangs, {"timeout": 0.05}, id="it times out"),
        pytest.param(_at_first(lambda: Retryable("not yet")), {"retries": 2}, id="it succeeds in the end"),
        pytest.param(_is_never_ready, {"retries": 1}, id="it fails in the end"),
        pytest.param(_fails, {"retries": 1}, id="it fails and is not tried again"),
        pytest.param(_fine_in_a_thread, {}, id="in a thread it succeeds"),
        pytest.param(_fails_in_a_thread, {}, id="in a thread it fails"),
        pytest.param(_is_late_in_a_thread, {"timeout": 0.02}, id="in a thread it times out"),
        pytest.param(_fine, {"serial_key": "n"}, id="one at a time"),
        pytest.param(_fine, {"delivery": "at_most_once"}, id="at most once"),
        pytest.param(_fine, {"concurrency": 2}, id="some at a time"),
    ],
)
@pytest.mark.parametrize("limited", [False, True])
async def test_a_call_that_is_over_holds_nothing(
    function: Callable[[int], Any], options: dict[str, Any], limited: bool, garbage: Garbage
) -> None:
    await _executed(function, options | ({"limit": Limit("api", "1000/s")} if limited else {}), garbage)


async def test_a_call_whose_limit_was_paused_holds_nothing(garbage: Garbage) -> None:
    function = _at_first(lambda: RateLimited(after=0.01))
    await _executed(function, {"limit": Limit("api", "1000/s")}, garbage)


async def test_a_call_that_was_handed_off_holds_nothing_until_its_hand_offs_time_is_up() -> None:
    app, may_end = App("t"), asyncio.Event()

    @app.tool(queue="q", description="It.")
    async def it(n: int) -> str:
        await may_end.wait()
        return "fine"

    async with ToolBench(app).running() as bench:
        await bench.assign()
        bench.deliver(*(call(offset, "it", {"n": offset}) for offset in range(CALLS)))
        await until(lambda: bench.worker.running == CALLS, what="all run")
        tasks = [ref(job.task) for job in bench.worker._calls.running() if job.task is not None]
        await bench.revoke()
        may_end.set()
        await until(lambda: not bench.worker._calls._serving, what="their tasks have ended")
        at_most = 1  # the timer of the timeouts has the context of one
        await until(lambda: len([1 for task in tasks if task()]) <= at_most, what="they are freed with what they hold")
    assert len(tasks) == CALLS


async def _executed(function: Callable[[int], Any], options: dict[str, Any], garbage: Garbage) -> None:
    app = App("t")
    app.tool(queue="q", name="it", description="It.", **options)(function)
    async with ToolBench(app).running() as bench:
        await bench.assign()
        await _all(bench, range(5))
        with garbage.kept():
            await _all(bench, range(5, 5 + CALLS))
        assert not garbage.of_ours, "they would be there until the collector comes"


async def _all(bench: ToolBench, offsets: range) -> None:
    bench.deliver(*(call(offset, "it", {"n": offset}) for offset in offsets))
    await until(lambda: len(bench.sent.returned) == offsets.stop and not bench.worker.running, what="all are over")
    await until(lambda: not bench.worker._calls._serving, what="their tasks have ended")
    await until(lambda: not bench.executor.busy_threads, what="threads that are late are free")
