"""One seed, from the first request to the last commit: the fleet, its faults, and the evidence that is left.

Responsible for: starting, stopping, killing and freezing workers as the schedule says, and waiting in the end until all
is answered and read. `clients.py` asks for runs.
Must never: decide whether what happened is right; that is the checker's.
Called by: `python -m tests.simulation`, and tests.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, cast

from anabranch.agent_role import serve_agent
from anabranch.app import App
from anabranch.clockwork import Clockwork
from anabranch.codec import Outgoing
from anabranch.config import Settings
from anabranch.kafka.memory.append import MemoryAppender
from anabranch.kafka.memory.cluster import MemoryBroker, MemoryRecord
from anabranch.kafka.seam import Committed, Place
from anabranch.runtime import Shutdown
from anabranch.tool_role import serve_tools
from tests.simulation import conditions, faults, workload
from tests.simulation.archive import GROUPS, Archive
from tests.simulation.clients import Clients
from tests.simulation.evidence import EPOCH, NAMESPACE, Evidence, lags, specs
from tests.simulation.faults import Event, Profile, Role
from tests.simulation.ledger import FaultKind, Ledger
from tests.simulation.processes import PROCESS, Process, ProcessLoop, Worker
from tests.simulation.workload import INBOXES, QUEUE, Outside, SimulatedModel

LOOK_S: Final = 2.0
"""How often the archive looks at what is committed, and retention takes what it may."""
ANSWERED_S: Final = 600.0
"""Virtual seconds in which everything has to be answered once all is calm."""
READ_S: Final = 300.0


def simulate(seed: int, profile: Profile | None = None) -> Evidence:
    """Run one seed in virtual time; the same seed gives the same evidence."""
    state = random.getstate()
    random.seed(seed)  # a tool's backoff draws from the module's own generator
    logging.disable(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=ProcessLoop) as runner:
            return runner.run(_World(seed, profile).run())
    finally:
        logging.disable(logging.NOTSET)
        random.setstate(state)


@dataclass(slots=True)
class _World:
    seed: int
    wanted: Profile | None
    chance: Random = field(init=False)
    profile: Profile = field(init=False)
    settings: Settings = field(init=False)
    slow_s: float = field(init=False)
    ledger: Ledger = field(init=False)
    outside: Outside = field(init=False)
    app: App = field(init=False)
    broker: MemoryBroker = field(init=False)
    client: MemoryAppender = field(init=False)
    clients: Clients = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    later: set[asyncio.Task[None]] = field(default_factory=set)
    archive: Archive = field(init=False)
    calm: bool = False

    async def run(self) -> Evidence:
        self.chance = Random(self.seed)
        self.profile = self.wanted or self.chance.choice(faults.PROFILES)
        self.slow_s = self.chance.choice(faults.SLOW_S)
        self.settings = conditions.settings(self.profile, self.chance)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        self.ledger = Ledger(loop.time)
        self.outside = Outside(
            workload.draw(self.chance, self.profile.lives.batches),
            self.ledger,
            Random(self.chance.random()),
            early=Random(f"early {self.seed}").random() < 0.5,
        )
        self.app = workload.app_of(self.outside)
        self.broker = MemoryBroker(
            specs(),
            clock=lambda: EPOCH + loop.time(),
            metadata=self.profile.metadata,
            timing=conditions.TIMING,
            random=Random(self.chance.random()),
        )
        retention = self.chance.choice(self.profile.lives.retention)
        self.archive = Archive(self.broker, retention, lambda: EPOCH + loop.time())
        async with self.broker.appender() as self.client:
            self.clients = Clients(self.client, self.ledger, self._later)
            await self._live()
        evidence = self._evidence()
        await self._clear_up()
        return evidence

    async def _live(self) -> None:
        for role in faults.ROLES:
            late_s = self.chance.uniform(5, 20) if self.chance.random() < 0.2 else 0.0
            for _ in range(self.chance.randint(1, 2)):
                self._after(late_s, partial(self._start, role))  # what is asked for meanwhile waits in Kafka
        for at, act in self._agenda():
            await asyncio.sleep(max(0.0, at - self.ledger.now()))
            act()
        for task in list(self.later):
            await task
        self._calm_down()
        await self._until(self._all_answered, ANSWERED_S)
        await self._until(self._all_read, READ_S)

    # --- the agenda ---------------------------------------------------------------------------------------------

    def _agenda(self) -> list[tuple[float, Callable[[], object]]]:
        """What is done, and when."""
        agenda: list[tuple[float, Callable[[], object]]] = []
        for run in self.outside.workload.runs:
            for at, inbox, lane in [(run.at, run.inbox, run.lane), *run.again]:
                ask = partial(self.clients.ask, run, inbox, lane)
                agenda.append((at, ask))
            if run.cancel_at is not None:
                agenda.append((run.cancel_at, lambda run=run: self.clients.cancel(run.run_id)))  # type: ignore[misc]
        for bad in self.outside.workload.bad:
            agenda.append((bad.at, partial(self.clients.send, bad.run_id, bad.body, bad.lane)))
        for event in faults.schedule(self.profile, self.chance):
            agenda.append((event.at, lambda event=event: self._happen(event)))  # type: ignore[misc]
        agenda += [(at * LOOK_S, self.archive.look) for at in range(1, 30)]
        return sorted(agenda, key=lambda entry: entry[0])

    # --- workers -------------------------------------------------------------------------------------------------

    def _start(self, role: Role) -> Worker:
        name = f"{role}-{len(self.workers)}"
        chance = Random(self.chance.random())
        process = Process(name, self._die)
        links = faults.troubles(
            self.profile, self.slow_s, chance, lambda: self.calm, lambda: self.ledger.fault("lost commit", name)
        )
        worker = Worker(process, role, self.broker.another(links), Shutdown())
        self.ledger.say(f"start {name}")
        context = Context()
        context.run(PROCESS.set, process)
        worker.task = asyncio.get_running_loop().create_task(
            self._serve(worker, chance), name=f"process {name}", context=context
        )
        worker.task.add_done_callback(lambda task: self._ended(worker, task), context=Context())
        self.workers.append(worker)
        return worker

    async def _serve(self, worker: Worker, chance: Random) -> int:
        clockwork = Clockwork(conditions.clock(chance), lambda: f"{chance.getrandbits(64):016x}", chance)
        if worker.role == "agent":
            return await serve_agent(
                self.app, self.settings, worker.shutdown, broker=worker.broker, model=SimulatedModel(self.outside),
                clockwork=clockwork,
            )  # fmt: skip
        return await serve_tools(
            self.app, QUEUE, self.settings, worker.shutdown, broker=worker.broker, lenient=True, clockwork=clockwork
        )

    def _ended(self, worker: Worker, task: asyncio.Task[int]) -> None:
        if worker.dead:
            return
        worker.dead = True
        error = "it was cancelled" if task.cancelled() else task.exception()
        if error is not None:
            self.ledger.deaths.append(f"{worker.process.name} died: {error!r}")
        elif task.result() and self.profile.orderly:
            self.ledger.deaths.append(f"{worker.process.name} abandoned {task.result()} in an orderly stop")
        self.ledger.say(f"end {worker.process.name}")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.ledger.deaths.append(f"unhandled: {context.get('message')}: {context.get('exception')!r}")

    # --- faults --------------------------------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        self.archive.look()
        up = [worker for worker in self.workers if worker.is_up]
        able = [worker for worker in up if worker.role == event.role]
        match event.what:
            case "regress":
                return self._regress(event)
            case "copy":
                return self._copy(event)
            case "deploy":
                return self._deploy(event, up)
            case "freeze two" if len(up) > 1:
                first = int(event.pick * len(up))
                for worker in (up[first], up[first - 1]):
                    self._hold(worker, event)
                return None
        if event.what == "add" or not able:
            if sum(worker.is_up for worker in self.workers) < 6:
                self._start(event.role)
            return None
        return self._strike(event, able[int(event.pick * len(able))])

    def _strike(self, event: Event, worker: Worker) -> None:
        match event.what:
            case "stop":
                self._stop(worker)
                if event.for_s < 15:  # a rolling deploy; else a scale-in
                    self._after(event.for_s / 10, lambda: self._start(worker.role))
            case "kill":
                self._die(worker.process)
                self._after(event.for_s / 5, lambda: self._start(worker.role))
            case "doom":
                worker.process.doom = worker.process.steps + event.steps
            case "expel":
                self.ledger.fault("expel", worker.process.name, 5.0)
                for member in self._members_of(worker):
                    self.broker.expel(member)
            case _:
                self._hold(worker, event)

    def _stop(self, worker: Worker) -> None:
        self.ledger.say(f"stop {worker.process.name}")
        worker.leaving = True
        worker.shutdown.ask()

    def _die(self, process: Process) -> None:
        """Not one more line of it runs, and nothing of it passes."""
        worker = next(worker for worker in self.workers if worker.process is process)
        if worker.dead:
            return
        process.freeze()
        doomed = process.doom is not None
        worker.dead = True
        self.ledger.fault("kill", process.name)
        self.ledger.died(process.name)
        self.kept.append(asyncio.all_tasks())
        worker.broker.cut()
        if doomed:
            self._after(1.0, lambda: self._start(worker.role))

    def _hold(self, worker: Worker, event: Event) -> None:
        """A zombie: frozen, or cut off while it runs on; later it is back."""
        kind: FaultKind = "cut" if event.what == "cut" else "freeze"
        self.ledger.fault(kind, worker.process.name, event.for_s + 1.0)
        worker.hurt = True
        worker.broker.cut()
        if kind == "freeze":
            worker.process.freeze()
        self._after(event.for_s, lambda: self._come_back(worker, early=event.pick < 0.5))

    def _come_back(self, worker: Worker, early: bool) -> None:
        if worker.dead or not worker.hurt:
            return
        self.ledger.say(f"back {worker.process.name}")
        worker.hurt = False
        if early:
            worker.broker.mend()
        if worker.process.is_still:
            worker.process.thaw()
        if not early:
            self._after(0.05, worker.broker.mend)

    def _regress(self, event: Event) -> None:
        """The commits of a group go back to what they were, or are lost; a rebalance makes it matter."""
        group = NAMESPACE.agents_group if event.role == "agent" else NAMESPACE.tools_group(QUEUE)
        commits = cast(dict[Place, Committed], self.broker.commits(group))
        older = self.archive.older[group]
        self.ledger.fault("regressed commits", group)
        commits.clear()
        if older and event.pick < 0.7:
            commits.update(older[int(event.for_s) % len(older)])
        self._start(event.role)

    def _deploy(self, event: Event, up: Sequence[Worker]) -> None:
        """A rolling deploy of both roles: one after the other is told to stop, and has a successor."""
        for turn, worker in enumerate(up):
            self._after(turn * event.for_s / 3, lambda worker=worker: self._replace(worker))  # type: ignore[misc]

    def _replace(self, worker: Worker) -> None:
        if worker.is_up:
            self._stop(worker)
            self._start(worker.role)

    def _copy(self, event: Event) -> None:
        """A record of some topic comes again, long after. Calls that must not be executed twice are left out: who
        has them executed is whoever copies them."""
        asking = (NAMESPACE.requests, NAMESPACE.bulk_requests)
        topic = (*asking, NAMESPACE.log, NAMESPACE.log, NAMESPACE.calls(QUEUE), NAMESPACE.registry)
        place = Place(topic[event.steps % len(topic)], 0 if event.steps % len(topic) == 5 else event.steps // 6 % 2)
        known = [record for record in self.archive.records(*place) if not _at_most_once(record)]
        if known:
            record = known[int(event.pick * len(known))]
            self.ledger.fault("copy", f"{place.topic}/{place.partition}/{record.offset}")
            if place.topic in asking:
                self.ledger.asked_again[(record.key or b"").decode()] += 1
            self.client.append(Outgoing(place.topic, record.key, record.value, tuple(record.headers), place.partition))

    def _members_of(self, worker: Worker) -> list[Any]:
        return list(worker.broker._subscriptions)

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            act()

        self._later(wait())

    def _later(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(doing, context=Context())
        self.later.add(task)
        task.add_done_callback(self.later.discard, context=Context())

    # --- the end -------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """No more faults; at least one worker of each role goes on."""
        self.calm = True
        self.ledger.say("calm")
        for worker in self.workers:
            worker.process.doom = None
            self._come_back(worker, early=True)
        for role in faults.ROLES:
            if not any(w.role == role and not w.dead and not w.leaving for w in self.workers):
                self._start(role)

    async def _until(self, condition: Callable[[], bool], within_s: float) -> None:
        end = self.ledger.now() + within_s
        while not condition() and self.ledger.now() < end:
            await asyncio.sleep(1.0)  # virtual seconds cost nothing
            self.archive.look()

    def _all_answered(self) -> bool:
        records = self.archive.records
        answered = {record.key for inbox in range(INBOXES) for record in records(NAMESPACE.responses, inbox)}
        wanted = [run.run_id for run in self.outside.workload.runs] + [b.run_id for b in self.outside.workload.bad]
        return all(run_id.encode() in answered for run_id in wanted)

    def _all_read(self) -> bool:
        """Whether every record is done with, as far as the groups have committed."""
        found = lags(self.broker.commits, self.archive.records)
        told = self.profile.metadata  # without it, low stays at the last event that took a request up
        return not any(lag for place, lag in found.items() if told or place.topic != NAMESPACE.log)

    def _evidence(self) -> Evidence:
        self.archive.look()
        looked_at = [spec for spec in specs() if spec.name != NAMESPACE.registry]
        places = [Place(spec.name, number) for spec in looked_at for number in range(spec.partitions)]
        return Evidence(
            seed=self.seed,
            profile=self.profile,
            workload=self.outside.workload,
            calls=self.outside.calls,
            ledger=self.ledger,
            records={place: self.archive.records(*place) for place in places},
            commits={group: dict(self.broker.commits(group)) for group in GROUPS},
            samples=self.archive.samples,
            gone=sum(map(len, self.archive.gone.values())),
        )

    async def _clear_up(self) -> None:
        """End every task, behind cut links, so that nothing is left to the collector of garbage."""
        for worker in self.workers:
            worker.dead = True
            worker.broker.cut()
            if worker.process.is_still:
                worker.process.thaw()
        us = asyncio.current_task()
        for _ in range(50):
            tasks = [task for task in asyncio.all_tasks() if task is not us]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
        raise AssertionError(f"seed={self.seed}: tasks do not end: {[task.get_name() for task in tasks]}")


def _at_most_once(record: MemoryRecord) -> bool:
    return any(b'"tool":"%s"' % tool.encode() in (record.value or b"") for tool in workload.AT_MOST_ONCE)
