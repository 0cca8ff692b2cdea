"""Workers as processes, killed, frozen and restarted under load: every run is answered, and answered right.

Responsible for: SIGKILL and SIGSTOP of an agent and of a tool worker, and a rolling restart by SIGTERM, through the
command that a user runs. Must never: look inside a worker; it sees answers, records and logs.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from tests.support.apps.adding import app, check, script
from tests.support.fleet import settings_for
from tests.support.process import Command, GuardedProcess, tail
from tests.support.raw import read_until
from tests.support.wait import until

from anabranch.client import Client
from anabranch.messages import RunResponse
from anabranch.roles import broker_of, topic_specs
from anabranch.testing import ScriptedModel

pytestmark = pytest.mark.timeout(180)

RUNS = 100
AT_ONCE = 20
LOADED_S, UP_S, ANSWERED_S = 60, 60, 120
APP = Path(__file__).parents[1] / "support" / "apps" / "adding.py"


@dataclass
class Crew:
    """Worker processes of one namespace, and a client that loads them."""

    kafka: str
    namespace: str
    folder: Path
    model: ScriptedModel
    client: Client
    stack: AsyncExitStack
    started: int = 0
    logs: list[Path] = field(default_factory=list)

    async def start(self, *role: str) -> GuardedProcess:
        """`anabranch worker ROLE`; returns when it says that it is up."""
        self.started += 1
        log = self.folder / f"{self.started}-{'-'.join(role)}.log"
        self.logs.append(log)
        options = ["--queue", role[1]] if role[0] == "tool" else []
        argv = [sys.executable, "-m", "anabranch.cli", "worker", role[0], str(APP), *options]
        process = GuardedProcess(Command(argv, self._environment(role[0])), log)
        self.stack.callback(process.kill)
        await until(lambda: "is up" in tail(log) or not process.is_running(), UP_S, f"{log.name} is up")
        assert process.is_running(), tail(log)
        return process

    def _environment(self, role: str) -> dict[str, str]:
        model = {"ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": self.model.base_url}
        return {
            "ANABRANCH_BOOTSTRAP": self.kafka,
            "ANABRANCH_NAMESPACE": self.namespace,
            "ANABRANCH_PARTITIONS": "4",
            "ANABRANCH_SESSION_TIMEOUT_S": "6",
            "ANABRANCH_COMMIT_S": "0.2",
            "ANABRANCH_DRAIN_S": "10",
            **(model if role == "agent" else dict.fromkeys(model, "")),
        }

    async def load(self, over: asyncio.Event | None = None) -> list[RunResponse]:
        """Runs without end until `over` (at least `RUNS` of them), some at a time; their answers in order."""
        numbers, answers = count(), dict[int, RunResponse]()

        async def keep_asking() -> None:
            while (number := next(numbers)) < RUNS or (over is not None and not over.is_set()):
                answers[number] = await (await self.client.submit("adder", str(number)))

        async with asyncio.timeout(ANSWERED_S):
            await asyncio.gather(*(keep_asking() for _ in range(AT_ONCE)))
        return [answer for _, answer in sorted(answers.items())]

    def assignments(self, number: int) -> int:
        """How often the worker that was started as this one has been given partitions."""
        return self.logs[number].read_text(errors="replace").count(": assigned ")

    async def assigned_again(self, number: int, before: int) -> None:
        what = f"partitions are assigned to {self.logs[number].name} once more"
        await until(lambda: self.assignments(number) > before, LOADED_S, what)

    async def middle(self, calls: int) -> None:
        await until(lambda: self.model.calls >= calls, LOADED_S, f"{calls} model calls")

    async def check(self, answers: list[RunResponse]) -> None:
        """All are right, copies are identical, and no request of ours was refused by the model."""
        check(answers)
        topic = f"{self.namespace}.agent.responses"
        copies = defaultdict(set)
        for record in await read_until(self.kafka, topic, lambda found: len({r.key for r in found}) >= len(answers)):
            copies[record.key].add(record.value)
        assert {len(values) for values in copies.values()} == {1}
        assert self.model.refusals == []


@asynccontextmanager
async def crew(kafka: str, namespace: str, folder: Path) -> AsyncIterator[Crew]:
    settings = settings_for(kafka, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ScriptedModel(script, latency_s=0.1))
        client = await stack.enter_async_context(Client.for_app(app, settings=settings))
        running = Crew(kafka, namespace, folder, model, client, stack)
        try:
            yield running
        except BaseException:
            for log in running.logs:
                sys.stderr.write(f"--- {log.name}\n{tail(log)}\n")
            raise


async def test_a_killed_agent_worker_loses_no_run(kafka: str, namespace: str, tmp_path: Path) -> None:
    async with crew(kafka, namespace, tmp_path) as running:
        await asyncio.gather(running.start("tool", "io"), running.start("tool", "sums"))
        victim, _ = await asyncio.gather(running.start("agent"), running.start("agent"))
        loading = asyncio.create_task(running.load())
        await running.middle(100)
        await asyncio.to_thread(victim.kill)
        await running.start("agent")
        await running.check(await loading)


async def test_the_only_agent_worker_may_be_killed_and_another_one_goes_on(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    async with crew(kafka, namespace, tmp_path) as running:
        await asyncio.gather(running.start("tool", "io"), running.start("tool", "sums"))
        victim = await running.start("agent")
        loading = asyncio.create_task(running.load())
        await running.middle(100)
        await asyncio.to_thread(victim.kill)
        await running.start("agent")
        await running.check(await loading)


async def test_a_killed_tool_worker_loses_no_call(kafka: str, namespace: str, tmp_path: Path) -> None:
    async with crew(kafka, namespace, tmp_path) as running:
        roles = [("tool", "io"), ("tool", "io"), ("tool", "sums"), ("agent",)]
        victim, _, another, _ = await asyncio.gather(*(running.start(*role) for role in roles))
        loading = asyncio.create_task(running.load())
        await running.middle(60)
        await asyncio.to_thread(victim.kill)
        await running.middle(100)
        await asyncio.to_thread(another.kill)
        await asyncio.gather(running.start("tool", "io"), running.start("tool", "sums"))
        await running.check(await loading)


async def test_a_rolling_restart_by_sigterm_loses_nothing(kafka: str, namespace: str, tmp_path: Path) -> None:
    async with crew(kafka, namespace, tmp_path) as running:
        roles = [("tool", "io"), ("tool", "sums"), ("agent",), ("agent",)]
        workers = await asyncio.gather(*(running.start(*role) for role in roles))
        over = asyncio.Event()
        loading = asyncio.create_task(running.load(over))
        await running.middle(60)
        for role, worker in zip(roles, workers, strict=True):
            await running.start(*role)
            await asyncio.to_thread(worker.stop)
        over.set()
        await running.check(await loading)
        assert all("stopped: 0 abandoned" in tail(log) for log in running.logs[:4])


async def test_workers_that_were_frozen_for_longer_than_their_session_change_nothing_when_they_wake(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    """An agent and a tool worker, in the midst of their calls; others have taken over by then."""
    async with crew(kafka, namespace, tmp_path) as running:
        roles = [("agent",), ("tool", "io"), ("agent",), ("tool", "io"), ("tool", "sums")]
        workers = await asyncio.gather(*(running.start(*role) for role in roles))
        victims, others = (0, 1), (2, 3)
        over = asyncio.Event()
        loading = asyncio.create_task(running.load(over))
        await running.middle(60)
        before = [running.assignments(number) for number in range(4)]
        for number in victims:
            workers[number].freeze()
        for number in others:
            await running.assigned_again(number, before[number])
        await running.middle(running.model.calls + 60)
        for number in victims:
            workers[number].thaw()
        for number in victims:
            await running.assigned_again(number, before[number])
        await running.middle(running.model.calls + 60)
        over.set()
        await running.check(await loading)
        for number in victims:
            await asyncio.to_thread(workers[number].stop)
            assert "stopped: 0 abandoned" in tail(running.logs[number])
