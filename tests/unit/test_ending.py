"""A worker that cannot go on says so at once, and its process ends, even if what it has cancelled does not.

Responsible for: `tasks.Group`, `alongside`, what the tool role makes of them, and the deadline of
`cli/commands/worker.py`.
Must never: start a process (tests/acceptance/test_cli_workers). Called by: pytest.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest
from tests.bench.settings import settings_for
from tests.support.bench import ToolBench, call
from tests.support.virtual import virtually
from tests.support.wait import until

from anabranch import App, agent_role
from anabranch.agent.model.seam import Model
from anabranch.agent_role import serve_agent
from anabranch.cli.commands import worker as module
from anabranch.cli.frame import run_async
from anabranch.codec import Outgoing
from anabranch.errors import Forbidden
from anabranch.kafka.memory.append import MemoryAppender
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Sent
from anabranch.roles import namespace_of, topic_specs
from anabranch.runtime import Shutdown
from anabranch.tasks import Group, alongside, asked_by_signals, bounded
from anabranch.tool_role import serve_tools


async def fails() -> None:
    raise Forbidden("not allowed")


async def test_a_group_tells_of_a_failure_while_others_are_still_ending() -> None:
    told: list[BaseException] = []
    may_end = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await may_end.wait()

    async def group() -> None:
        async with Group(told.append) as tasks:
            tasks.watch(tasks.create_task(stubborn()))
            await asyncio.sleep(0)
            tasks.watch(tasks.create_task(fails()))

    grouping = asyncio.create_task(group())
    try:
        await until(lambda: told, what="it is told")
        assert not grouping.done()
    finally:
        may_end.set()
    with pytest.raises(ExceptionGroup):
        await grouping
    assert [str(error) for error in told] == ["not allowed"]


async def test_a_task_that_is_cancelled_has_not_failed() -> None:
    told: list[BaseException] = []
    async with Group(told.append) as tasks:
        tasks.watch(tasks.create_task(asyncio.Event().wait())).cancel()
    assert told == []


async def test_a_group_that_is_ending_begins_nothing_more() -> None:
    began: list[object] = []

    async def group() -> None:
        async with Group(lambda error: None) as tasks:

            async def late() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    began.append(tasks.begin(fails(), "too late"))

            tasks.begin(late(), "late")
            await asyncio.sleep(0)
            tasks.begin(fails(), "fails")

    with pytest.raises(ExceptionGroup) as ended:
        await group()
    assert [str(error) for error in ended.value.exceptions] == ["not allowed"]
    assert began == [None]


async def test_the_death_of_what_runs_alongside_is_told() -> None:
    told: list[BaseException] = []
    with pytest.raises(Forbidden):
        async with alongside(fails(), "reader", told.append):
            await asyncio.Event().wait()
    assert [str(error) for error in told] == ["not allowed"]


@pytest.mark.parametrize("raised", [None, LookupError("a mistake of ours")])
async def test_a_death_in_the_turn_in_which_the_block_ends_cancels_nobody(raised: Exception | None) -> None:
    told: list[BaseException] = []

    async def block() -> str:
        async with alongside(fails(), "reader", told.append):
            await asyncio.sleep(0)
            if raised is not None:
                raise raised
        await asyncio.sleep(0)
        return "went on"

    (ended,) = await asyncio.gather(block(), return_exceptions=True)
    assert ended == (raised or "went on")
    assert told == []


async def test_a_tool_that_does_not_let_go_does_not_keep_a_failure_secret() -> None:
    app, may_end = App("t"), asyncio.Event()

    @app.tool(queue="q")
    async def stubborn() -> str:
        """Ends when it likes to."""
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue
        return "ended"

    @app.tool(queue="q")
    async def quick() -> str:
        """End."""
        return "ended"

    told: list[BaseException] = []
    bench = ToolBench(app)
    bench.worker.on_failure = told.append

    def forbidden(record: Outgoing, once: bool = False) -> Sent:
        sent = Sent()
        sent.fail(Forbidden("not allowed"))
        return sent

    async def serve() -> None:
        async with bench.running():
            await bench.assign()
            bench.deliver(call(0, "stubborn"))
            await until(lambda: bench.worker.running == 1, what="it runs")
            bench.sent.append = forbidden  # type: ignore[method-assign]  # the log takes no results any more
            bench.deliver(call(1, "quick"))
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    try:
        await until(lambda: told, what="it is told")
        assert not serving.done(), "the stubborn one is waited for"
    finally:
        may_end.set()
    with pytest.raises(ExceptionGroup):
        await serving
    assert "not allowed" in str(told[0])


def test_the_last_word_of_a_worker_is_that_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that word takes to be written: who reads it last would take the worker for a living one."""
    app, flush = App("t"), MemoryAppender.flush
    app.tool(queue="q", name="it", description="It.")(fails)
    settings = settings_for("memory:0", "ending")
    settings = replace(settings, worker=replace(settings.worker, heartbeat_s=1.0))
    broker = MemoryBroker(topic_specs(app, settings))

    async def slowly(appender: MemoryAppender, timeout_s: float) -> int:
        await asyncio.sleep(3.0)
        return await flush(appender, timeout_s)

    async def run() -> None:
        shutdown = Shutdown()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_tools(app, "q", settings, shutdown, broker=broker.another()))
            await shutdown.ready.wait()
            shutdown.ask()

    monkeypatch.setattr(MemoryAppender, "flush", slowly)
    virtually(run)
    said = broker.records(Place(namespace_of(app, settings).registry, 0))
    words = [record.value for record in said if (record.key or b"").startswith(b"worker/")]
    assert len(words) > 1
    assert [word is None for word in words] == [False] * (len(words) - 1) + [True]


