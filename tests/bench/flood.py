"""`python -m tests.bench.flood`: what a flood of work does to memory, to the rate, and to others' runs.

Floods one agent worker and one tool worker, each a process with the settings that users have, first with runs whose
tools take no time, then with runs whose tools are slow, and measures the rate of ordinary work before and after; then
others, whose model takes a quarter of a second and has 32 places, with one tenant's runs before ten of another's, and
with runs of the bulk lane before ten of the interactive one; and others with runs whose calls have little time in a
slow queue.
`--narrow` gives the first ones little room, few places and little patience, so that a small flood does to them what a
large one does to others.

Responsible for: the loads, the figures, and that every run is answered as it should be (else it ends with 1: nothing
may expire).
Must never: judge a figure.
Called by: people; tests/integration/test_flood.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

from anabranch.client import Client, Run
from anabranch.fields import Lane
from anabranch.roles import broker_of, topic_specs
from tests.bench import workload
from tests.bench.__main__ import kafka, namespaces
from tests.bench.app import AGENT, HURRIED, app
from tests.bench.processes import Worker, WorkerDied, fleet
from tests.bench.settings import settings_for
from tests.bench.subject import WrongAnswer

ORDINARY, AT_ONCE = 300, 50
SUBMITTING: Final = 500
"""How many requests are on their way to Kafka at a time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the floods are: of runs, of calls (three a run), of some runs before ten of others, and of runs whose
    calls have twenty seconds in a queue that serves two hundred a second.
    """

    requests: int
    calls: int
    tenant: int
    hurried: int
    tool_ms: int
    narrow: bool


@dataclass(frozen=True, slots=True)
class Whose:
    """By whom runs are asked for, and in which lane."""

    tenant: str | None = None
    lane: Lane = "interactive"


NOBODYS: Final = Whose()


@dataclass(frozen=True, slots=True)
class Figures:
    """One phase. Times are seconds; `submitted_s` is until Kafka had all requests, `peak_mb` so far, by process."""

    phase: str
    runs: int
    submitted_s: float
    answered_s: float
    runs_s: float
    peak_mb: dict[str, float]
    others_slowest_s: float | None = None


def parse(arguments: Sequence[str]) -> Plan:
    """The options as a plan. Exits with 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description="Floods two workers.")
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="runs of the first flood")
    parser.add_argument("--calls", type=int, default=100_000, metavar="N", help="calls of the second one")
    parser.add_argument(
        "--tenant",
        type=int,
        default=50_000,
        metavar="N",
        help="runs of a tenant, or of the bulk lane, before ten others",
    )
    parser.add_argument("--hurried", type=int, default=3000, metavar="N", help="runs whose calls have little time")
    parser.add_argument("--tool-ms", type=int, default=2000, metavar="MS", help="how long a slow tool takes")
    parser.add_argument("--narrow", action="store_true", help="little room, few places, little patience")
    options = parser.parse_args(arguments)
    return Plan(options.requests, options.calls, options.tenant, options.hurried, options.tool_ms, options.narrow)


