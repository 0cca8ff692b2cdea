"""One call while it is executed: its tries, the time of each, and what each has to wait for.

Responsible for: ending a try whose time is up, and telling that from a `TimeoutError` or a cancellation of the tool's
own. Must never: say what a call came to, or where its function runs. Called by: `executor.py`; `turns.py` is its gate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, NamedTuple, Protocol
from weakref import ReferenceType, ref

from anabranch.app import Call, Tool
from anabranch.fields import Json
from anabranch.messages import ToolCall
from anabranch.timers import Timers
from anabranch.tools.failures import ToolsOwn
from anabranch.tools.steps import Steps

SWALLOWED_S: Final = 5.0
"""How long a coroutine may take to end once it is cancelled; then its call is over without it."""


class Retried(NamedTuple):
    """A try that was not the last: "retry" or "paused", when that was said (epoch seconds), and by what error."""

    name: str
    at: float
    error: str


class Gate(Protocol):
    """What each try of a call has to wait for."""

    def a_try(self) -> AbstractAsyncContextManager[None]:
        """Wait until the call may be tried. Raises `TimeoutError` if its time is over by then."""
        ...

    async def start(self) -> None:
        """Awaited inside of it, right before the function starts. Raises `ShareLost`: then the call is not ours; or
        `Paused`: then this was no try, and it waits anew.
        """
        ...

    async def pause(self, seconds: float) -> None:
        """The API behind the tool asks for a pause."""
        ...


class Work:
    """One call while it is executed: when its function began, how long its tries ran, which were not the last.

    As a context it is the timeout of a try: only its own expiry is a `TimeoutError`, a tool's own is an error like any.
    """

    __slots__ = (
        *("arguments", "began_at", "call", "gate", "number", "ran_s", "retried", "time_s", "tool"),
        *("__weakref__", "_cancelling", "_rings", "_since", "_task", "_timeouts", "steps"),
    )  # fmt: skip

    def __init__(
        self, tool: Tool, arguments: dict[str, Json], call: ToolCall, gate: Gate | None, timeouts: Timeouts
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
            raise ToolsOwn(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        if was_us and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error


def _uncancelled(task: asyncio.Task[Any], times: int) -> int:
    """How many orders to end it has left, once we have taken ours back."""
    for _ in range(times):
        task.uncancel()
    return task.cancelling()


Timeouts = Timers[ReferenceType[Work]]
"""A time that was disarmed is kept until it would have come: it must not keep the arguments of a call that is over."""


def timeouts() -> Timeouts:
    """For the tries of one executor."""
    return Timers(_loop_now, _ring)


def _ring(work: ReferenceType[Work]) -> None:
    if (late := work()) is not None:
        late.ring()


def _loop_now() -> float:
    return asyncio.get_running_loop().time()