# --- orders to exit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [SystemExit, KeyboardInterrupt])
def test_an_order_to_exit_in_a_task_of_a_tool_ends_nothing_but_its_call(order: type[BaseException]) -> None:
    app = App("t")

    async def exits() -> None:
        raise order("that is all")

    @app.tool(queue="q")
    async def gathers() -> str:
        """Gather."""
        await asyncio.gather(exits(), asyncio.sleep(600))
        return "gathered"

    @app.tool(queue="q")
    async def groups() -> str:
        """Group."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(exits())
        return "grouped"

    async def serve() -> list[str]:
        bench = ToolBench(app)
        with asked_by_signals(lambda: None):
            async with bench.running():
                await bench.assign()
                bench.deliver(call(0, "gathers"), call(1, "groups"))
                await until(lambda: len(bench.sent.returned) == 2, what="both have results")
        return [orjson.loads(record.value or b"")["content"] for record in bench.sent.records]

    failed = f"failed: {order.__name__}: that is all"
    assert sorted(run_async(serve())) == [f"gathers {failed}", f"groups {failed}"]


@pytest.mark.parametrize("order", [SystemExit(3), KeyboardInterrupt()])
def test_an_order_to_exit_of_the_command_itself_ends_it(order: BaseException) -> None:
    async def command() -> None:
        await asyncio.sleep(0)
        raise order

    with pytest.raises(type(order)):
        run_async(command())


def test_ctrl_c_where_nobody_asks_for_signals_ends_the_command() -> None:
    began: list[str] = []

    async def command() -> None:
        try:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.sleep(600)
        finally:
            began.append("to end")

    with pytest.raises(KeyboardInterrupt):
        run_async(command())
    assert began == ["to end"]


# --- the deadline of a process ----------------------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Is set, with the seconds that it had, when the process would be ended."""
    event = threading.Event()
    event.seconds = None  # type: ignore[attr-defined]

    def end(seconds: float) -> None:
        event.seconds = seconds  # type: ignore[attr-defined]
        event.set()

    monkeypatch.setattr(module, "_end", end)
    return event


def test_a_process_is_ended_when_its_time_is_up(ended: Any) -> None:
    with module._Deadline() as deadline:
        deadline.within(0.01)
        assert ended.wait(5)
    assert ended.seconds == 0.01


def test_a_shorter_time_holds_and_a_longer_one_does_not(ended: Any) -> None:
    with module._Deadline() as deadline:
        deadline.within(600.0)
        deadline.within(0.02)
        deadline.within(300.0)
        assert ended.wait(5)
    assert ended.seconds == 0.02


def test_a_process_that_is_done_in_time_is_left_alone(ended: Any) -> None:
    with module._Deadline() as deadline:
        deadline.within(600.0)
    for thread in threading.enumerate():
        if thread.name == "deadline":
            thread.join(5)
    assert not any(thread.name == "deadline" for thread in threading.enumerate())
    assert not ended.is_set()


async def test_what_is_to_end_in_time_is_cancelled_and_what_cancels_itself_cancels_nobody() -> None:
    said: list[str] = []

    async def stop(how: str) -> None:
        try:
            if how == "late":
                await asyncio.Event().wait()
            elif how == "cancelled":
                raise asyncio.CancelledError
            elif how == "wrong":
                raise OSError("it is gone")
        except asyncio.CancelledError:
            said.append(how)
            raise

    assert [await bounded(stop(how), 60.0) for how in ("well", "wrong", "cancelled")] == [True] * 3
    assert not await bounded(stop("late"), 0.01)
    await until(lambda: said == ["cancelled", "late"], what="both to be cancelled")


async def test_an_agent_worker_that_ends_before_it_knows_the_registry_leaves_nothing_that_was_never_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def forbidden(*_: object) -> None:
        raise Forbidden("the registry is not for you")

    monkeypatch.setattr(agent_role, "follow", forbidden)
    app, settings = App("shop"), settings_for("memory:0", "t")
    broker, model = MemoryBroker(topic_specs(app, settings)), cast(Model, object())  # which is not asked
    with pytest.raises(Forbidden, match="not for you"):
        await serve_agent(app, settings, Shutdown(), broker=broker, model=model)
    gc.collect()  # what was never begun is told of here, and that fails the test
