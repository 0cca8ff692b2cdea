"""Tasks that somebody owns: none outlives its block, and the death of one is the death of the block.

And waiting that has a bound, and how the outside asks a process to stop: by signals.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)


@asynccontextmanager
async def alongside(
    work: Coroutine[Any, Any, object], name: str, on_failure: Callable[[BaseException], None] | None = None
) -> AsyncIterator[asyncio.Task[object]]:
    """Run `work` while the block runs, and cancel it at the end.

    If it dies, the block is cancelled and its exception raised here. What the block raises comes out as it is,
    not in a group, so that callers can catch it by its type. `on_failure` hears of the death at once: what is
    cancelled by it may take long to end.
    """
    parent = asyncio.current_task()
    assert parent is not None, "alongside() runs in a task"
    task: asyncio.Task[object] = asyncio.create_task(work, name=name)
    dead: list[BaseException] = []
    is_over = False

    def ended(_: asyncio.Task[object]) -> None:
        if is_over:  # in this very turn: there is nobody to be cancelled any more, and asyncio tells of it
            return
        error = None if task.cancelled() else task.exception()
        if error is not None:
            dead.append(error)
            if on_failure is not None:
                on_failure(error)
            parent.cancel()

    task.add_done_callback(ended)
    try:
        yield task
    except asyncio.CancelledError:
        if not dead:
            raise
        parent.uncancel()
        raise dead[0] from None
    finally:
        is_over = True
        task.cancel()
        await asyncio.wait({task})


class Group(asyncio.TaskGroup):
    """A task group that says at once when a task of it has failed: those that it cancels then may take long to end."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        super().__init__()
        self._on_failure = on_failure

    def begin(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object] | None:
        """A watched task. None where the group is ending already and takes no more: then nothing of `work` runs."""
        try:
            return self.watch(self.create_task(work, name=name))
        except RuntimeError:
            work.close()
            return None

    def watch(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Let it be one of those. Where there are many, whoever hears of their ends anyway calls `see` instead."""
        task.add_done_callback(self.see)
        return task

    def see(self, task: asyncio.Task[Any]) -> None:
        """It has ended."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)


async def happens(event: asyncio.Event, within_s: float) -> None:
    """Wait for `event`, for `within_s` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()


async def bounded(work: Coroutine[Any, Any, object], within_s: float) -> bool:
    """Whether it came to an end, well or not, before its time was up. It never raises: what cancels
    itself in there, as clients of aiokafka do whose broker is gone, is not taken for a cancellation of ours.
    """
    working = asyncio.ensure_future(work)
    await asyncio.wait([working], timeout=within_s)
    if not working.done():
        working.cancel()
        return False
    if not working.cancelled() and (error := working.exception()) is not None:
        log.warning("%s did not end cleanly: %r", getattr(work, "__qualname__", work), error)
    return True


class Silence:
    """Raises `TimeoutError` out of its block when nothing was heard for so many seconds.

    It has one timer, however often something is heard: a stream may say thousands of things.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Silence:
        await self._timeout.__aenter__()
        self.heard()
        self._timer = self._loop.call_at(self._due, self._look)
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(type_, error, traceback)

    def heard(self) -> None:
        """It is not silent: the time begins anew."""
        self._due = self._loop.time() + self._seconds

    def ignore(self) -> None:
        """Whoever is inside has a bound of its own from now on."""
        self._timer.cancel()

    def within(self, seconds: float) -> None:
        """Whatever will be heard, the block is to end so soon."""
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._timeout.reschedule, 0.0)

    def _look(self) -> None:
        if (now := self._loop.time()) >= self._due:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(self._due, self._look)


@contextmanager
def asked_by_signals(ask: Callable[[], None], at_once: Callable[[], None] | None = None) -> Iterator[None]:
    """Each SIGINT, SIGTERM and SIGHUP (where there is one) calls `ask`, while inside; a loop must be running.

    `at_once` is called in the midst of whatever the main thread does, even if that blocks the loop: it may do next to
    nothing.
    """
    loop = asyncio.get_running_loop()
    caught = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    for number in caught:
        loop.add_signal_handler(number, ask)
        if at_once is not None:  # in place of a handler that does nothing: the loop hears of it by its wake-up file
            signal.signal(number, lambda *_: at_once())
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
