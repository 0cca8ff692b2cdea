"""The floor: what the same five hops cost with bare aiokafka, and nothing kept.

A request becomes three calls, each call a result, three results are joined to an answer. Nothing is durable: no group,
no commits, no log, and what a relay knows is gone with it. Producers are set as ours are, and the texts are the same;
what the floor leaves out is the model's two replies, which never leave the agent's process.

Responsible for: the relays, which run in the worker processes, and the client, which runs in this one.
Must never: do more than a relay has to, or be mistaken for an example.
Called by: `worker.py`, `__main__.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from anabranch.config import Settings
from anabranch.roles import broker_of
from anabranch.runtime import Shutdown
from anabranch.tasks import alongside
from anabranch.topics import RECORD_BYTES, TopicSpec
from tests.bench import workload
from tests.bench.processes import Worker, fleet
from tests.bench.settings import settings_for
from tests.bench.subject import ANSWER_S, WrongAnswer

PROCESSES: Final = {"agent": "floor-agent", "tool": "floor-tool"}
INBOX: Final = 0
PARTITIONS: Final = 24

Body = dict[str, Any]
Pairs = Sequence[tuple[str, bytes]]
"""Headers."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the four topics."""

    requests: str
    calls: str
    results: str
    answers: str

    @classmethod
    def of(cls, settings: Settings) -> Topics:
        return cls(*(f"{settings.worker.namespace}.{name}" for name in ("requests", "calls", "results", "answers")))

    def specs(self) -> list[TopicSpec]:
        names = (self.requests, self.calls, self.results, self.answers)
        return [TopicSpec(name, PARTITIONS, {"cleanup.policy": "delete"}) for name in names]


class Sender(Protocol):
    """What writes records."""

    async def send(
        self,
        topic: str,
        key: str,
        body: Body,
        partition: int | None = None,
        then: Callable[[], None] | None = None,
        headers: Pairs | None = None,
    ) -> None:
        """Hand it over, and do not wait for the broker; `then` is called when the broker has it."""


class Line:
    """A consumer and a producer. Made by `opened`."""

    def __init__(self, consumer: Any, producer: Any) -> None:
        self._consumer, self._producer = consumer, producer
        self._failure: BaseException | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, bootstrap: str, places: list[TopicPartition]) -> AsyncIterator[Line]:
        """Reads `places` from their start, for the topics are new."""
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        producer: Any = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=524_288,
            max_request_size=RECORD_BYTES + 65_536,
        )
        async with consumer, producer:
            consumer.assign(places)
            yield cls(consumer, producer)

    async def read(self) -> list[Any]:
        """The next records. Raises if something could not be sent."""
        if self._failure is not None:
            raise self._failure
        batches = await self._consumer.getmany(timeout_ms=100)
        return [record for records in batches.values() for record in records]

    async def send(
        self,
        topic: str,
        key: str,
        body: Body,
        partition: int | None = None,
        then: Callable[[], None] | None = None,
        headers: Pairs | None = None,
    ) -> None:
        """See `Sender`."""
        value = orjson.dumps(body)
        sent = await self._producer.send(topic, value, key.encode(), partition=partition, headers=headers)
        sent.add_done_callback(partial(self._sent, then))

    def _sent(self, then: Callable[[], None] | None, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled():
            return
        if (error := sent.exception()) is not None:
            self._failure = error
        elif then is not None:
            then()


def all_of(*topics: str) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic in topics for partition in range(PARTITIONS)]


# --- the relays -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A run whose results are coming in, by call."""

    inbox: int
    results: dict[str, str] = field(default_factory=dict)


