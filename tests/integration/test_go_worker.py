"""The example tool worker in Go, built and run against a real Kafka, by nothing but docs/wire.md.

Responsible for: that a tool worker in another language works with what the wire promises, and that the example is
formatted, vetted and does what its comments say; one run goes the whole way, with our own workers around it.
Must never: test our own workers, which have tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from tests.support.fleet import fleet, settings_for
from tests.support.kafka_admin import admin_of
from tests.support.need import need_tool
from tests.support.process import Command, GuardedProcess, tail
from tests.support.wait import until

from anabranch.contract.examples import TRACE
from anabranch.declarations.loading import load_app
from anabranch.events import RunEvent
from anabranch.log_events import ToolReturned
from anabranch.testing import last_results, result_text, text, tool_use, turn_of

pytestmark = pytest.mark.timeout(300)  # the first build may have to fetch and compile its modules

SOURCE = Path(__file__).parents[2] / "examples" / "go-tool-worker"
HOW = "https://go.dev/dl, version 1.24 or later"
LOG_PARTITIONS = 4
WAIT_S = 30.0

Record = Any  # aiokafka's record; its clients are `Any` below, because most of their methods have no types


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled worker."""
    target = tmp_path_factory.mktemp("go") / "go-tool-worker"
    run_go("build", "-buildvcs=false", "-o", str(target), ".")
    return target


def run_go(*arguments: str) -> None:
    command = [need_tool("go", HOW), *arguments]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"`go {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}", pytrace=False)


