"""Processes inside one event loop, which can be killed or frozen between any two steps.

Responsible for: knowing which process a callback belongs to (a context variable says so), and withholding the
callbacks of one that is dead or frozen, so that not one line of its code runs, no `finally` either.
Must never: withhold what is the cluster's, even if a process set it off.
Called by: the simulated world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVarTuple

from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.memory.group import Group
from anabranch.kafka.memory.read import MemorySubscription
from anabranch.runtime import Shutdown
from tests.simulation.faults import Role
from tests.support.virtual import VirtualLoop

Args = TypeVarTuple("Args")

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)

_OF_THE_CLUSTER = (Group, MemorySubscription, asyncio.Event)
"""Whose methods, when a timer calls them, are the broker's news on its way to somebody."""


class Process:
    """One worker's process. `doom` is the step before which it dies; `on_doom` is told, in no process's name."""

    def __init__(self, name: str, on_doom: Callable[[Process], None]) -> None:
        self.name, self._on_doom = name, on_doom
        self.steps = 0
        self.doom: int | None = None
        self._still = False
        self._withheld: list[_Step] = []

    @property
    def is_still(self) -> bool:
        return self._still

    def freeze(self) -> None:
        """Nothing of it runs until `thaw`."""
        self._still = True

    def thaw(self) -> None:
        """What was withheld runs now, in its order, unless it has been cancelled meanwhile."""
        self._still, self.doom = False, None
        withheld, self._withheld = self._withheld, []
        loop = asyncio.get_running_loop()
        for step in withheld:
            loop.call_soon(step.again, context=step.context)

    def enter(self, step: _Step) -> bool:
        """Whether this step may run."""
        if self._still:
            self._withheld.append(step)
            return False
        self.steps += 1
        if self.doom is not None and self.steps >= self.doom:
            self._still = True
            self._withheld.append(step)
            asyncio.get_running_loop().call_soon(self._on_doom, self, context=Context())
            return False
        return True


@dataclass(slots=True, eq=False)
class Worker:
    """One process of the fleet."""

    process: Process
    role: Role
    broker: MemoryBroker
    shutdown: Shutdown
    task: asyncio.Task[int] | None = None
    dead: bool = False
    leaving: bool = False
    hurt: bool = False

    @property
    def is_up(self) -> bool:
        return not self.dead and not self.leaving and not self.hurt and self.shutdown.ready.is_set()


class _Step:
    """A callback of a process, which may be withheld."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(self, process: Process, callback: Callable[..., object], args: Any, context: Context) -> None:
        self.process, self.callback, self.args, self.context = process, callback, args, context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.process.enter(self):
            self.callback(*self.args)

    def again(self) -> None:
        if self.handle is None or not self.handle.cancelled():
            self()


class ProcessLoop(VirtualLoop):
    """Virtual time, and processes: what is scheduled in the name of one belongs to it."""

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        step = _step(callback, args, context)
        if step is None:
            return super().call_soon(callback, *args, context=context)
        step.handle = super().call_soon(step, context=step.context)
        return step.handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        step = _step(callback, args, context)
        if step is None:
            return super().call_at(when, callback, *args, context=context)
        handle = super().call_at(when, step, context=step.context)
        step.handle = handle
        return handle


def _step(callback: Callable[..., object], args: Any, context: Context | None) -> _Step | None:
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is None or isinstance(getattr(callback, "__self__", None), (*_OF_THE_CLUSTER, _Step)):
        return None
    return _Step(process, callback, args, context or copy_context())