async def relay_agent(settings: Settings, shutdown: Shutdown) -> None:
    """Requests to calls, results to answers."""
    topics, runs = Topics.of(settings), dict[str, _Open]()
    async with Line.opened(settings.kafka.bootstrap, all_of(topics.requests, topics.results)) as line:
        shutdown.ready.set()
        while not shutdown.asked.is_set():
            for record in await line.read():
                body = orjson.loads(record.value)
                if record.topic == topics.requests:
                    runs[body["run_id"]] = _Open(body["inbox"])
                    await _fan_out(line, topics, body)
                else:
                    await _join(line, topics, runs, body)


async def _fan_out(line: Line, topics: Topics, request: Body) -> None:
    run_id, wait_ms = request["run_id"], workload.tool_ms_of(request["input"].encode())
    for number in range(workload.CALLS):
        call_id = f"{run_id}/{number}"
        inputs = {"wait_ms": wait_ms, "note": workload.NOTE}
        await line.send(topics.calls, call_id, {"call_id": call_id, "run_id": run_id, "input": inputs})


async def _join(line: Line, topics: Topics, runs: dict[str, _Open], result: Body) -> None:
    run_id = result["run_id"]
    run = runs[run_id]
    run.results[result["call_id"]] = result["content"]
    if len(run.results) == workload.CALLS:
        del runs[run_id]
        answer = {"run_id": run_id, "output": workload.ANSWER, "calls": len(run.results)}
        await line.send(topics.answers, run_id, answer, run.inbox)


async def relay_tool(settings: Settings, shutdown: Shutdown) -> None:
    """Calls to results, each after its time."""
    topics = Topics.of(settings)
    async with Line.opened(settings.kafka.bootstrap, all_of(topics.calls)) as line, asyncio.TaskGroup() as tasks:
        shutdown.ready.set()
        while not shutdown.asked.is_set():
            for record in await line.read():
                call = orjson.loads(record.value)
                if call["input"]["wait_ms"]:
                    tasks.create_task(_execute(line, topics, call), name=call["call_id"])
                else:
                    await _execute(line, topics, call)


async def _execute(line: Line, topics: Topics, call: Body) -> None:
    if wait_ms := call["input"]["wait_ms"]:
        await asyncio.sleep(wait_ms / 1000)
    result = {"call_id": call["call_id"], "run_id": call["run_id"], "content": workload.RESULT}
    await line.send(topics.results, call["run_id"], result)


# --- the client ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Floor:
    """See `subject.Subject`."""

    workers: Mapping[str, Worker]
    line: Line
    topics: Topics
    waiting: dict[str, asyncio.Future[Body]] = field(default_factory=dict)
    name: str = "floor"

    async def ask(self, tool_ms: int) -> None:
        run_id = f"run-{secrets.token_hex(10)}"
        answer = self.waiting[run_id] = asyncio.get_running_loop().create_future()
        request = {"run_id": run_id, "input": workload.prompt(tool_ms), "inbox": INBOX}
        await self.line.send(self.topics.requests, run_id, request)
        async with asyncio.timeout(ANSWER_S):
            body = await answer
        if body["output"] != workload.ANSWER or body["calls"] != workload.CALLS:
            raise WrongAnswer(f"a run of the floor ended as {body}")

    async def read(self) -> None:
        """Take answers for ever."""
        while True:
            for record in await self.line.read():
                body = orjson.loads(record.value)
                answer = self.waiting.pop(body["run_id"])
                if not answer.done():
                    answer.set_result(body)


@asynccontextmanager
async def floor(
    bootstrap: str, namespace: str, processes: Mapping[str, str] = PROCESSES, name: str = "floor"
) -> AsyncIterator[Floor]:
    """Make the topics of the floor in `namespace`, and relay while the context lasts."""
    settings = settings_for(bootstrap, namespace)
    topics = Topics.of(settings)
    await broker_of(settings).apply(topics.specs())
    inbox = [TopicPartition(topics.answers, INBOX)]
    async with fleet(processes, bootstrap, namespace) as workers, Line.opened(bootstrap, inbox) as line:
        subject = Floor(workers, line, topics, name=name)
        async with alongside(subject.read(), "answers"):
            yield subject
