"""`python -m tests.bench.scaling`: what a run costs as workers and partitions grow in number.

The same load, with so many agent workers and as many tool workers, on topics of so many partitions: as many runs in
flight that each worker is busy, for what an idle one does is no part of a run's cost. It is the CPU time of all workers
that is measured, for the machine may have too few cores to answer more runs a second.

Responsible for: topics, processes and the figures, and that every run is answered as it should be.
Must never: judge a figure.
Called by: people.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from anabranch.client import Client
from anabranch.roles import broker_of, topic_specs
from tests.bench import workload
from tests.bench.__main__ import kafka, namespaces
from tests.bench.app import AGENT, QUEUE, app
from tests.bench.processes import Worker, fleet
from tests.bench.settings import settings_for
from tests.bench.subject import WrongAnswer

WARM_UP: Final = 300
ROLES: Final = ("agent", "tool")


@dataclass(frozen=True, slots=True)
class Figures:
    """One size of a fleet: CPU milliseconds of a run, by role and of both, and how busy a worker was, in cores."""

    workers: int
    partitions: int
    runs: int
    runs_s: float
    agent_ms: float
    tool_ms: float
    both_ms: float
    busy: float


class Fleet:
    """Workers of one namespace, and a client that keeps `in_flight` runs going."""

    def __init__(self, client: Client, workers: dict[str, Worker], in_flight: int) -> None:
        self._client, self._workers, self._in_flight = client, workers, in_flight

    async def answer(self, count: int) -> None:
        left = iter(range(count))
        await asyncio.gather(*(self._one_after_another(left) for _ in range(self._in_flight)))

    async def _one_after_another(self, left: Iterator[int]) -> None:
        for _ in left:
            response = await (await self._client.submit(AGENT, workload.prompt(0)))
            if (response.output, response.calls.failed) != (workload.ANSWER, 0):
                raise WrongAnswer(f"a run ended as {response}")

    async def cpu_s(self, role: str) -> float:
        return sum([await worker.cpu_s() for name, worker in self._workers.items() if name.startswith(role)])


async def measure(bootstrap: str, namespace: str, workers: int, partitions: int, runs: int, in_flight: int) -> Figures:
    """Raises `WorkerDied`, `WrongAnswer`."""
    settings = settings_for(bootstrap, namespace)
    wanted = replace(settings, kafka=replace(settings.kafka, partitions=partitions))
    specs = topic_specs(app, wanted)
    queue = f".{QUEUE}"
    specs = [replace(spec, partitions=partitions) if spec.name.endswith(queue) else spec for spec in specs]
    await broker_of(settings).apply(specs)
    roles = {f"{role}{number}": role for role in ROLES for number in range(workers)}
    async with (
        fleet(roles, bootstrap, namespace) as processes,
        Client.for_app(app, settings=settings) as client,
    ):
        load = Fleet(client, processes, in_flight)
        await load.answer(max(WARM_UP, 2 * in_flight))
        before, began = {role: await load.cpu_s(role) for role in ROLES}, time.perf_counter()
        await load.answer(runs)
        took_s = time.perf_counter() - began
        used = {role: (await load.cpu_s(role) - before[role]) for role in ROLES}
    agent_ms, tool_ms = (used[role] / runs * 1000 for role in ROLES)
    busy = sum(used.values()) / took_s / (2 * workers)
    each = (runs / took_s, agent_ms, tool_ms, agent_ms + tool_ms, busy)
    return Figures(workers, partitions, runs, *(round(figure, 3) for figure in each))


async def _print_all(options: argparse.Namespace, bootstrap: str, prefix: str) -> None:
    for workers in options.workers:
        for partitions in options.partitions:
            namespace = f"{prefix}-scaling-{workers}-{partitions}"
            figures = await measure(
                bootstrap, namespace, workers, partitions, options.runs, workers * options.in_flight
            )
            sys.stdout.write(f"{json.dumps(asdict(figures))}\n")
            sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """A line of JSON for each size."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description="Grows a fleet.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="of each role")
    parser.add_argument("--partitions", type=int, nargs="+", default=[4, 16, 64], metavar="N")
    parser.add_argument("--runs", type=int, default=4000, metavar="N", help="how many are measured")
    parser.add_argument("--in-flight", type=int, default=500, metavar="N", help="how many at a time, for each worker")
    options = parser.parse_args(arguments)
    with kafka() as bootstrap, namespaces(bootstrap) as prefix:
        asyncio.run(_print_all(options, bootstrap, prefix))


if __name__ == "__main__":
    main(sys.argv[1:])
