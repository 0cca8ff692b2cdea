"""The tries of one call: what each has to wait for, the time it has, and when there is another one.

Responsible for: `tools/tries.py`, and when `tools/executor.py` tries again.
Must never: know Kafka or a queue.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.executing import call, process_id, run, sleeps_for_ever, tool
from tests.support.wait import until

from anabranch.app import Call, RateLimited, Retryable
from anabranch.config import ToolSettings
from anabranch.limits import Paused
from anabranch.tools import executor as module
from anabranch.tools import tries as tries_module
from anabranch.tools.executor import Executor


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    made = Executor(ToolSettings(threads=1, processes=1))
    yield made
    made.close()


async def test_a_tool_gets_its_call_with_the_number_of_the_try(executor: Executor) -> None:
    async def told(call: Call) -> str:
        if call.attempt < 3:
            raise Retryable("again", after=0)
        return f"{call.id} {call.attempt} {call.idempotency_key}"

    done = await run(executor, told, retries=5)
    assert (done.content, done.tries) == ("r/1.a/0 3 r/1.a/0", 3)


# --- what each has to wait for ----------------------------------------------------------------------


def negated(n: int) -> int:
    return -n


async def anegated(n: int) -> int:
    return -n


class Line:
    """A gate that writes down what happens at it."""

    def __init__(self, late: bool = False, pauses: int = 0, takes_s: float = 0.0) -> None:
        self.seen, self.late, self.pauses, self.takes_s = list[str](), late, pauses, takes_s

    @asynccontextmanager
    async def a_try(self) -> AsyncIterator[None]:
        if self.late:
            raise TimeoutError
        self.seen.append("in")
        try:
            yield
        finally:
            self.seen.append("out")

    async def start(self) -> None:
        await asyncio.sleep(self.takes_s)
        if self.pauses:
            self.pauses -= 1
            raise Paused
        self.seen.append("start")

    async def pause(self, seconds: float) -> None:
        self.seen.append(f"pause {seconds:g}")


@pytest.mark.parametrize("run_in", ["loop", "thread", "process"])
async def test_each_try_passes_the_gate(executor: Executor, run_in: Any) -> None:
    line, made = Line(), tool(anegated if run_in == "loop" else negated, run_in=run_in)
    done = await executor.execute(made, {"n": -3}, call(), line)
    assert (done.content, line.seen) == ("3", ["in", "start", "out"])


async def test_a_pause_that_the_api_asks_for_uses_up_no_retry(executor: Executor) -> None:
    answers: list[Exception | None] = [RateLimited(after=3), RateLimited(after=4), Retryable("busy", after=0), None]

    async def ask(call: Call) -> str:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return f"try {call.attempt}"

    line = Line()
    done = await executor.execute(tool(ask, retries=1), {}, call(), line)
    assert (done.outcome, done.content, done.tries) == ("ok", "try 2", 2)
    a_try = ["in", "start", "out"]
    assert line.seen == [*a_try, "pause 3", *a_try, "pause 4", *a_try, *a_try]


@pytest.mark.parametrize(("after", "paused"), [(60, "pause 60"), (1e300, "pause 300")])
async def test_a_pause_beyond_the_deadline_is_an_error_for_the_model_and_holds_up_the_others(
    executor: Executor, after: float, paused: str
) -> None:
    async def ask() -> str:
        raise RateLimited("the quota is used up", after=after)

    line = Line()
    done = await executor.execute(tool(ask, retries=3), {}, call(deadline=time.time() + 30), line)
    assert (done.outcome, done.content, done.tries) == ("error", "ask failed: the quota is used up", 1)
    assert line.seen == ["in", "start", "out", paused]


@pytest.mark.parametrize("run_in", ["loop", "thread", "process"])
async def test_one_that_has_its_turn_when_a_pause_begins_waits_anew_and_has_not_been_tried(
    executor: Executor, run_in: Any
) -> None:
    line, made = Line(pauses=2), tool(anegated if run_in == "loop" else negated, run_in=run_in)
    done = await executor.execute(made, {"n": -3}, call(), line)
    assert (done.content, done.tries, line.seen) == ("3", 1, ["in", "out", "in", "out", "in", "start", "out"])


async def test_a_pause_without_a_limit_is_waited_for(executor: Executor) -> None:
    answers: list[Exception | None] = [RateLimited(after=0), None]

    async def ask() -> str:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return "done"

    assert (await executor.execute(tool(ask), {}, call())).content == "done"


async def test_one_whose_time_is_over_in_the_line_has_timed_out(executor: Executor) -> None:
    done = await executor.execute(tool(negated), {"n": 1}, call(), Line(late=True))
    assert done.outcome == "timeout"


# --- time ----------------------------------------------------------------------


async def test_a_coroutine_past_its_timeout_is_cancelled(executor: Executor) -> None:
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    done = await run(executor, waits, timeout=0.05)
    assert (done.outcome, done.content) == ("timeout", "waits timed out: it gave no result within 0.05 s")
    assert ended.is_set()


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_a_coroutine_that_swallows_its_cancellation_is_left_to_itself(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, run_in: str
) -> None:
    monkeypatch.setattr(tries_module, "SWALLOWED_S", 0.05)
    swallowed, free, over = 0, asyncio.Event(), asyncio.Event()

    async def refuses() -> str:
        nonlocal swallowed
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                swallowed += 1
        over.set()
        raise SystemExit(3)

    def starts() -> Any:
        return refuses()

    done = await run(executor, refuses if run_in == "loop" else starts, timeout=0.05)
    assert done.outcome == "timeout"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await until(lambda: swallowed == 2, 5.0, "it goes on, and hears that it was left")
    free.set()
    await over.wait()
    await until(lambda: not executor._left, 5.0, "nothing is left of it")


async def test_a_coroutine_has_time_to_end_after_its_timeout(executor: Executor) -> None:
    async def tidies() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            tidied.append(True)

    tidied: list[bool] = []
    assert (await run(executor, tidies, timeout=0.02)).outcome == "timeout"
    assert tidied == [True]


async def test_a_hung_thread_keeps_its_place_until_it_ends(executor: Executor) -> None:
    release = threading.Event()
    begun: list[str] = []

    def hangs() -> None:
        begun.append("hangs")
        release.wait(30)

    def quick() -> str:
        begun.append("quick")
        return "ok"

    assert (await run(executor, hangs, timeout=0.05)).outcome == "timeout"
    waiting = asyncio.create_task(run(executor, quick, timeout=5))
    done = await run(executor, quick, name="later", call_deadline=time.time() + 0.05)
    assert done.outcome == "timeout"
    assert (begun, executor.busy_threads) == (["hangs"], 1)
    release.set()
    assert (await waiting).outcome == "ok"
    await until(lambda: executor.busy_threads == 0)


async def test_waiting_for_a_place_is_not_the_tools_time(executor: Executor) -> None:
    def takes(seconds: float) -> str:
        time.sleep(seconds)
        return "ok"

    made = tool(takes, timeout=0.4)
    done = await asyncio.gather(*(executor.execute(made, {"seconds": 0.15}, call()) for _ in range(4)))
    assert [one.outcome for one in done] == ["ok"] * 4


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_past_its_timeout_is_killed(executor: Executor) -> None:
    own = int(str((await run(executor, process_id, run_in="process", timeout=60)).content))
    assert (await run(executor, sleeps_for_ever, run_in="process", timeout=0.2)).outcome == "timeout"
    await until(lambda: not _alive(own), what="its process is gone")


async def test_no_call_begins_past_its_deadline(executor: Executor) -> None:
    begun: list[int] = []

    async def begins() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    done = await run(executor, begins, call_deadline=time.time() + 0.05)
    assert done.outcome == "timeout"
    assert len(begun) == 1


@pytest.mark.parametrize("in_thread", [True, False])
async def test_nor_does_one_whose_deadline_comes_while_it_is_about_to(executor: Executor, in_thread: bool) -> None:
    begun: list[int] = []

    async def begins() -> None:
        begun.append(1)

    line, function = Line(takes_s=0.05), (lambda: begun.append(1)) if in_thread else begins
    done = await executor.execute(tool(function, name="begins"), {}, call(deadline=time.time() + 0.02), line)
    assert (done.outcome, done.began_at, begun) == ("timeout", None, [])
    assert (await run(executor, negated, {"n": 1})).content == "-1", "the only thread is free"


async def test_where_no_thread_can_be_started_the_call_fails_and_the_next_one_has_its_place(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        done = await run(executor, lambda: begun.append(1), name="begins")
    assert (done.outcome, done.content) == ("error", "begins failed: RuntimeError: can't start new thread")
    assert (await run(executor, lambda: begun.append(2), name="begins")).outcome == "ok"
    assert begun == [2], "what has failed is not executed later"


# --- retries ----------------------------------------------------------------------


def failing(times: int, after: float | None = 0) -> tuple[list[int], Callable[[], Awaitable[str]]]:
    tries: list[int] = []

    async def fails() -> str:
        tries.append(len(tries) + 1)
        if len(tries) <= times:
            raise Retryable(f"try {len(tries)}", after=after)
        return "ok"

    return tries, fails


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.001, 0.01))


async def test_a_transient_error_is_tried_again(executor: Executor) -> None:
    tries, fails = failing(2)
    assert (await run(executor, fails, retries=2)).outcome == "ok"
    assert len(tries) == 3


async def test_when_the_tries_are_used_up_the_last_error_is_told(executor: Executor) -> None:
    tries, fails = failing(9)
    done = await run(executor, fails, retries=2)
    assert (done.outcome, done.content, done.tries, len(tries)) == ("error", "fails failed: try 3", 3, 3)


async def test_an_error_that_is_not_transient_is_not_tried_again(executor: Executor) -> None:
    tries: list[int] = []

    async def fails() -> None:
        tries.append(1)
        raise ValueError

    assert (await run(executor, fails, retries=5)).tries == 1
    assert len(tries) == 1


async def test_a_pause_that_the_tool_asks_for_is_kept(executor: Executor) -> None:
    _, fails = failing(1, after=0.1)
    done = await run(executor, fails, retries=1)
    assert done.outcome == "ok"
    assert done.finished_at - done.started_at >= 0.09


async def test_no_try_begins_past_the_deadline(executor: Executor) -> None:
    tries, fails = failing(9, after=30.0)
    done = await asyncio.wait_for(run(executor, fails, retries=5, call_deadline=time.time() + 5), 3)
    assert (done.outcome, done.content, len(tries)) == ("error", "fails failed: try 1", 1)
