"""The floor with a log: what the same hops cost with bare aiokafka, if what was decided is written before it is done.

Three events of a run are appended to the topic of the results, and read back from it as everything there is: that it
was asked for, and each of the model's replies. What follows from an event is sent once the broker has it. Nothing else
is kept: no group, no commits, no headers, no fold, and what a relay knows is gone with it. So the floor shows what hops
cost, and this what it costs besides that the log comes first, before there is any code of ours.

Responsible for: the agent's relay. The tools' relay, the client and the texts are the floor's.
Must never: do more than a relay with a log has to.
Called by: `worker.py`, `__main__.py`, `dressed.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import orjson

from anabranch.config import Settings
from anabranch.runtime import Shutdown
from anabranch.tasks import alongside
from tests.bench import workload
from tests.bench.floor import Body, Line, Pairs, Sender, Topics, all_of, floor
from tests.bench.subject import Subject

PROCESSES: Final = {"agent": "logged-agent", "tool": "floor-tool"}


@dataclass(slots=True)
class _Run:
    """A run whose results are coming in, by call."""

    inbox: int
    wait_ms: int
    results: dict[str, str] = field(default_factory=dict)


class Relay:
    """Requests and results in; events, calls and answers out, in the order in which they are thought of."""

    def __init__(self, line: Sender, topics: Topics) -> None:
        self._line, self.topics = line, topics
        self.runs: dict[str, _Run] = {}
        self._outbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()

    async def send_for_ever(self) -> None:
        while True:
            await (await self._outbox.get())()

    def take(self, record: Any) -> None:
        """One record of the requests or of the log."""
        body = orjson.loads(record.value)
        if record.topic == self.topics.requests:
            self._requested(body)
        elif "event" not in body:  # our own events we know already
            self._result(body)

    def _requested(self, request: Body) -> None:
        run_id = request["run_id"]
        self.runs[run_id] = _Run(request["inbox"], workload.tool_ms_of(request["input"].encode()))
        self._log(run_id, {"event": "requested", **request}, lambda _: self.ask(run_id, {}, self._called))

    def ask(self, run_id: str, results: dict[str, str], then: Callable[[str], None]) -> None:
        """The model, which has replied when it is asked."""
        then(run_id)

    def _called(self, run_id: str) -> None:
        """The model wants its calls: they are in the log, and then they are made."""
        inputs = {"wait_ms": self.runs[run_id].wait_ms, "note": workload.NOTE}
        calls = [
            {"call_id": f"{run_id}/{number}", "run_id": run_id, "input": inputs} for number in range(workload.CALLS)
        ]
        self._log(run_id, {"event": "replied", "run_id": run_id, "calls": calls}, lambda _: self._call(calls))

    def _call(self, calls: list[Body]) -> None:
        for call in calls:
            self.send(self.topics.calls, call["call_id"], call)

    def _result(self, result: Body) -> None:
        run_id = result["run_id"]
        run = self.runs[run_id]
        run.results[result["call_id"]] = result["content"]
        if len(run.results) == workload.CALLS:
            self.ask(run_id, run.results, self._answered)

    def _answered(self, run_id: str) -> None:
        self._log(run_id, {"event": "replied", "run_id": run_id, "output": workload.ANSWER}, self._answer)

    def _answer(self, run_id: str) -> None:
        run = self.runs.pop(run_id)
        answer = {"run_id": run_id, "output": workload.ANSWER, "calls": len(run.results)}
        self.send(self.topics.answers, run_id, answer, run.inbox)

    def _log(self, run_id: str, event: Body, then: Callable[[str], None]) -> None:
        """Append `event`; `then` follows when the broker has it."""
        self.send(self.topics.results, run_id, event, None, partial(then, run_id))

    def send(
        self, topic: str, key: str, body: Body, partition: int | None = None, then: Callable[[], None] | None = None
    ) -> None:
        """After all that was to be sent before."""
        headers = self.headers_of(topic, body)
        self._outbox.put_nowait(partial(self._line.send, topic, key, body, partition, then, headers))

    def headers_of(self, topic: str, body: Body) -> Pairs | None:
        """None at all."""
        return None


async def relay_agent(settings: Settings, shutdown: Shutdown) -> None:
    """Requests to calls, results to answers, with a log between."""
    topics = Topics.of(settings)
    async with Line.opened(settings.kafka.bootstrap, all_of(topics.requests, topics.results)) as line:
        relay = Relay(line, topics)
        async with alongside(relay.send_for_ever(), "sends"):
            shutdown.ready.set()
            while not shutdown.asked.is_set():
                for record in await line.read():
                    relay.take(record)


def logged(bootstrap: str, namespace: str) -> AbstractAsyncContextManager[Subject]:
    """As `floor.floor`, with this agent."""
    return floor(bootstrap, namespace, PROCESSES, "logged")
