"""One call of one tool: whatever it does, a result for the model comes out, and its place is free again when it is.

Responsible for: `tools/executor.py`.
Must never: know Kafka or a queue.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from tests.support.wait import until

from anabranch.app import App, Call, RateLimited, Retryable, Tool
from anabranch.config import ToolSettings
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.tools import executor as module
from anabranch.tools.executor import Execution, Executor


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    made = Executor(ToolSettings(threads=1, processes=1))
    yield made
    made.close()


def tool(function: Callable[..., Any], **options: Any) -> Tool:
    app = App("t")
    app.tool(**options)(function)
    (made,) = app.tools.values()
    return made


def call(deadline: float = float("inf")) -> ToolCall:
    call_id, reply = "r/1.a/0", ReplyTopic("t.agent.log", 0)
    return ToolCall(
        call_id=call_id, run_id="r", agent="a", tool="t", dispatch=1, deadline=deadline, idempotency_key=call_id,
        reply=reply,
    )  # fmt: skip


async def run(executor: Executor, function: Callable[..., Any], arguments: Any = None, **options: Any) -> Execution:
    deadline = options.pop("call_deadline", float("inf"))
    return await executor.execute(tool(function, **options), arguments or {}, call(deadline=deadline))


# --- where it runs ----------------------------------------------------------------------


async def test_a_coroutine_runs_in_the_loop(executor: Executor) -> None:
    async def doubled(number: int) -> int:
        assert threading.current_thread() is threading.main_thread()
        return number * 2

    done = await run(executor, doubled, {"number": 4})
    assert (done.outcome, done.content, done.tries) == ("ok", "8", 1)
    assert done.started_at <= done.finished_at


async def test_a_call_that_is_over_leaves_nothing_behind_until_its_time_would_have_come(executor: Executor) -> None:
    class Arguments(dict[str, Any]):
        """A dictionary of which it can be known whether anybody has it."""

    async def doubled(number: int) -> int:
        return number * 2

    arguments = Arguments(number=4)
    kept = weakref.ref(arguments)
    assert (await run(executor, doubled, arguments, timeout=3600)).content == "8"
    del arguments
    gc.collect()
    assert kept() is None


async def test_a_plain_function_runs_in_a_thread(executor: Executor) -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert (await run(executor, where)).content == "false"


def process_id() -> int:
    return os.getpid()


def sleeps_for_ever(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def exits() -> None:
    sys.exit(3)


def dies() -> None:
    os._exit(1)


def writes() -> str:
    os.write(1, b"RETURN 3\n")
    return "written"


def starts_a_writer() -> str:
    subprocess.run(["sh", "-c", "echo told; head -c 500000 /dev/zero >&2; cat"], check=True)
    return "started"


def leaves_a_writer() -> str:
    subprocess.Popen(["sh", "-c", "cat; echo told"])
    return "left"


def forks() -> str:
    return "parent" if os.fork() else "child"


async def test_a_function_for_a_process_runs_in_one(executor: Executor) -> None:
    done = await run(executor, process_id, run_in="process", timeout=60)
    assert done.outcome == "ok"
    assert int(str(done.content)) != os.getpid()


async def test_a_tool_gets_its_call_with_the_number_of_the_try(executor: Executor) -> None:
    async def told(call: Call) -> str:
        if call.attempt < 3:
            raise Retryable("again", after=0)
        return f"{call.id} {call.attempt} {call.idempotency_key}"

    done = await run(executor, told, retries=5)
    assert (done.content, done.tries) == ("r/1.a/0 3 r/1.a/0", 3)


def negated(n: int) -> int:
    return -n


async def anegated(n: int) -> int:
    return -n


class Line:
    """A gate that writes down what happens at it."""

    def __init__(self, late: bool = False) -> None:
        self.seen, self.late = list[str](), late

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


# --- what goes wrong ----------------------------------------------------------------------


class Odd(BaseException):
    pass


class Unsayable(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class Ending(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad id"), "ValueError: bad id"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError("the API is slow"), "TimeoutError: the API is slow"),
        (Retryable("busy"), "busy"),
        (StopIteration(), "StopIteration"),
        (ExceptionGroup("both", [ValueError("x")]), "ExceptionGroup: both (1 sub-exception)"),
        (Odd("odd"), "Odd: odd"),
        (ValueError("a lone \ud800"), "ValueError: a lone ?"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (Unsayable(), "Unsayable: (its text cannot be had: LookupError)"),
        (Ending(), "Ending: (its text cannot be had: SystemExit)"),
    ],
)
@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_whatever_a_tool_raises_is_an_error_for_the_model(
    executor: Executor, error: BaseException, told: str, run_in: str
) -> None:
    async def raises() -> None:
        raise error

    def raises_in_a_thread() -> None:
        raise error

    done = await asyncio.wait_for(run(executor, raises if run_in == "loop" else raises_in_a_thread), 10)
    assert done.outcome == "error"
    assert told in str(done.content)
    assert (await run(executor, lambda: 1, name="next")).outcome == "ok"


@pytest.mark.parametrize(("function", "told"), [(exits, "SystemExit"), (dies, "its process ended without a result")])
async def test_a_process_that_ends_is_an_error_and_the_next_one_runs(
    executor: Executor, function: Any, told: str
) -> None:
    ended = await run(executor, function, run_in="process", timeout=60)
    assert (ended.outcome, told in str(ended.content)) == ("error", True)
    assert (await run(executor, process_id, run_in="process", timeout=60)).outcome == "ok"


@pytest.mark.parametrize(
    ("function", "result"),
    [(writes, "written"), (starts_a_writer, "started"), (leaves_a_writer, "left"), (forks, "parent")],
)
async def test_what_a_process_and_its_own_write_is_nobodys_result(
    executor: Executor, function: Any, result: str
) -> None:
    own = (await run(executor, process_id, run_in="process", timeout=60)).content
    done = await run(executor, function, run_in="process", timeout=60)
    assert (done.outcome, done.content) == ("ok", result)
    for _ in range(3):
        assert (await run(executor, process_id, run_in="process", timeout=60)).content == own


async def test_arguments_that_do_not_fit_are_told(executor: Executor) -> None:
    async def doubled(number: int) -> int:
        return number * 2

    done = await run(executor, doubled, {"number": "four"})
    assert done.outcome == "error"
    assert "invalid arguments for doubled" in str(done.content)


async def test_a_result_that_has_no_json_is_told(executor: Executor) -> None:
    async def odd() -> object:
        return object()

    done = await run(executor, odd)
    assert done.outcome == "error"
    assert "cannot be sent to the model" in str(done.content)


def two_process_ids() -> dict[str, Any]:
    return {"ids": (os.getpid() for _ in range(2))}


def numbers_for_ever() -> dict[str, Any]:
    def numbers() -> Iterator[int]:
        while True:
            yield 1
            time.sleep(0.01)
            if gone.is_set():
                return

    return {"numbers": numbers()}


gone = threading.Event()


@pytest.mark.parametrize("run_in", ["thread", "process"])
async def test_a_generator_in_a_result_runs_where_its_tool_does(executor: Executor, run_in: str) -> None:
    def thread_names() -> dict[str, Any]:
        return {"ids": (threading.current_thread().name for _ in range(2))}

    function = thread_names if run_in == "thread" else two_process_ids
    done = await run(executor, function, run_in=run_in, timeout=60)
    one, other = orjson.loads(str(done.content))["ids"]
    assert one == other
    assert one not in (threading.current_thread().name, os.getpid())


@pytest.mark.parametrize("run_in", ["thread", "process"])
async def test_a_generator_without_end_in_a_result_ends_at_its_timeout(executor: Executor, run_in: str) -> None:
    try:
        done = await run(executor, numbers_for_ever, run_in=run_in, timeout=0.2)
        assert done.outcome == "timeout"
    finally:
        gone.set()


async def test_a_long_result_is_cut_visibly(executor: Executor) -> None:
    async def long() -> str:
        return "x" * 5000

    done = await run(executor, long, max_result=1000)
    assert "[cut: 1,000 of 5,000 bytes shown]" in str(done.content)


async def test_a_cancelled_call_is_cancelled(executor: Executor) -> None:
    begun = asyncio.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run(executor, waits))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


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
    monkeypatch.setattr(module, "SWALLOWED_S", 0.05)
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


async def test_a_process_past_its_timeout_is_killed(executor: Executor, tmp_path: Any) -> None:
    path = tmp_path / "pid"
    assert (await run(executor, process_id, run_in="process", timeout=60)).outcome == "ok"  # it is up from here on
    running = asyncio.create_task(run(executor, sleeps_for_ever, {"path": str(path)}, run_in="process", timeout=2))
    await until(lambda: path.exists() and path.read_text())
    assert (await running).outcome == "timeout"
    await until(lambda: not _alive(int(path.read_text())))


async def test_no_call_begins_past_its_deadline(executor: Executor) -> None:
    begun: list[int] = []

    async def begins() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    done = await run(executor, begins, call_deadline=time.time() + 0.05)
    assert done.outcome == "timeout"
    assert len(begun) == 1


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
