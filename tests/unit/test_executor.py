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
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, field_validator
from tests.support import slow_to_import
from tests.support.executing import process_id, run

from anabranch.app import Retryable
from anabranch.config import ToolSettings
from anabranch.tools.executor import Executor


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    made = Executor(ToolSettings(threads=1, processes=1))
    yield made
    made.close()


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


def leaves_a_thread() -> str:
    threading.Thread(target=writes_later, daemon=True).start()
    return "left"


def writes_later() -> None:
    while True:
        writes()
        time.sleep(0.001)


def forks() -> str:
    return "parent" if os.fork() else "child"


async def test_a_function_for_a_process_runs_in_one(executor: Executor) -> None:
    done = await run(executor, process_id, run_in="process", timeout=60)
    assert done.outcome == "ok"
    assert int(str(done.content)) != os.getpid()


async def test_to_start_a_process_takes_none_of_the_tools_time(executor: Executor) -> None:
    done = await run(executor, slow_to_import.answer, run_in="process", timeout=0.5)
    assert (done.outcome, done.content) == ("ok", "there")
    assert done.ran_s < 0.5
    again = await run(executor, slow_to_import.answer, run_in="process", timeout=0.5)
    assert again.outcome == "ok"


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
    [
        (writes, "written"),
        (starts_a_writer, "started"),
        (leaves_a_writer, "left"),
        (leaves_a_thread, "left"),
        (forks, "parent"),
    ],
)
async def test_what_a_process_and_its_own_write_is_nobodys_result(
    executor: Executor, function: Any, result: str
) -> None:
    own = (await run(executor, process_id, run_in="process", timeout=60)).content
    done = await run(executor, function, run_in="process", timeout=60)
    assert (done.outcome, done.content) == ("ok", result)
    for _ in range(3):
        assert (await run(executor, process_id, run_in="process", timeout=60)).content == own


class Row(BaseModel):
    when: datetime

    @field_validator("when", mode="after")
    @classmethod
    def refuses(cls, when: datetime) -> datetime:
        raise ValueError(f"{when} " * 10_000)


async def test_of_very_many_mistakes_the_model_is_shown_the_first(executor: Executor) -> None:
    """What its schema says of a format is told to the model, and not checked before."""

    async def plan(whens: list[datetime], rows: dict[str, Row]) -> str:
        return "planned"

    arguments = {"whens": ["soon"] * 30_000, "rows": {"x" * 10_000: {"when": "2026-01-01"}}}
    done = await run(executor, plan, arguments)
    assert done.error == "ArgumentsError"
    assert "- whens.19: " in str(done.content)
    assert str(done.content).endswith("- and 29981 more")
    done = await run(executor, plan, {**arguments, "whens": []})
    assert len(str(done.content)) < 2_000


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
