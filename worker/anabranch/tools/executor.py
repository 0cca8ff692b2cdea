"""Runs one call of one tool: arguments typed, under its timeout, in the loop, a thread or a process.

Whatever the tool does, what comes out is a result for the model: an error's text says what was wrong. It
knows no Kafka and no queue; `worker.py` paces the calls and appends what comes out of here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final, NamedTuple, Protocol
from weakref import ReferenceType, ref

import anyio
import anyio.to_process
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from anabranch.app import Call, RateLimited, Retryable, Tool
from anabranch.config import ToolSettings
from anabranch.content import ResultError, cut, to_content
from anabranch.fields import Content, Json
from anabranch.limits import ShareLost
from anabranch.log_events import ResultOutcome
from anabranch.messages import ToolCall
from anabranch.schema import ArgumentsError
from anabranch.timers import Timers
from anabranch.tools.contained import Escaped, alone, contained, encoded
from anabranch.tools.slots import Slots, Whose
from anabranch.tools.steps import Steps
from anabranch.values import frozen

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.2, 10.0)
SHOWN: Final = 4000
PAUSE_MAX_S: Final = 300.0
"""The longest pause for which no call is left to wait: after it another one finds out."""
SWALLOWED_S: Final = 5.0
"""How long a coroutine may take to end once it is cancelled; then its call is over without it."""
RETRIED: Final = 100
"""How many pauses of a call are remembered: its API may ask for them until its deadline."""


class Retried(NamedTuple):
    """A try that was not the last: "retry" or "paused", when that was said (epoch seconds), and by what error."""

    name: str
    at: float
    error: str


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


class Gate(Protocol):
    """What each try of a call has to wait for."""

    def a_try(self) -> AbstractAsyncContextManager[None]:
        """Wait until the call may be tried. Raises `TimeoutError` if its time is over by then."""
        ...

    async def start(self) -> None:
        """Awaited inside of it, right before the function starts. Raises `ShareLost`: then the call is not ours."""
        ...

    async def pause(self, seconds: float) -> None:
        """The API behind the tool asks for a pause."""
        ...


class _Work:
    """One call while it is executed: when its function began, how long its tries ran, which were not the last.

    As a context it is the timeout of a try: only its own expiry is a `TimeoutError`, a tool's own is an error like any.
    """

    __slots__ = (
        *("arguments", "began_at", "call", "gate", "number", "ran_s", "retried", "time_s", "tool"),
        *("__weakref__", "_cancelling", "_rings", "_since", "_task", "_timeouts", "steps"),
    )  # fmt: skip

    def __init__(
        self, tool: Tool, arguments: dict[str, Json], call: ToolCall, gate: Gate | None, timeouts: _Timeouts
    ) -> None:
        self.tool, self.arguments, self.call, self.gate = tool, arguments, call, gate
        self.number = 1  # of this try
        self.time_s = 0.0  # of this try, at most
        self.began_at: float | None = None
        self.ran_s = 0.0
        self.retried: tuple[Retried, ...] = ()
        self._timeouts = timeouts
        self._task: asyncio.Task[Any] | None = None
        self.steps: Steps | None = None  # of its coroutine

    def function(self) -> Callable[[], Any]:
        """What is to be called. Raises `ArgumentsError`."""
        return partial(self.tool.function, **self.tool.bind(self.arguments, self.told))

    def told(self) -> Call:
        """What the tool itself may know."""
        call = self.call
        return Call(
            id=call.call_id,
            run_id=call.run_id,
            tool=self.tool.name,
            dispatch=call.dispatch,
            attempt=self.number,
            deadline=call.deadline,
            tenant=call.tenant,
            idempotency_key=call.idempotency_key,
            lane=call.lane or "interactive",
        )

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        assert task is not None, "calls are executed in tasks"
        self._cancelling, self._rings = task.cancelling(), 0
        self._timeouts.arm(ref(self), loop.time() + self.time_s)
        self._since = time.perf_counter()

    def ring(self) -> None:
        """Its time is up; or it was, and it goes on all the same."""
        if self._task is None:
            return
        if self.steps is not None:
            if self._rings:
                self.steps.leave()
            else:
                self._timeouts.arm(ref(self), _loop_now() + SWALLOWED_S)
        self._rings += 1
        self._task.cancel()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.ran_s += time.perf_counter() - self._since
        self._timeouts.disarm(ref(self))
        task, self._task = self._task, None
        was_us = bool(self._rings) and task is not None and _uncancelled(task, self._rings) <= self._cancelling
        if isinstance(error, TimeoutError):
            raise _ToolsOwn(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        if was_us and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error


def _uncancelled(task: asyncio.Task[Any], times: int) -> int:
    """How many orders to end it has left, once we have taken ours back."""
    for _ in range(times):
        task.uncancel()
    return task.cancelling()


_Timeouts = Timers[ReferenceType[_Work]]
"""A time that was disarmed is kept until it would have come: it must not keep the arguments of a call that is over."""


def _ring(work: ReferenceType[_Work]) -> None:
    if (late := work()) is not None:
        late.ring()


class Executor:
    """The places where tools run: the loop, a pool of threads, a pool of processes."""

    def __init__(self, settings: ToolSettings, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._timeouts: _Timeouts = Timers(_loop_now, _ring)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="tool")
        self._thread_slots = Slots(settings.threads, settings.interactive_weight)
        self._process_slots = Slots(settings.processes, settings.interactive_weight)
        self._process_limit = anyio.CapacityLimiter(settings.processes)
        self._run_in = {"loop": self._in_loop, "thread": self._in_thread, "process": self._in_process}
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
        work = _Work(tool, arguments, call, gate, self._timeouts)
        try:
            if tool.retries == 0:  # the common case, and retrying costs more than a quick tool
                content = await self._tried(work)
            else:
                async for attempt in self._retrying(work):
                    work.number = attempt.retry_state.attempt_number
                    with attempt:
                        content = await self._tried(work)
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
            if isinstance(error, ShareLost) or _ends_us(error):
                raise
            kind, said = _kind_of(error), _described(error)
            outcome, content = "error", f"{tool.name} failed: {said}"
            work.told().log.warning("%s failed: %s", tool.name, kind, exc_info=error, extra={"content": said})
        return Execution(
            outcome, content, started, self._now(), work.number, work.began_at, work.ran_s, kind, work.retried
        )

    def _retrying(self, work: _Work) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(Retryable),
            stop=partial(self._is_over, stop_after_attempt(work.tool.retries + 1), work.call),
            wait=_wait,
            before_sleep=partial(self._note_retry, work),
            reraise=True,
        )

    def _note_retry(self, work: _Work, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        work.retried += (Retried("retry", self._now(), type(error).__name__),)

    def _is_over(self, enough: Callable[[RetryCallState], bool], call: ToolCall, state: RetryCallState) -> bool:
        """No retry begins past the call's deadline."""
        return enough(state) or self._now() + state.upcoming_sleep >= call.deadline

    async def _tried(self, work: _Work) -> Content:
        """One try. What the API refuses for being too much is none: the call waits, and goes on as if nothing was."""
        gate, run = work.gate, self._run_in[work.tool.run_in]
        while True:
            try:
                if gate is None:
                    return await run(work, work.function())
                async with gate.a_try():
                    return await run(work, work.function())
            except RateLimited as error:
                if self._now() + error.after >= work.call.deadline:
                    if gate is not None:
                        await gate.pause(min(error.after, PAUSE_MAX_S))
                    raise
                work.retried = (*work.retried[-RETRIED:], Retried("paused", self._now(), type(error).__name__))
                said = {"content": _text_of(error)}
                asks = "%s is paused for %g s: its API asks for that"
                work.told().log.info(asks, work.tool.name, error.after, extra=said)
                await (asyncio.sleep(max(error.after, BACKOFF_S[0])) if gate is None else gate.pause(error.after))

    def _given(self, tool: Tool, started: float) -> str:
        if self._now() - started < tool.spec.timeout_s * 0.99:
            return f"the {self._now() - started:.1f} s that were left until its deadline"
        return f"{tool.spec.timeout_s:g} s"

    def _timed(self, work: _Work) -> _Work:
        """Around the function itself, in all three places where it may run."""
        now = self._now()
        if work.began_at is None:
            work.began_at = now
        work.time_s = min(work.tool.spec.timeout_s, max(0.0, work.call.deadline - now))
        return work

    async def _in_loop(self, work: _Work, function: Callable[[], Any]) -> Content:
        if work.gate is not None:
            await work.gate.start()
        with self._timed(work):
            return _content(work, await self._awaited(work, function()))

    async def _awaited(self, work: _Work, value: Any) -> Any:
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

    def _leave(self, work: _Work, steps: Steps) -> None:
        log.warning(
            "%s goes on though it was cancelled %g s ago: its call is over without it. Let CancelledError pass",
            work.tool.name, SWALLOWED_S, extra={"call_id": work.call.call_id, "run_id": work.call.run_id},
        )  # fmt: skip
        task = asyncio.get_running_loop().create_task(_rest_of(steps), name=f"what {work.tool.name} goes on with")
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def _slot(self, slots: Slots, call: ToolCall) -> None:
        """Wait for a place: as long as the call has, and without counting it as the tool's time."""
        left = max(0.0, call.deadline - self._now())
        async with asyncio.timeout(left if math.isfinite(left) else None):
            await slots.acquire(Whose(call.tenant, call.run_id, call.lane or "interactive"))

    async def _in_thread(self, work: _Work, function: Callable[[], Any]) -> Content:
        """A thread that outlives its timeout keeps its slot: it is as busy as before."""
        await self._slot(self._thread_slots, work.call)
        try:
            if work.gate is not None:
                await work.gate.start()
        except BaseException:
            self._thread_slots.release()
            raise
        self.busy_threads += 1
        loop = asyncio.get_running_loop()
        running = self._threads.submit(copy_context().run, contained, _encoding(work, function))
        running.add_done_callback(lambda _: self._tell(loop))
        with self._timed(work):
            made = await asyncio.wrap_future(running)
            return _content(work, await self._awaited(work, made)) if inspect.isawaitable(made) else made

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the thread has outlived the loop
            loop.call_soon_threadsafe(self._thread_is_free)

    def _thread_is_free(self) -> None:
        self.busy_threads -= 1
        self._thread_slots.release()

    async def _in_process(self, work: _Work, function: Callable[[], Any]) -> Content:
        """A process that outlives its timeout is killed."""
        await self._slot(self._process_slots, work.call)
        try:
            if work.gate is not None:
                await work.gate.start()
            with self._timed(work):
                run = partial(alone, _encoding(work, function))
                return await anyio.to_process.run_sync(run, cancellable=True, limiter=self._process_limit)
        finally:
            self._process_slots.release()


