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
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import anyio
import anyio.to_process
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from anabranch.app import Call, RateLimited, Retryable, Tool
from anabranch.config import ToolSettings
from anabranch.content import cut, to_content
from anabranch.errors import AnabranchError
from anabranch.limits import ShareLost
from anabranch.messages import Content, ResultOutcome
from anabranch.schema import ArgumentsError
from anabranch.tools.contained import Escaped, contained
from anabranch.tools.slots import Slots, Whose
from anabranch.values import frozen

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.2, 10.0)
SHOWN: Final = 4000
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


class Retried(NamedTuple):
    """A try that was not the last: "retry" or "paused", when that was said (epoch seconds), and by what error."""

    name: str
    at: float
    error: str


class _Watch:
    """When the function of a call began, how long it ran, and which tries were not its last."""

    __slots__ = ("began_at", "ran_s", "retried")

    def __init__(self) -> None:
        self.began_at: float | None = None
        self.ran_s = 0.0
        self.retried: tuple[Retried, ...] = ()


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


class _Open:
    """The gate of a tool without a limit."""

    def a_try(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def start(self) -> None:
        return

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, BACKOFF_S[0]))


OPEN: Final = _Open()


class Executor:
    """The places where tools run: the loop, a pool of threads, a pool of processes."""

    def __init__(self, settings: ToolSettings, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="tool")
        self._thread_slots = Slots(settings.threads, settings.interactive_weight)
        self._process_slots = Slots(settings.processes, settings.interactive_weight)
        self._process_limit = anyio.CapacityLimiter(settings.processes)
        self.busy_threads = 0

    def close(self) -> None:
        """A thread that hangs cannot be stopped, and is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def execute(self, tool: Tool, arguments: dict[str, Any], call: Call, gate: Gate = OPEN) -> Execution:
        """Run the call, with the retries that its tool asks for; `gate` is passed before each try."""
        started, watch = self._now(), _Watch()
        tries, kind = 0, None
        try:
            if tool.retries == 0:  # the common case, and retrying costs more than a quick tool
                value = await self._tried(tool, arguments, call, gate, watch)
            else:
                async for attempt in self._retrying(tool, call, watch):
                    tries = attempt.retry_state.attempt_number
                    with attempt:
                        value = await self._tried(tool, arguments, replace(call, attempt=tries), gate, watch)
            outcome, content = self._success(tool, value)
        except TimeoutError:
            outcome, kind = "timeout", "timeout"
            content = f"{tool.name} timed out: it gave no result within {self._given(tool, started)}"
        except ArgumentsError as error:
            outcome, kind, content = "error", "ArgumentsError", f"invalid arguments for {tool.name}: {error}"
        except BaseException as error:
            if isinstance(error, ShareLost) or _ends_us(error):
                raise
            kind, said = _kind_of(error), _described(error)
            outcome, content = "error", f"{tool.name} failed: {said}"
            call.log.warning("%s failed: %s", tool.name, kind, exc_info=error, extra={"content": said})
        kind = kind or ("unsendable" if outcome == "error" else None)
        return Execution(
            outcome, content, started, self._now(), max(1, tries), watch.began_at, watch.ran_s, kind, watch.retried
        )

    def _success(self, tool: Tool, value: Any) -> tuple[ResultOutcome, Content]:
        try:
            return "ok", cut(to_content(value), tool.spec.max_result)
        except AnabranchError as error:
            return "error", f"{tool.name} returned what cannot be sent to the model: {error}"

    def _retrying(self, tool: Tool, call: Call, watch: _Watch) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(Retryable),
            stop=partial(self._is_over, stop_after_attempt(tool.retries + 1), call),
            wait=_wait,
            before_sleep=partial(self._note_retry, watch),
            reraise=True,
        )

    def _note_retry(self, watch: _Watch, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        watch.retried += (Retried("retry", self._now(), type(error).__name__),)

    def _is_over(self, enough: Callable[[RetryCallState], bool], call: Call, state: RetryCallState) -> bool:
        """No retry begins past the call's deadline."""
        return enough(state) or self._now() + state.upcoming_sleep >= call.deadline

    async def _tried(self, tool: Tool, arguments: dict[str, Any], call: Call, gate: Gate, watch: _Watch) -> Any:
        """One try. What the API refuses for being too much is none: the call waits, and goes on as if nothing was."""
        while True:
            try:
                async with gate.a_try():
                    return await self._try(tool, arguments, call, gate, watch)
            except RateLimited as error:
                if self._now() + error.after >= call.deadline:
                    raise
                watch.retried = (*watch.retried[-RETRIED:], Retried("paused", self._now(), type(error).__name__))
                said = {"content": _text_of(error)}
                call.log.info("%s is paused for %g s: its API asks for that", tool.name, error.after, extra=said)
                await gate.pause(error.after)

    async def _try(self, tool: Tool, arguments: dict[str, Any], call: Call, gate: Gate, watch: _Watch) -> Any:
        function = partial(tool.function, **tool.bind(arguments, call))
        match tool.run_in:
            case "thread":
                return await self._in_thread(tool, function, call, gate, watch)
            case "process":
                return await self._in_process(tool, function, call, gate, watch)
            case _:
                await gate.start()
                async with self._timed(tool, call, watch):
                    value = function()
                    return await value if inspect.isawaitable(value) else value

    def _given(self, tool: Tool, started: float) -> str:
        if self._now() - started < tool.spec.timeout_s * 0.99:
            return f"the {self._now() - started:.1f} s that were left until its deadline"
        return f"{tool.spec.timeout_s:g} s"

    def _timed(self, tool: Tool, call: Call, watch: _Watch) -> _Timeout:
        """Around the function itself, in all three places where it may run."""
        now = self._now()
        if watch.began_at is None:
            watch.began_at = now
        return _Timeout(min(tool.spec.timeout_s, max(0.0, call.deadline - now)), watch)

    async def _slot(self, slots: Slots, call: Call) -> None:
        """Wait for a place: as long as the call has, and without counting it as the tool's time."""
        left = max(0.0, call.deadline - self._now())
        async with asyncio.timeout(left if math.isfinite(left) else None):
            await slots.acquire(Whose(call.tenant, call.run_id, call.lane))

    async def _in_thread(self, tool: Tool, function: Callable[[], Any], call: Call, gate: Gate, watch: _Watch) -> Any:
        """A thread that outlives its timeout keeps its slot: it is as busy as before."""
        await self._slot(self._thread_slots, call)
        try:
            await gate.start()
        except BaseException:
            self._thread_slots.release()
            raise
        self.busy_threads += 1
        loop = asyncio.get_running_loop()
        running = self._threads.submit(copy_context().run, contained, function)
        running.add_done_callback(lambda _: self._tell(loop))
        async with self._timed(tool, call, watch):
            value = await asyncio.wrap_future(running)
            return await value if inspect.isawaitable(value) else value

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the thread has outlived the loop
            loop.call_soon_threadsafe(self._thread_is_free)

    def _thread_is_free(self) -> None:
        self.busy_threads -= 1
        self._thread_slots.release()

    async def _in_process(self, tool: Tool, function: Callable[[], Any], call: Call, gate: Gate, watch: _Watch) -> Any:
        """A process that outlives its timeout is killed."""
        await self._slot(self._process_slots, call)
        try:
            await gate.start()
            async with self._timed(tool, call, watch):
                return await anyio.to_process.run_sync(
                    contained, function, cancellable=True, limiter=self._process_limit
                )
        finally:
            self._process_slots.release()


class _Timeout:
    """`asyncio.timeout`, but only its own expiry is a `TimeoutError` to us: a tool's own is an error like any."""

    def __init__(self, seconds: float, watch: _Watch) -> None:
        self._timeout, self._watch, self._began = asyncio.timeout(seconds), watch, time.perf_counter()

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._watch.ran_s += time.perf_counter() - self._began
        if isinstance(error, TimeoutError):
            await self._timeout.__aexit__(None, None, None)
            raise _ToolsOwn(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        await self._timeout.__aexit__(kind, error, trace)


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
    except Exception as unsayable:  # noqa: BLE001 - whatever it was, the call gets its result
        return f"(its text cannot be had: {type(unsayable).__name__})"
