"""Runs one call of one tool: arguments typed, under its timeout, in the loop, a thread or a process.

Whatever the tool does, what comes out is a result for the model: an error's text says what was wrong. It
knows no Kafka and no queue: `serving.py` appends what comes out of here. `tries.py` times each try, `failures.py`
says what a tool's error is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_process
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from anabranch.app import RateLimited, Retryable, Tool
from anabranch.config import ToolSettings
from anabranch.content import ResultError, cut, to_content
from anabranch.declarations.schema import ArgumentsError
from anabranch.fields import Content, Json
from anabranch.limits import Paused, ShareLost
from anabranch.log_events import ResultOutcome
from anabranch.messages import ToolCall
from anabranch.tools.contained import ELSEWHERE, alone, contained, encoded
from anabranch.tools.failures import described, ends_us, kind_of, text_of
from anabranch.tools.slots import Slots, Whose
from anabranch.tools.steps import Steps
from anabranch.tools.tries import SWALLOWED_S, Gate, Retried, Work, timeouts
from anabranch.values import frozen

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.2, 10.0)
_RETRYABLE: Final = retry_if_exception_type(Retryable)
PAUSE_MAX_S: Final = 300.0
"""The longest pause for which no call is left to wait: after it another one finds out."""
RETRIED: Final = 100
"""How many pauses of a call are remembered: its API may ask for them until its deadline."""


@frozen()
class Execution:
    """What a call came to. Times are epoch seconds; `tries` counts from 1.

    `began_at` is when its function first started, after all waiting, and `ran_s` what all tries took without any; None
    and 0 if it never did.
    """

    outcome: ResultOutcome
    content: Content
    started_at: float
    finished_at: float
    tries: int
    began_at: float | None = None
    ran_s: float = 0.0
    error: str | None = None
    """What kind of error its result is, in a word: the name of the exception, say."""
    retried: tuple[Retried, ...] = ()


class Executor:
    """The places where tools run: the loop, a pool of threads, a pool of processes."""

    def __init__(self, settings: ToolSettings, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._timeouts = timeouts()
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="tool")
        self._thread_slots = Slots(settings.threads, settings.interactive_weight)
        self._process_slots = Slots(settings.processes, settings.interactive_weight)
        self._process_limit = anyio.CapacityLimiter(settings.processes)
        self._run_in = {"loop": self._in_loop, "thread": self._in_thread, "process": self._in_process}
        self._idle = deque[float]()
        self.busy_threads = 0
        self._left = set[asyncio.Task[Any]]()  # coroutines that outlive their timeouts

    def close(self) -> None:
        """A thread that hangs cannot be stopped, and is not waited for."""
        self._timeouts.clear()
        for task in self._left:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def execute(
        self, tool: Tool, arguments: dict[str, Json], call: ToolCall, gate: Gate | None = None
    ) -> Execution:
        """Run the call, with the retries that its tool asks for; a `gate` is passed before each try."""
        started, kind = self._now(), None
        work = Work(tool, arguments, call, gate, self._timeouts)
        try:
            if tool.retries == 0:  # the common case, and retrying costs more than a quick tool
                content = await self._tried(work)
            else:
                content = await self._tried_again(work)
            outcome: ResultOutcome = "ok"
        except TimeoutError:
            outcome, kind = "timeout", "timeout"
            content = f"{tool.name} timed out: it gave no result within {self._given(tool, started)}"
        except ArgumentsError as error:
            outcome, kind, content = "error", "ArgumentsError", f"invalid arguments for {tool.name}: {error}"
        except ResultError as error:
            outcome, kind = "error", "unsendable"
            content = f"{tool.name} returned what cannot be sent to the model: {error}"
        except BaseException as error:
            if isinstance(error, ShareLost) or ends_us(error):
                raise
            kind, said = kind_of(error), described(error)
            outcome, content = "error", f"{tool.name} failed: {said}"
            work.told().log.warning("%s failed: %s", tool.name, kind, exc_info=error, extra={"content": said})
        return Execution(
            outcome, content, started, self._now(), work.number, work.began_at, work.ran_s, kind, work.retried
        )

    async def _tried_again(self, work: Work) -> Content:
        """Tries, until one succeeds or there may be no more. Of what retrying has made, nothing leads to itself in the
        end: it would keep the call.
        """
        begun: list[RetryCallState] = []
        retrying = self._retrying(work, begun)
        try:
            return await retrying(self._tried, work)
        finally:
            retrying.iter_state.reset()
            for state in begun:
                state.outcome = None
            begun.clear()

    def _retrying(self, work: Work, begun: list[RetryCallState]) -> AsyncRetrying:
        return AsyncRetrying(
            before=partial(self._note_try, work, begun),
            retry=_RETRYABLE,
            stop=partial(self._is_over, stop_after_attempt(work.tool.retries + 1), work.call),
            wait=_wait,
            before_sleep=partial(self._note_retry, work),
            reraise=True,
        )

    def _note_try(self, work: Work, begun: list[RetryCallState], state: RetryCallState) -> None:
        work.number = state.attempt_number
        begun.append(state)

    def _note_retry(self, work: Work, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        work.retried += (Retried("retry", self._now(), type(error).__name__),)

    def _is_over(self, enough: Callable[[RetryCallState], bool], call: ToolCall, state: RetryCallState) -> bool:
        """No retry begins past the call's deadline."""
        return enough(state) or self._now() + state.upcoming_sleep >= call.deadline

    async def _tried(self, work: Work) -> Content:
        """One try. What the API refuses for being too much is none: the call waits, and goes on as if nothing was."""
        gate, run = work.gate, self._run_in[work.tool.run_in]
        while True:
            try:
                if gate is None:
                    return await run(work, work.function())
                async with gate.a_try():
                    return await run(work, work.function())
            except Paused:
                continue
            except RateLimited as error:
                if self._now() + error.after >= work.call.deadline:
                    if gate is not None:
                        await gate.pause(min(error.after, PAUSE_MAX_S))
                    raise
                work.retried = (*work.retried[-RETRIED:], Retried("paused", self._now(), type(error).__name__))
                said = {"content": text_of(error)}
                asks = "%s is paused for %g s: its API asks for that"
                work.told().log.info(asks, work.tool.name, error.after, extra=said)
                await (asyncio.sleep(max(error.after, BACKOFF_S[0])) if gate is None else gate.pause(error.after))

    def _given(self, tool: Tool, started: float) -> str:
        if self._now() - started < tool.spec.timeout_s * 0.99:
            return f"the {self._now() - started:.1f} s that were left until its deadline"
        return f"{tool.spec.timeout_s:g} s"

    def _timed(self, work: Work) -> Work:
        """Around the function itself, in all three places where it may run. Raises `TimeoutError` past the deadline."""
        now = self._now()
        work.time_s = min(work.tool.spec.timeout_s, work.call.deadline - now)
        if work.time_s <= 0:
            raise TimeoutError
        if work.began_at is None:
            work.began_at = now
        return work

    async def _in_loop(self, work: Work, function: Callable[[], Any]) -> Content:
        if work.gate is not None:
            await work.gate.start()
        with self._timed(work):
            return _content(work, await self._awaited(work, function()))

    async def _awaited(self, work: Work, value: Any) -> Any:
        """What the function returned, or its coroutine does."""
        if not inspect.iscoroutine(value):
            return await value if inspect.isawaitable(value) else value
        work.steps = steps = Steps(value)
        try:
            return await steps
        finally:
            work.steps = None
            if steps.is_left:
                self._leave(work, steps)

    def _leave(self, work: Work, steps: Steps) -> None:
        log.warning(
            "%s goes on though it was cancelled %g s ago: its call is over without it. Let CancelledError pass",
            work.tool.name, SWALLOWED_S, extra={"call_id": work.call.call_id, "run_id": work.call.run_id},
        )  # fmt: skip
        task = asyncio.get_running_loop().create_task(_rest_of(steps), name=f"what {work.tool.name} goes on with")
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def _slot(self, slots: Slots, call: ToolCall) -> None:
        """Wait for a place: as long as the call has, and without counting it as the tool's time."""
        async with asyncio.timeout(self._left_s(call)):
            await slots.acquire(Whose(call.tenant, call.run_id, call.lane or "interactive"))

    def _left_s(self, call: ToolCall) -> float | None:
        left = max(0.0, call.deadline - self._now())
        return left if math.isfinite(left) else None

    async def _in_thread(self, work: Work, function: Callable[[], Any]) -> Content:
        """A thread that outlives its timeout keeps its slot: it is as busy as before."""
        await self._slot(self._thread_slots, work.call)
        try:
            if work.gate is not None:
                await work.gate.start()
            timed = self._timed(work)
            running = self._submit(_encoding(work, function))
        except BaseException:
            self._thread_slots.release()
            raise
        self.busy_threads += 1
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: self._tell(loop))
        try:
            with timed:
                made = await asyncio.wrap_future(running)
                return _content(work, await self._awaited(work, made)) if inspect.isawaitable(made) else made
        finally:
            del running  # its error's traceback leads here: the two would keep each other, and the call

    def _submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Raises `RuntimeError` where no thread can be started. It lies in the pool's queue all the same then: whoever
        comes upon it there finds nothing to do.
        """
        wanted = [function]
        try:
            return self._threads.submit(copy_context().run, _contained_first, wanted)
        except RuntimeError:
            wanted.clear()
            raise

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the thread has outlived the loop
            loop.call_soon_threadsafe(self._thread_is_free)

    def _thread_is_free(self) -> None:
        self.busy_threads -= 1
        self._thread_slots.release()

    async def _in_process(self, work: Work, function: Callable[[], Any]) -> Content:
        """A process that outlives its timeout is killed."""
        await self._slot(self._process_slots, work.call)
        try:
            run = partial(alone, ELSEWHERE, _encoding(work, function))
            await self._started(work, run)
            if work.gate is not None:
                await work.gate.start()
            with self._timed(work):
                made: Content = await anyio.to_process.run_sync(run, cancellable=True, limiter=self._process_limit)
            self._idle.append(time.monotonic())
            return made
        finally:
            self._process_slots.release()

    async def _started(self, work: Work, run: Callable[[], Any]) -> None:
        """Have a process that has imported the tool's module: to start one takes up to seconds, which are not the
        tool's own. `_idle` says since when those are idle that exist, as far as we know; the last one is taken first.
        """
        if self._idle:
            now, _ = time.monotonic(), self._idle.pop()
            while self._idle and now - self._idle[0] >= anyio.to_process.WORKER_MAX_IDLE_TIME:
                self._idle.popleft()
            return
        async with asyncio.timeout(self._left_s(work.call)):
            await anyio.to_process.run_sync(callable, run, cancellable=True, limiter=self._process_limit)


def _content(work: Work, value: Any) -> Content:
    return cut(to_content(value), work.tool.spec.max_result)


def _encoding(work: Work, function: Callable[[], Any]) -> Callable[[], Any]:
    return partial(encoded, function, work.tool.spec.max_result)


def _contained_first(wanted: list[Callable[[], Any]]) -> Any:
    return contained(wanted.pop()) if wanted else None


async def _rest_of(steps: Steps) -> None:
    try:
        await steps
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - nobody asks any more, and the worker must not end with it
        log.debug("what went on after its timeout ended with %s", type(error).__name__)


def _wait(state: RetryCallState) -> float:
    """Full jitter, or what the tool asks for."""
    error = state.outcome.exception() if state.outcome is not None else None
    pause = wait_random_exponential(multiplier=BACKOFF_S[0], max=BACKOFF_S[1])(state)
    return max(pause, error.after) if isinstance(error, Retryable) and error.after is not None else pause