def _content(work: _Work, value: Any) -> Content:
    return cut(to_content(value), work.tool.spec.max_result)


def _encoding(work: _Work, function: Callable[[], Any]) -> Callable[[], Any]:
    return partial(encoded, function, work.tool.spec.max_result)


async def _rest_of(steps: Steps) -> None:
    try:
        await steps
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - nobody asks any more, and the worker must not end with it
        log.debug("what went on after its timeout ended with %s", type(error).__name__)


def _loop_now() -> float:
    return asyncio.get_running_loop().time()


def _ends_us(error: BaseException) -> bool:
    """Are we cancelled or closed? Or has the tool let such an error of its own escape? A worker that ended with it
    would leave the call to the next one, and so end them all; Ctrl-C comes as a signal, not as an error.
    """
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the loop is over
        return True
    return task is None or (isinstance(error, asyncio.CancelledError) and task.cancelling() > 0)


class _ToolsOwn(Exception):
    """A TimeoutError that the tool raised itself."""


def _wait(state: RetryCallState) -> float:
    """Full jitter, or what the tool asks for."""
    error = state.outcome.exception() if state.outcome is not None else None
    pause = wait_random_exponential(multiplier=BACKOFF_S[0], max=BACKOFF_S[1])(state)
    return max(pause, error.after) if isinstance(error, Retryable) and error.after is not None else pause


def _kind_of(error: BaseException) -> str:
    """The name of what the tool raised."""
    cause = error.__cause__ if isinstance(error, _ToolsOwn | Escaped) else None
    return type(cause or error).__name__


def _described(error: BaseException) -> str:
    if isinstance(error, anyio.BrokenWorkerProcess):
        return "its process ended without a result"
    text = _text_of(error)
    if isinstance(error, _ToolsOwn | Escaped | Retryable | RateLimited):
        return text[:SHOWN]
    return f"{type(error).__name__}: {text}"[:SHOWN] if text else type(error).__name__


def _text_of(error: BaseException) -> str:
    """The error is the tool's, and so is its `__str__`: it may fail, and the worker must not."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except BaseException as unsayable:  # noqa: BLE001 - an order to end, perhaps: the call gets its result
        return f"(its text cannot be had: {type(unsayable).__name__})"
