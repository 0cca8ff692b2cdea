"""The worker processes of the chaos: started as a user starts them, each with a model's server and a proxy of its own.

Responsible for: starting, ending and finding workers; starting another one for what ended by itself, as any platform
does; what became of each.
Must never: decide what is broken and when (`faults.py`), or leave a process behind.
Called by: `__main__.py`, `faults.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from anabranch.testing import ScriptedModel
from tests.chaos.app import FILE, QUEUE
from tests.chaos.broker import Kafka
from tests.chaos.ledger import Execution, Life, Refused
from tests.chaos.model import Model
from tests.chaos.proxy import Proxy
from tests.chaos.vitals import WARM_S, Vitals, complaints
from tests.support.process import Command, GuardedProcess, tail
from tests.support.wait import until

APP: Final = Path(__file__).with_name("app.py")
PLACES: Final = 24
AT_FIRST: Final = 3
"""Workers of each role."""
SESSION_S, DRAIN_S, HAND_OFF_S, COMMIT_S = 6.0, 10.0, 15.0, 0.2
PARTITIONS: Final = 6
UP_S, GONE_S = 90.0, DRAIN_S + 50.0
TRIES: Final = 10
IS_UP: Final = re.compile(r"-(\d+)-[0-9a-f]{6} is up")
Role = Literal["agent", "tool"]
ROLES: Final[tuple[Role, ...]] = ("agent", "tool")


@dataclass(eq=False, slots=True)
class Worker:
    """One process. `busy` while something is done to it: one thing at a time."""

    name: str
    role: Role
    place: int
    proxy: Proxy | None
    log: Path
    process: GuardedProcess
    model: ScriptedModel
    vitals: Vitals = field(default_factory=lambda: Vitals(0))
    up_at: float = 0.0
    busy: bool = False
    ended: Literal["killed", "stopped"] | None = None

    def signal(self, number: int) -> None:
        os.kill(self.vitals.pid, number)


class CannotStart(RuntimeError):
    """A worker ended before it was up, again and again; the message has the end of its log."""


class Fleet:
    """See the module; `started_fleet` starts one, and leaves nothing of it."""

    def __init__(self, kafka: Kafka, namespace: str, folder: Path, model: Model) -> None:
        self.kafka, self.namespace, self.folder, self.model = kafka, namespace, folder, model
        self.workers: list[Worker] = []
        self.lives: list[Life] = []
        self.refused: list[Refused] = []
        self._pids: dict[int, str] = {}
        self._started = 0
        self._places = set(range(PLACES))

    # --- finding ------------------------------------------------------------------------------------------------

    def idle(self, role: Role | None = None) -> list[Worker]:
        """Those that are up and that nothing is done to."""
        return [worker for worker in self.workers if not worker.busy and role in (None, worker.role)]

    def take(self, chance: random.Random, role: Role | None = None) -> Worker | None:
        """One of them, from now on busy."""
        found = self.idle(role)
        if not found:
            return None
        worker = chance.choice(found)
        worker.busy = True
        return worker

    def count(self, role: Role) -> int:
        return sum(worker.role == role for worker in self.workers)

    # --- starting and ending ------------------------------------------------------------------------------------

    async def start(self, role: Role) -> Worker:
        """Returns when it is up. A start that fails (the broker may be down) is tried again."""
        for _ in range(TRIES):
            worker = await self._launch(role)
            if await self._comes_up(worker):
                self.workers.append(worker)
                return worker
            await self._bury(worker)
            await asyncio.sleep(1.0)
        raise CannotStart(
            f"{worker.name} ended before it was up, {TRIES} times. The end of its log:\n{tail(worker.log)}"
        )

    async def _comes_up(self, worker: Worker) -> bool:
        with suppress(AssertionError):  # then it never will
            await until(lambda: self._is_up(worker) or not worker.process.is_running(), UP_S, worker.name)
        return worker.up_at > 0

    async def _launch(self, role: Role) -> Worker:
        self._started += 1
        name = f"{role}-{self._started}"
        place = min(self._places)
        self._places.discard(place)
        proxy = self.kafka.proxies[place] if self.kafka.proxies else None
        model = ScriptedModel(self.model.script(lambda: name))
        await model.start()
        log = self.folder / f"{name}.log"
        options = ["--queue", QUEUE] if role == "tool" else []
        argv = [sys.executable, "-m", "anabranch.cli", "worker", role, str(APP), *options]
        process = GuardedProcess(Command(argv, self._environment(role, proxy, model)), log)
        return Worker(name, role, place, proxy, log, process, model)

    def _environment(self, role: Role, proxy: Proxy | None, model: ScriptedModel) -> dict[str, str]:
        provider = {"ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": model.base_url}
        return {
            "ANABRANCH_BOOTSTRAP": f"127.0.0.1:{proxy.port}" if proxy is not None else self.kafka.bootstrap,
            "ANABRANCH_NAMESPACE": self.namespace,
            "ANABRANCH_PARTITIONS": str(PARTITIONS),
            "ANABRANCH_SESSION_TIMEOUT_S": str(SESSION_S),
            "ANABRANCH_COMMIT_S": str(COMMIT_S),
            "ANABRANCH_DRAIN_S": str(DRAIN_S),
            "ANABRANCH_AGENT_HAND_OFF_S": str(HAND_OFF_S),
            "ANABRANCH_TOOL_HAND_OFF_S": str(HAND_OFF_S),
            FILE: str(self.folder / "executions.jsonl"),
            **(provider if role == "agent" else dict.fromkeys(provider, "")),
        }

    def _is_up(self, worker: Worker) -> bool:
        found = IS_UP.search(worker.log.read_text(errors="replace"))
        if found is None:
            return False
        worker.vitals.pid, worker.up_at = int(found[1]), time.time()
        self._pids[worker.vitals.pid] = worker.name
        return True

    async def kill(self, worker: Worker) -> None:
        """At once, as a crash would."""
        worker.busy, worker.ended = True, "killed"
        worker.signal(signal.SIGKILL)
        await self._gone(worker)

    async def stop(self, worker: Worker) -> None:
        """By SIGTERM, as a deploy does; returns when it is gone."""
        worker.busy, worker.ended = True, "stopped"
        worker.signal(signal.SIGTERM)
        await self._gone(worker)

    async def stop_all(self) -> None:
        """When all went well: that they then end is a promise too."""
        await asyncio.gather(*(self.stop(worker) for worker in list(self.workers)))

    async def _gone(self, worker: Worker) -> None:
        """One that hangs is killed, and `_life` says so: its log does not end in order."""
        with suppress(AssertionError):
            await until(lambda: not worker.process.is_running(), GONE_S, f"{worker.name} ends")
        await self._bury(worker)

    async def _bury(self, worker: Worker) -> None:
        """Nothing of it is left, and what became of it is in the ledger."""
        await asyncio.to_thread(worker.process.kill)
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.proxy is not None:
            worker.proxy.mend()
        self._places.add(worker.place)
        self.refused += [Refused(worker.name, reason) for reason in worker.model.refusals]
        await worker.model.close()
        if worker.up_at:
            self.lives.append(_life(worker))

    # --- watching -----------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """For ever: take samples, and replace whatever ended by itself."""
        while True:
            for worker in list(self.workers):
                if not worker.busy and not worker.process.is_running():
                    worker.busy = True
                    await self._bury(worker)
                    await self.start(worker.role)
                elif time.time() - worker.up_at > WARM_S:
                    worker.vitals.sample()
            await asyncio.sleep(0.5)

    def work_done(self) -> tuple[int, int]:
        """How many model calls and how many executions of tools have begun so far."""
        return len(self.model.calls), self._written().count('"begun"')

    def _written(self) -> str:
        file = self.folder / "executions.jsonl"
        return file.read_text() if file.exists() else ""

    def executions(self) -> list[Execution]:
        """What the tools wrote down."""
        found: dict[str, dict[str, Any]] = {}
        for line in self._written().splitlines():
            entry = json.loads(line)
            found.setdefault(entry["nonce"], {"ended": None}).update(entry)
        return [Execution(worker=self._pids[entry.pop("pid")], **entry) for entry in found.values()]


def _life(worker: Worker) -> Life:
    log = worker.log.read_text(errors="replace")
    said = complaints(log)
    if worker.ended == "stopped" and " abandoned" not in log:
        said = (*said, f"it was asked to stop and did not end in order: {tail(worker.log)[-200:].strip()}")
    grown = worker.vitals
    lived_s = round(time.time() - worker.up_at, 1)
    ended = worker.ended or "alone"
    return Life(worker.name, worker.role, lived_s, ended, grown.grown_bytes, grown.grown_files, said)


@asynccontextmanager
async def started_fleet(fleet: Fleet) -> AsyncIterator[None]:
    """Some workers of each role; none is left afterwards, those of a fleet that failed included."""
    async with AsyncExitStack() as stack:
        for proxy in fleet.kafka.proxies:
            await proxy.start()
            stack.push_async_callback(proxy.close)
        try:
            await asyncio.gather(*(fleet.start(role) for role in ROLES for _ in range(AT_FIRST)))
            yield
        finally:
            for worker in list(fleet.workers):
                await fleet.kill(worker)
