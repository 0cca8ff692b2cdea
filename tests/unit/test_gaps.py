"""What retention has eaten cannot be folded: who wakes up after that takes its partition over anew.

Responsible for: `AgentWorker` where records are gone that it has not read.
Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

from tests.support.virtual import now, virtually

from anabranch.agent.model.seam import OnEvent, OnLeft
from anabranch.agent.reply.reply import Reply, reply_of
from anabranch.agent_role import serve_agent
from anabranch.app import App
from anabranch.bodies import dump
from anabranch.clockwork import Clockwork
from anabranch.codec import Outgoing, cloud_event, encode
from anabranch.config import KafkaSettings, Settings, WorkerSettings
from anabranch.kafka.memory.append import MemoryAppender
from anabranch.kafka.memory.cluster import MemoryBroker, Timing
from anabranch.kafka.seam import Place
from anabranch.log_events import RunCancelled
from anabranch.messages import RunRequest
from anabranch.runtime import Shutdown
from anabranch.topics import Namespace

NAMES = Namespace("t")
LOG = Place(NAMES.log, 0)
SETTINGS = Settings(KafkaSettings(partitions=1), WorkerSettings(namespace="t"))
FINAL = b'{"role":"assistant","stop_reason":"end_turn","usage":{},"content":[{"type":"text","text":"done"}]}'


class Model:
    """Thinks about the run `slow` for ever, and answers all others."""

    async def reply(self, body: bytes, on_event: OnEvent, on_left: OnLeft) -> Reply:
        if b"slow" in body:
            await asyncio.Event().wait()
        return reply_of(FINAL)


def app() -> App:
    made = App("t")
    made.agent("worker", model="m", tools=[])
    return made


@asynccontextmanager
async def working(broker: MemoryBroker) -> AsyncIterator[Shutdown]:
    shutdown, chance = Shutdown(), Random(1)
    clockwork = Clockwork(now, lambda: f"{chance.getrandbits(64):016x}", chance)
    serving = serve_agent(app(), SETTINGS, shutdown, broker=broker, model=Model(), clockwork=clockwork)
    task = asyncio.create_task(serving)
    await shutdown.ready.wait()
    yield shutdown
    task.cancel()
    await asyncio.wait([task])


def asked(run_id: str) -> Outgoing:
    body = dump(RunRequest(run_id=run_id, agent="worker", input=run_id))
    return cloud_event(NAMES.requests, "run.request", "client", run_id, body, partition=0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(600):
        while not condition():  # noqa: ASYNC110  # virtual seconds cost nothing
            await asyncio.sleep(0.1)


def test_who_wakes_up_behind_what_retention_has_eaten_takes_its_partition_over_anew() -> None:
    async def story() -> None:
        cluster = MemoryBroker(NAMES.specs([], 1), clock=now, timing=Timing(session_s=5.0))
        async with cluster.appender() as client:
            await _frozen_while_its_run_ends(cluster, client)

    virtually(story)


async def _frozen_while_its_run_ends(cluster: MemoryBroker, client: MemoryAppender) -> None:
    frozen = cluster.another()

    def answers() -> list[bytes | None]:
        places = [Place(NAMES.responses, number) for number in range(24)]
        return [record.key for place in places for record in cluster.records(place)]

    def low() -> int:
        committed = cluster.commits(NAMES.agents_group).get(LOG)
        return committed.offset if committed is not None else 0

    async with working(frozen):
        await client.append(asked("slow"))
        await until(lambda: any(record.key == b"slow" for record in cluster.records(LOG)))
        frozen.cut()
        async with working(cluster.another()) as other:
            await client.append(encode(RunCancelled("slow", None, "enough"), LOG.topic, 0, "client"))
            await until(lambda: b"slow" in answers())
            end = cluster.records(LOG)[-1].offset + 1
            await until(lambda: low() >= end)
            other.ask()
        cluster.trim(LOG, low())
        frozen.mend()
        await client.append(asked("next"))
        await until(lambda: b"next" in answers())
        await until(lambda: low() > cluster.records(LOG)[-1].offset)
