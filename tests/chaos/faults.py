"""What goes wrong, and when: drawn from a seed, one thing after another, some of them at the same time.

Responsible for: doing each kind of fault and undoing it, with its times in the ledger; after `run` all is mended.
Must never: do two things to one worker at a time, or break what nobody would ever have mended.
Called by: `__main__.py`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Final

from tests.chaos.fleet import ROLES, SESSION_S, Fleet, Role, Worker
from tests.chaos.ledger import PLANNED, Fault, FaultKind
from tests.support.wait import until

PAUSE_S: Final = (0.3, 3.0)
FROZEN_S: Final = (SESSION_S * 1.05, SESSION_S * 1.5)
MUTE_S: Final = (0.5, 1.5)
SILENT_S: Final = FROZEN_S
"""Little beyond the session: who comes back finds its successor at work on the same turns."""
DELAYED_S: Final = (2.0, 6.0)
CALM_S: Final = 3.0
"""Before anything breaks there is work that it can break."""
DOWN_S: Final = (0.2, 3.0)
BACK_S: Final = 5.0
"""After the broker is back, so long nothing else happens: else it would hide what the rest does."""
MOST, LEAST = 5, 2
VICTIM_S: Final = 20.0
"""So long a fault waits for a worker that it may hit."""
BOTH_ROLES: Final[frozenset[FaultKind]] = frozenset({"roll", "kill", "mute", "freeze", "half_open"})
"""What they break is another thing in each role, so even a short chaos hits both."""
VOLLEY, VOLLEY_S = (1, 3), (0.0, 1.5)
"""How many workers of each role are killed at once, where there is nothing but kills, and within what time."""
RECOVERED, RECOVERED_S = 6, 40.0
"""A fleet has recovered when it has begun so many model calls and tools anew; it is not waited for longer."""
WEIGHTS: Final[dict[FaultKind, int]] = {
    "kill": 16,
    "mute": 4,
    "freeze": 4,
    "cut": 5,
    "delay": 3,
    "half_open": 3,
    "broker_stop": 1,
    "broker_kill": 1,
    "roll": 5,
    "scale_out": 3,
    "scale_in": 3,
}

BROKER: Final[frozenset[FaultKind]] = frozenset({"broker_stop", "broker_kill"})


class Faults:
    """`done` is the ledger of it. `kinds` are those that may be drawn."""

    def __init__(self, fleet: Fleet, seed: int, kinds: frozenset[FaultKind]) -> None:
        self.done: list[Fault] = []
        self._roles: defaultdict[FaultKind, Iterator[Role]] = defaultdict(lambda: cycle(ROLES))
        self._fleet, self._chance = fleet, random.Random(seed)
        self._kinds = [kind for kind in WEIGHTS if kind in kinds]
        self._do: dict[FaultKind, Callable[[], Coroutine[None, None, None]]] = {
            "kill": self._kill,
            "mute": self._mute,
            "freeze": self._freeze,
            "cut": self._cut,
            "delay": self._delay,
            "half_open": self._half_open,
            "broker_stop": self._stop_broker,
            "broker_kill": self._kill_broker,
            "roll": self._roll,
            "scale_out": self._scale_out,
            "scale_in": self._scale_in,
        }

    async def run(self, seconds: float) -> None:
        """Break things for so long, or longer: each kind comes once, before any comes twice."""
        over = time.monotonic() + seconds
        await asyncio.sleep(min(seconds, CALM_S))
        for phase in self._phases():
            async with asyncio.TaskGroup() as tasks:
                for kind in phase:
                    tasks.create_task(self._do[kind](), name=kind)
                    await asyncio.sleep(self._chance.uniform(*PAUSE_S))
        async with asyncio.TaskGroup() as tasks:
            while (left := over - time.monotonic()) > 0:
                if (kind := self._drawn()) in BROKER:
                    await self._do[kind]()
                else:
                    tasks.create_task(self._do[kind](), name=kind)
                await asyncio.sleep(min(left, self._chance.uniform(*PAUSE_S)))

    async def kill_on(self, seconds: float) -> None:
        """Kill some of each role, again as soon as the fleet has recovered, for so long."""
        over = time.monotonic() + seconds
        await asyncio.sleep(min(seconds, CALM_S))
        while time.monotonic() < over:
            async with asyncio.TaskGroup() as tasks:
                for role in ROLES:
                    for _ in range(self._chance.randint(*VOLLEY)):
                        tasks.create_task(self._kill_one(role, self._chance.uniform(*VOLLEY_S)), name="kill")
            await self._recovered()

    async def _recovered(self) -> None:
        models, tools = self._fleet.work_done()

        def goes_on() -> bool:
            now = self._fleet.work_done()
            return now[0] >= models + RECOVERED and now[1] >= tools + RECOVERED

        with suppress(AssertionError):  # then more of them die before it has: the checker says what it comes to
            await until(goes_on, RECOVERED_S, "the fleet goes on")

    def _phases(self) -> list[list[FaultKind]]:
        """Each kind once, or once for each role: at first deploys, while nothing else explains what they repeat, and at
        last the broker, whose absence explains too much."""
        kinds = self._kinds + [kind for kind in self._kinds if kind in BOTH_ROLES]
        mixed = self._chance.sample(kinds, len(kinds))
        workers = [kind for kind in mixed if kind not in PLANNED | BROKER]
        return [[kind for kind in mixed if kind in PLANNED], workers, [kind for kind in mixed if kind in BROKER]]

    def _drawn(self) -> FaultKind:
        return self._chance.choices(self._kinds, [WEIGHTS[kind] for kind in self._kinds])[0]

    def _note(self, kind: FaultKind, worker: Worker | None, begun: float) -> None:
        self.done.append(Fault(kind, worker.name if worker is not None else None, begun, time.time()))

    async def _victim(self, kind: FaultKind) -> Worker | None:
        """One of the role whose turn it is, while another one is well; None if it does not come to that."""
        role = next(self._roles[kind])
        with suppress(AssertionError):
            await until(lambda: len(self._fleet.idle(role)) >= LEAST, VICTIM_S, f"there is a {role} worker to hit")
            return self._fleet.take(self._chance, role)
        return None

    # --- workers ------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        if (worker := await self._victim("kill")) is not None:
            await self._end("kill", worker, time.time())

    async def _kill_one(self, role: Role, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if (worker := self._fleet.take(self._chance, role)) is not None:
            await self._end("kill", worker, time.time())

    async def _mute(self) -> None:
        """Nothing that it writes reaches the broker any more, though all else does; and then it dies."""
        if (worker := await self._victim("mute")) is None:
            return
        begun, seconds = time.time(), self._chance.uniform(*MUTE_S)
        if worker.proxy is None:
            await self._end("kill", worker, begun)
            return
        worker.proxy.set("mute")
        await asyncio.sleep(seconds)
        await self._end("mute", worker, begun)

    async def _end(self, kind: FaultKind, worker: Worker, begun: float) -> None:
        """At once; another one comes in its place."""
        await self._fleet.kill(worker)
        self._note(kind, worker, begun)
        await self._fleet.start(worker.role)

    async def _freeze(self) -> None:
        """Beyond the session's timeout: others take over, and then it wakes."""
        if (worker := await self._victim("freeze")) is None:
            return
        begun, seconds = time.time(), self._chance.uniform(*FROZEN_S)
        worker.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.signal(signal.SIGCONT)
        self._note("freeze", worker, begun)
        worker.busy = False

    async def _roll(self) -> None:
        """A deploy: a new process, then SIGTERM for the old one."""
        if (worker := await self._victim("roll")) is None:
            return
        begun = time.time()
        await self._fleet.start(worker.role)
        await self._fleet.stop(worker)
        self._note("roll", worker, begun)

    async def _scale_out(self) -> None:
        role = self._chance.choice(ROLES)
        if self._fleet.count(role) >= MOST:
            return
        begun = time.time()
        self._note("scale_out", await self._fleet.start(role), begun)

    async def _scale_in(self) -> None:
        role: Role = self._chance.choice(ROLES)
        if len(self._fleet.idle(role)) <= LEAST or (worker := self._fleet.take(self._chance, role)) is None:
            return
        begun = time.time()
        await self._fleet.stop(worker)
        self._note("scale_in", worker, begun)

    # --- connections --------------------------------------------------------------------------------------------

    async def _cut(self) -> None:
        if (worker := await self._victim("cut")) is None:
            return
        if worker.proxy is not None:
            begun = time.time()
            worker.proxy.cut()
            self._note("cut", worker, begun)
        worker.busy = False

    async def _delay(self) -> None:
        if (worker := await self._victim("delay")) is None:
            return
        if worker.proxy is not None:
            begun, seconds = time.time(), self._chance.uniform(*DELAYED_S)
            worker.proxy.set("delay")
            await asyncio.sleep(seconds)
            worker.proxy.set("pass")
            self._note("delay", worker, begun)
        worker.busy = False

    async def _half_open(self) -> None:
        """The other end is gone, first of what writes and then of all, and nobody says so; in the end it is reset."""
        if (worker := await self._victim("half_open")) is None:
            return
        if worker.proxy is not None:
            begun, seconds = time.time(), self._chance.uniform(*SILENT_S)
            worker.proxy.set("mute")
            await asyncio.sleep(self._chance.uniform(*MUTE_S))
            worker.proxy.set("silent")
            await asyncio.sleep(seconds)
            worker.proxy.cut()
            worker.proxy.set("pass")
            self._note("half_open", worker, begun)
        worker.busy = False

    # --- the broker ---------------------------------------------------------------------------------------------

    async def _stop_broker(self) -> None:
        await self._restart("broker_stop")

    async def _kill_broker(self) -> None:
        await self._restart("broker_kill")

    async def _restart(self, kind: FaultKind) -> None:
        broker = self._fleet.kafka.broker
        if broker is None:
            return
        begun, seconds = time.time(), self._chance.uniform(*DOWN_S)
        await asyncio.to_thread(broker.stop if kind == "broker_stop" else broker.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(broker.start)
        self._note(kind, None, begun)
        await asyncio.sleep(BACK_S)


def kinds(only: str | None, short: bool) -> frozenset[FaultKind]:
    """`rolling` is what a deploy does; otherwise everything, but in a short time the broker is away only once."""
    if only == "rolling":
        return PLANNED
    if only == "kills":
        return frozenset({"kill"})
    return frozenset(WEIGHTS) - ({"broker_stop"} if short else frozenset[FaultKind]())