@dataclass
class Wire:
    """A namespace with the two topics that a tool worker touches, and what has been read from its log."""

    bootstrap: str
    namespace: str
    producer: Any
    consumer: Any
    seen: list[Record] = field(default_factory=list)

    @property
    def calls(self) -> str:
        return f"{self.namespace}.tool.calls.go"

    @property
    def log(self) -> str:
        return f"{self.namespace}.agent.log"

    async def call(self, run_id: str, *, headers: dict[str, str] | None = None, **changes: Any) -> None:
        """Publish a call of `pollen` as an agent worker would, with `changes` to its body."""
        call_id = f"{run_id}/1.00ff/0"
        ours = {"ce_specversion": "1.0", "ce_id": call_id, "ce_source": "/agents/test", "ce_type": "tool.call"}
        ours |= {"ce_runid": run_id, "ce_life": "17", "ce_callid": call_id} if headers is None else headers
        body = {
            "call_id": call_id,
            "run_id": run_id,
            "agent": "forecaster",
            "tenant": None,
            "tool": "pollen",
            "input": {"city": "Ghent"},
            "dispatch": 1,
            "deadline": time.time() + 60,
            "idempotency_key": call_id,
            "reply": {"topic": self.log, "partition": 2},
        }
        await self.send(json.dumps(body | changes).encode(), [(name, value.encode()) for name, value in ours.items()])

    async def send(self, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        """Publish any record. All go to one partition, so that the worker meets them in order."""
        await self.producer.send_and_wait(self.calls, value, b"key", partition=0, headers=headers)

    async def results(self, count: int) -> list[Record]:
        """All records of the log once there are `count` of them, in the order of their run ids."""

        async def read() -> bool:
            for records in (await self.consumer.getmany(timeout_ms=200)).values():
                self.seen.extend(records)
            return len(self.seen) >= count

        await wait(read, f"{count} results in {self.log}")
        return sorted(self.seen, key=lambda record: str(record.key))

    async def everything_is_committed(self) -> None:
        """Wait until the worker's group has committed the end of the calls."""
        partition = TopicPartition(self.calls, 0)
        end = (await self.consumer.end_offsets([partition]))[partition]
        async with admin_of(self.bootstrap) as admin:

            async def committed() -> bool:
                group = f"{self.namespace}.tools.go"
                offsets = await admin.list_consumer_group_offsets(group, partitions=[partition])
                return bool(offsets[partition].offset == end)

            await wait(committed, f"the commit of offset {end} in {self.calls}")


async def wait(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    await until(condition, WAIT_S, what)


@pytest.fixture
async def wire(kafka: str, namespace: str) -> AsyncIterator[Wire]:
    async with admin_of(kafka) as admin:
        names = {f"{namespace}.tool.calls.go": 3, f"{namespace}.agent.log": LOG_PARTITIONS}
        new_topic: Any = NewTopic
        await admin.create_topics([new_topic(name, count, 1) for name, count in names.items()])
    new_producer: Any = AIOKafkaProducer
    new_consumer: Any = AIOKafkaConsumer
    reader = new_consumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    async with new_producer(bootstrap_servers=kafka) as producer, reader as consumer:
        consumer.assign([TopicPartition(f"{namespace}.agent.log", number) for number in range(LOG_PARTITIONS)])
        yield Wire(kafka, namespace, producer, consumer)


@contextmanager
def running(binary: Path, wire: Wire, log: Path) -> Iterator[GuardedProcess]:
    """The worker on `wire`."""
    with running_at(binary, wire.bootstrap, wire.namespace, log) as process:
        yield process


@contextmanager
def running_at(binary: Path, bootstrap: str, namespace: str, log: Path) -> Iterator[GuardedProcess]:
    """The worker, from start to an orderly stop; its log goes to standard output, for the report of a failure."""
    env = {"ANABRANCH_BOOTSTRAP": bootstrap, "ANABRANCH_NAMESPACE": namespace}
    process = GuardedProcess(Command([str(binary)], env), log)
    try:
        yield process
    finally:
        process.stop()
        print(tail(log))  # noqa: T201


def headers_of(record: Record) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


def test_the_worker_is_vetted_and_formatted() -> None:
    run_go("vet", "./...")
    done = subprocess.run([need_tool("gofmt", HOW), "-l", str(SOURCE)], capture_output=True, text=True, check=True)
    assert done.stdout == ""


async def test_a_call_gets_its_result_where_it_asked_for_it(binary: Path, wire: Wire, tmp_path: Path) -> None:
    before = time.time()
    with running(binary, wire, tmp_path / "worker.log"):
        named = {"ce_runid": "run-1", "ce_life": "17", "ce_callid": "run-1/1.00ff/0"}
        await wire.call("run-1", headers={**named, "traceparent": TRACE})
        [result] = await wire.results(1)

    headers = headers_of(result)
    assert (result.partition, result.key) == (2, b"run-1")
    assert headers.pop("traceparent") == TRACE
    assert headers.pop("ce_id")
    assert headers.pop("ce_source")
    assert headers == {
        "ce_specversion": "1.0",
        "ce_type": "tool.returned",
        "ce_runid": "run-1",
        "ce_life": "17",
        "ce_callid": "run-1/1.00ff/0",
        "ce_outcome": "ok",
    }
    body = json.loads(result.value)
    assert set(body) == {"content", "started_at", "finished_at", "tries", "worker"}
    assert before <= body["started_at"] <= body["finished_at"] <= time.time()
    assert json.loads(body["content"]).keys() == {"city", "level", "grains_per_m3"}


async def test_the_same_city_has_the_same_pollen(binary: Path, wire: Wire, tmp_path: Path) -> None:
    with running(binary, wire, tmp_path / "worker.log"):
        for place, city in enumerate(("Ghent", " ghent ", "Porto")):
            await wire.call(f"run-{place}", input={"city": city})
        first, again, other = (json.loads(json.loads(r.value)["content"]) for r in await wire.results(3))

    assert first["grains_per_m3"] == again["grains_per_m3"] != other["grains_per_m3"]


async def test_an_unknown_tool_and_a_wrong_input_get_error_results(binary: Path, wire: Wire, tmp_path: Path) -> None:
    with running(binary, wire, tmp_path / "worker.log"):
        await wire.call("run-1", tool="snow")
        await wire.call("run-2", input={"city": 7})
        await wire.call("run-3", input=["Ghent"])
        await wire.call("run-4", input={})
        results = await wire.results(4)

    assert [headers_of(result)["ce_outcome"] for result in results] == ["error"] * 4
    texts = [json.loads(result.value)["content"] for result in results]
    assert texts[0] == 'this worker has no tool "snow"; it serves: pollen'
    assert texts[1] == 'pollen wants {"city": "<name>"}, not {"city": 7}'
    assert all(text.startswith("pollen wants") for text in texts[1:])


async def test_records_that_nobody_can_answer_do_not_stop_it(binary: Path, wire: Wire, tmp_path: Path) -> None:
    await wire.send(b"not JSON", [("ce_type", b"tool.call")])
    await wire.send(None, [])
    await wire.call("no-headers", headers={})
    await wire.call("no-reply", reply=None)
    await wire.call("no-partition", reply={"topic": wire.log})
    await wire.call("no-such-partition", reply={"topic": wire.log, "partition": 99})
    await wire.call("no-such-topic", reply={"topic": f"{wire.namespace}.nothing", "partition": 0})
    await wire.call("run-1")
    with running(binary, wire, tmp_path / "worker.log"):
        [result] = await wire.results(1)
        await wire.everything_is_committed()

    assert headers_of(result)["ce_runid"] == "run-1"
    assert (tmp_path / "worker.log").read_text().count("passing over") == 7


async def test_a_worker_that_is_started_again_repeats_no_committed_call(
    binary: Path, wire: Wire, tmp_path: Path
) -> None:
    with running(binary, wire, tmp_path / "first.log"):
        await wire.call("run-1")
        await wire.results(1)
        await wire.everything_is_committed()
    with running(binary, wire, tmp_path / "second.log"):
        await wire.call("run-2")
        await wire.results(2)
        await wire.everything_is_committed()

    assert [record.key for record in wire.seen] == [b"run-1", b"run-2"]


async def test_it_ends_by_itself_when_told_to_stop(binary: Path, wire: Wire, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with running(binary, wire, log) as process:
        await wire.call("run-1")
        await wire.results(1)
        started = time.monotonic()
        await asyncio.to_thread(process.stop)

    assert time.monotonic() - started < 15
    assert "panic" not in log.read_text()


def forecast(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Plays the forecaster: asks for both tools at once, then answers with what came back."""
    if turn_of(request) == 1:
        return [tool_use("pollen", {"city": "Ghent"}), tool_use("weather", {"city": "Ghent"})]
    return [text("\n".join(result_text(result) for result in last_results(request).values()))]


async def test_a_run_has_one_tool_in_python_and_one_in_go(
    binary: Path, kafka: str, namespace: str, tmp_path: Path
) -> None:
    app = load_app(str(SOURCE.parent / "weather.py"))
    async with fleet(app, forecast, settings_for(kafka, namespace), queues=["io"]) as running_fleet:
        with running_at(binary, kafka, namespace, tmp_path / "worker.log"):
            run = await running_fleet.client.submit("forecaster", "Hay fever in Ghent tomorrow?")
            answer = await asyncio.wait_for(run, 60)
            events = [seen.event async for seen in run.events() if isinstance(seen, RunEvent)]

    assert (answer.status, answer.turns) == ("completed", 2)
    assert (answer.calls.total, answer.calls.failed) == (2, 0)
    pollen, weather = (json.loads(line) for line in (answer.output or "").splitlines())
    assert pollen.keys() == {"city", "level", "grains_per_m3"}
    assert weather.keys() == {"city", "sky", "high_celsius"}
    results = [event.body for event in events if isinstance(event, ToolReturned)]
    last = [json.loads(body)["worker"] == "go-tool-worker" for body in results]
    assert last == [False, True]  # pollen waited for the weather, although it was asked for first
