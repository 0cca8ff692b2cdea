"""One seed, from the first request to the last commit: the fleet, its faults, and the evidence that is left.

Responsible for: starting, stopping, killing and freezing workers as the schedule says, asking for runs, and waiting
in the end until all is answered and read.
Must never: decide whether what happened is right; that is the checker's.
Called by: `python -m tests.simulation`, and tests.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, cast

from anabranch.agent.thinking import Clockwork
from anabranch.app import App
from anabranch.bodies import dump
from anabranch.codec import Outgoing, cloud_event, encode
from anabranch.config import AgentSettings, KafkaSettings, Settings, ToolSettings, WorkerSettings
from anabranch.kafka.memory import MemoryBroker, MemoryRecord, Timing
from anabranch.kafka.memory_append import MemoryAppender
from anabranch.kafka.seam import Committed, Place
from anabranch.messages import ReplyTo, RunCancelled, RunRequest
from anabranch.runtime import Shutdown, serve_agent, serve_tools
from anabranch.topics import partition_of
from tests.simulation import faults, workload
from tests.simulation.evidence import EPOCH, NAMESPACE, PARTITIONS, Evidence, Sample, lags, specs
from tests.simulation.faults import Event, Profile, Role
from tests.simulation.ledger import Ledger
from tests.simulation.processes import PROCESS, Process, ProcessLoop
from tests.simulation.workload import INBOXES, QUEUE, Outside, SimulatedModel

SKEW_S: Final = 2.0
ANSWERED_S: Final = 600.0
"""Virtual seconds in which everything has to be answered once all is calm."""
READ_S: Final = 60.0
TIMING: Final = Timing(heartbeat_s=0.1, rebalance_s=12.0, session_s=6.0, request_s=3.0)
SETTINGS: Final = Settings(
    kafka=KafkaSettings(partitions=PARTITIONS),
    worker=WorkerSettings(namespace=NAMESPACE.name, drain_s=30.0, commit_s=0.5, heartbeat_s=5.0),
    agent=AgentSettings(model_backoff_s=0.2, model_backoff_max_s=1.0, hand_off_s=40.0),
    tool=ToolSettings(hand_off_s=60.0, threads=1, processes=1),
)


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
    slow_s: float = field(init=False)
    ledger: Ledger = field(init=False)
    outside: Outside = field(init=False)
    app: App = field(init=False)
    broker: MemoryBroker = field(init=False)
    client: MemoryAppender = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    later: set[asyncio.Task[None]] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)
    old: dict[str, list[dict[Place, Committed]]] = field(default_factory=dict)
    calm: bool = False

    async def run(self) -> Evidence:
        self.chance = Random(self.seed)
        self.profile = self.wanted or self.chance.choice(faults.PROFILES)
        self.slow_s = self.chance.choice(faults.SLOW_S)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        self.ledger = Ledger(loop.time)
        self.outside = Outside(workload.draw(self.chance), self.ledger, Random(self.chance.random()))
        self.app = workload.app_of(self.outside)
        self.broker = MemoryBroker(
            specs(),
            clock=lambda: EPOCH + loop.time(),
            metadata=self.profile.metadata,
            timing=TIMING,
            random=Random(self.chance.random()),
        )
        async with self.broker.appender() as self.client:
            await self._live()
        evidence = self._evidence()
        await self._clear_up()
        return evidence

    async def _live(self) -> None:
        for role in faults.ROLES:
            for _ in range(self.chance.randint(1, 2)):
                self._start(role)
        for at, act in self._agenda():
            await asyncio.sleep(max(0.0, at - self.ledger.now()))
            act()
        for task in list(self.later):
            await task
        self._calm_down()
        await self._until(self._all_answered, ANSWERED_S)
        await self._until(self._all_read, READ_S)

    # --- the agenda ---------------------------------------------------------------------------------------------

    def _agenda(self) -> list[tuple[float, Callable[[], None]]]:
        """What is done, and when."""
        agenda: list[tuple[float, Callable[[], None]]] = []
        for run in self.outside.workload.runs:
            agenda.append((run.at, lambda run=run: self._ask(run, run.inbox)))  # type: ignore[misc]
            for at, inbox in run.again:
                agenda.append((at, lambda run=run, inbox=inbox: self._ask(run, inbox)))  # type: ignore[misc]
            if run.cancel_at is not None:
                agenda.append((run.cancel_at, lambda run=run: self._cancel(run.run_id)))  # type: ignore[misc]
        for bad in self.outside.workload.bad:
            agenda.append((bad.at, lambda bad=bad: self._send(_request(bad.run_id, bad.body))))  # type: ignore[misc]
        for event in faults.schedule(self.profile, self.chance):
            agenda.append((event.at, lambda event=event: self._happen(event)))  # type: ignore[misc]
        agenda += [(float(at), self._sample) for at in range(5, 60, 10)]
        return sorted(agenda, key=lambda entry: entry[0])

    def _ask(self, run: workload.PlannedRun, inbox: int) -> None:
        request = RunRequest(
            run_id=run.run_id, agent="worker", input=run.run_id, deadline_s=run.deadline_s, reply_to=ReplyTo(inbox)
        )
        self.ledger.say(f"request {run.run_id}")
        self._send(_request(run.run_id, dump(request), run.misplaced))

    def _cancel(self, run_id: str) -> None:
        self.ledger.say(f"cancel {run_id}")
        event, partition = RunCancelled(run_id, None, "no longer wanted"), partition_of(run_id, PARTITIONS)
        self._send(encode(event, NAMESPACE.log, partition, "client"))
        self._send(_request(run_id, dump(RunRequest(run_id=run_id, cancel=True))))

    def _send(self, record: Outgoing) -> None:
        self.client.append(record)

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
        loop, skew = asyncio.get_running_loop(), chance.uniform(-SKEW_S, SKEW_S)
        clockwork = Clockwork(lambda: EPOCH + loop.time() + skew, lambda: f"{chance.getrandbits(64):016x}", chance)
        if worker.role == "agent":
            return await serve_agent(
                self.app, SETTINGS, worker.shutdown, broker=worker.broker, model=SimulatedModel(self.outside),
                clockwork=clockwork,
            )  # fmt: skip
        return await serve_tools(
            self.app, QUEUE, SETTINGS, worker.shutdown, broker=worker.broker, lenient=True, clockwork=clockwork
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
        self._sample()
        able = [worker for worker in self.workers if worker.role == event.role and worker.is_up]
        if event.what == "regress":
            return self._regress(event)
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
        kind = "freeze" if event.what == "freeze" else "cut"
        self.ledger.fault(kind, worker.process.name, event.for_s + 1.0)  # type: ignore[arg-type]
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
        older = self.old.get(group, [])
        self.ledger.fault("regressed commits", group)
        commits.clear()
        if older and event.pick < 0.7:
            commits.update(older[int(event.for_s) % len(older)])
        self._start(event.role)

    def _members_of(self, worker: Worker) -> list[Any]:
        return list(worker.broker._subscriptions)

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            act()

        task = asyncio.get_running_loop().create_task(wait(), context=Context())
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
        while not condition() and self.ledger.now() < end:  # noqa: ASYNC110 - virtual seconds cost nothing
            await asyncio.sleep(1.0)

    def _all_answered(self) -> bool:
        answered = {record.key for inbox in range(INBOXES) for record in self._records(NAMESPACE.responses, inbox)}
        wanted = [run.run_id for run in self.outside.workload.runs] + [b.run_id for b in self.outside.workload.bad]
        return all(run_id.encode() in answered for run_id in wanted)

    def _all_read(self) -> bool:
        """Whether every record is done with, as far as the groups have committed."""
        return not any(lag for lag in lags(self.broker.commits, self._records).values())

    def _records(self, topic: str, partition: int) -> Sequence[MemoryRecord]:
        return self.broker.records(Place(topic, partition))

    def _sample(self) -> None:
        commits = self.broker.commits(NAMESPACE.agents_group)
        self.old.setdefault(NAMESPACE.agents_group, []).append(dict(commits))
        tools = NAMESPACE.tools_group(QUEUE)
        self.old.setdefault(tools, []).append(dict(self.broker.commits(tools)))
        for partition in range(PARTITIONS):
            place = Place(NAMESPACE.log, partition)
            if place in commits:
                end = len(self.broker.records(place))
                self.samples.append(Sample(partition, commits[place], end, EPOCH + self.ledger.now()))

    def _evidence(self) -> Evidence:
        self._sample()
        looked_at = [spec for spec in specs() if spec.name != NAMESPACE.registry]
        places = [Place(spec.name, number) for spec in looked_at for number in range(spec.partitions)]
        groups = (NAMESPACE.agents_group, NAMESPACE.tools_group(QUEUE))
        return Evidence(
            seed=self.seed,
            profile=self.profile,
            workload=self.outside.workload,
            calls=self.outside.calls,
            ledger=self.ledger,
            records={place: self.broker.records(place) for place in places},
            commits={group: dict(self.broker.commits(group)) for group in groups},
            samples=self.samples,
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


def _request(run_id: str, body: bytes, misplaced: bool = False) -> Outgoing:
    partition = (partition_of(run_id, PARTITIONS) + misplaced) % PARTITIONS
    return cloud_event(NAMESPACE.requests, "run.request", "client", run_id, body, partition=partition)