class Flood:
    """Loads the workers of one namespace."""

    def __init__(self, client: Client, workers: Mapping[str, Worker]) -> None:
        self._client, self._workers = client, workers

    async def ordinary(self, phase: str) -> Figures:
        """Runs one after another, so many at once."""
        began, left = time.perf_counter(), iter(range(ORDINARY))

        async def one_after_another() -> None:
            for _ in left:
                await self._answers([await self._submit(0)])

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
        return await self._figures(phase, ORDINARY, began, began)

    async def all_at_once(self, phase: str, runs: int, tool_ms: int, agent: str = AGENT) -> Figures:
        began = time.perf_counter()
        submitted = await self._submit_all(runs, tool_ms, agent=agent)
        return await self._until_answered(phase, submitted, began)

    async def before_ten(self, phase: str, runs: int, loud_ones: Whose, quiet_ones: Whose) -> Figures:
        """The runs of some, and as soon as Kafka has them ten of others; the slowest of these counts."""
        began = time.perf_counter()
        loud = await self._submit_all(runs, 0, loud_ones)
        asked = time.perf_counter()
        quiet = await self._submit_all(10, 0, quiet_ones)
        waiting = asyncio.ensure_future(self._until_answered(phase, loud, began))
        await self._answers(quiet)
        slowest = time.perf_counter() - asked
        return replace(await waiting, others_slowest_s=round(slowest, 2))

    async def _submit(self, tool_ms: int, whose: Whose = NOBODYS, agent: str = AGENT) -> Run:
        return await self._client.submit(agent, workload.prompt(tool_ms), tenant=whose.tenant, lane=whose.lane)

    async def _submit_all(self, runs: int, tool_ms: int, whose: Whose = NOBODYS, agent: str = AGENT) -> list[Run]:
        submitted: list[Run] = []
        while (count := min(SUBMITTING, runs - len(submitted))) > 0:
            submitted += await asyncio.gather(*(self._submit(tool_ms, whose, agent) for _ in range(count)))
        return submitted

    async def _until_answered(self, phase: str, runs: Sequence[Run], began: float) -> Figures:
        submitted = time.perf_counter()
        await self._answers(runs)
        return await self._figures(phase, len(runs), began, submitted)

    async def _answers(self, runs: Iterable[Run]) -> None:
        ended: Counter[str] = Counter()
        for run in runs:
            response = await run
            right = (response.output, response.calls.total, response.calls.failed) == (
                workload.ANSWER,
                workload.CALLS,
                0,
            )
            ended["right" if right else f"{response.status}, {response.calls.failed} calls failed"] += 1
        if set(ended) != {"right"}:
            raise WrongAnswer(f"runs ended as {dict(ended)}")

    async def _figures(self, phase: str, runs: int, began: float, submitted: float) -> Figures:
        answered_s = time.perf_counter() - began
        peaks = {name: round(await worker.peak_bytes() / 1e6, 1) for name, worker in self._workers.items()}
        return Figures(
            phase, runs, round(submitted - began, 2), round(answered_s, 2), round(runs / answered_s, 1), peaks
        )


async def measure(plan: Plan, bootstrap: str, namespace: str) -> AsyncIterator[Figures]:
    """The phases, one after the other. Raises `WrongAnswer`, `WorkerDied`."""
    roles = {role: f"narrow-{role}" if plan.narrow else role for role in ("agent", "tool")}
    async with _flood(bootstrap, namespace, roles) as flood:
        await flood.ordinary("warm-up")
        yield await flood.ordinary("before")
        yield await flood.all_at_once("requests", plan.requests, 0)
        yield await flood.all_at_once("slow tools", plan.calls // workload.CALLS, plan.tool_ms)
        yield await flood.ordinary("after")
    async with _flood(bootstrap, f"{namespace}-model", {"agent": "thinking-agent", "tool": "tool"}) as flood:
        await flood.ordinary("warm-up")
        yield await flood.before_ten("another tenant", plan.tenant, Whose("loud"), Whose("quiet"))
        yield await flood.before_ten("the other lane", plan.tenant, Whose(lane="bulk"), NOBODYS)
    if plan.hurried:
        async with _flood(bootstrap, f"{namespace}-hurried", {"agent": "agent", "tool": "soon-tool"}) as flood:
            yield await flood.all_at_once("little time", plan.hurried, 0, HURRIED)


@asynccontextmanager
async def _flood(bootstrap: str, namespace: str, roles: Mapping[str, str]) -> AsyncIterator[Flood]:
    settings = settings_for(bootstrap, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    async with fleet(roles, bootstrap, namespace) as workers, Client.for_app(app, settings=settings) as client:
        yield Flood(client, workers)


async def _print_all(plan: Plan, bootstrap: str, namespace: str) -> None:
    async for figures in measure(plan, bootstrap, namespace):
        sys.stdout.write(f"{json.dumps(asdict(figures))}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Flood; a line of JSON for each phase. The status is 1 if a run was not answered as it should be."""
    plan = parse(arguments)
    try:
        with kafka() as bootstrap, namespaces(bootstrap) as prefix:
            asyncio.run(_print_all(plan, bootstrap, f"{prefix}-flood"))
    except (WorkerDied, WrongAnswer) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
