"""`python -m tests.bench.open_runs`: what open runs take in an agent worker, and whether they slow others down.

Opens so many runs whose tools nobody serves yet, in a fresh namespace with one agent worker, and looks at its memory;
then has ordinary runs answered beside them, and at last lets the open ones go on. Once with few open runs, once with
many: what one more costs is CPU time of the agent worker, for that machine may be busy with other things.

Responsible for: the loads and the figures, and that every run is answered as it should be.
Must never: judge a figure.
Called by: people.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from anabranch.client import Client, Run
from anabranch.roles import broker_of, topic_specs
from tests.bench import traffic, workload
from tests.bench.__main__ import kafka, namespaces
from tests.bench.app import AGENT, LATER, PATIENT, app
from tests.bench.processes import Worker, fleet
from tests.bench.settings import settings_for
from tests.bench.subject import WrongAnswer
from tests.support.wait import until

ORDINARY: Final = 2000
AT_ONCE: Final = 50
SUBMITTING: Final = 200
"""How many requests are on their way to Kafka at a time."""
OPEN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Figures:
    """With so many runs open. `held_mb` is what the agent worker has more than before, `transcripts_mb` what they say;
    the others are CPU milliseconds of the agent worker: for one ordinary run beside them, and to end an open one.
    """

    open: int
    transcripts_mb: float
    held_mb: float
    worker_mb: float
    beside_ms: float
    ending_ms: float


class Scene:
    """The workers of one namespace, and a client."""

    def __init__(self, client: Client, agent: Worker, bootstrap: str, namespace: str) -> None:
        self.client, self.agent, self.bootstrap, self.namespace = client, agent, bootstrap, namespace

    async def open(self, count: int, text: str) -> list[Run]:
        """Returns when all of their calls lie in the queue that nobody serves."""
        runs: list[Run] = []
        while (step := min(SUBMITTING, count - len(runs))) > 0:
            runs += await asyncio.gather(*(self.client.submit(PATIENT, text) for _ in range(step)))

        async def all_wait() -> bool:
            return await self._calls() >= count * workload.CALLS

        await until(all_wait, OPEN_S, f"{count} runs have asked for their calls")
        return runs

    async def _calls(self) -> int:
        ends = await traffic.ends(self.bootstrap, self.namespace)
        return sum(end for place, end in ends.items() if place.topic.endswith(f".{LATER}"))

    async def ordinary(self, count: int) -> None:
        left = iter(range(count))

        async def one_after_another() -> None:
            for _ in left:
                await self.answered([await self.client.submit(AGENT, workload.prompt(0))])

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))

    async def answered(self, runs: Sequence[Run]) -> None:
        for run in runs:
            response = await run
            if (response.output, response.calls.failed) != (workload.ANSWER, 0):
                raise WrongAnswer(f"a run ended as {response}")


async def measure(bootstrap: str, namespace: str, count: int, text: str) -> Figures:
    """Raises `WorkerDied`, `WrongAnswer`."""
    settings = settings_for(bootstrap, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    async with (
        fleet({"agent": "agent", "tool": "tool"}, bootstrap, namespace) as workers,
        Client.for_app(app, settings=settings) as client,
    ):
        agent = workers["agent"]
        scene = Scene(client, agent, bootstrap, namespace)
        await scene.ordinary(ORDINARY)
        before = await agent.bytes_now()
        opened = await scene.open(count, text)
        after = await agent.bytes_now()
        gc.freeze()  # of the client: what it holds of those runs is not what is measured
        cpu_s = await agent.cpu_s()
        await scene.ordinary(ORDINARY)
        beside_s = await agent.cpu_s() - cpu_s
        async with fleet({"later": "later-tool"}, bootstrap, namespace):
            cpu_s = await agent.cpu_s()
            await scene.answered(opened)
            ending_s = await agent.cpu_s() - cpu_s
    return Figures(
        count,
        round(count * len(text) / 1e6, 1),
        round((after - before) / 1e6, 1),
        round(after / 1e6, 1),
        round(beside_s / ORDINARY * 1000, 3),
        round(ending_s / count * 1000, 3),
    )


async def _print_all(counts: Sequence[int], text: str, bootstrap: str, prefix: str) -> None:
    for count in counts:
        figures = await measure(bootstrap, f"{prefix}-open-{count}", count, text)
        sys.stdout.write(f"{json.dumps(asdict(figures))}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """A line of JSON for each number of open runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.open_runs", description="Opens many runs.")
    parser.add_argument("--open", type=int, nargs="+", default=[100, 10_000], metavar="N", help="how many are open")
    parser.add_argument("--kb", type=int, default=20, metavar="KB", help="how much each of them says")
    options = parser.parse_args(arguments)
    text = workload.prompt(0).ljust(options.kb * 1000, ".")
    with kafka() as bootstrap, namespaces(bootstrap) as prefix:
        asyncio.run(_print_all(options.open, text, bootstrap, prefix))


if __name__ == "__main__":
    main(sys.argv[1:])
