"""The floor with a log, dressed as the wire wants it: what no code that keeps to `docs/wire.md` can leave out.

To the relay with a log (`logged.py`) come the headers that records of those kinds carry, which are written and read,
and what users hand in: each model call and each tool call is a coroutine of theirs, so it has a task and a timeout. Its
ways to Kafka are Anabranch's, which are shorter than aiokafka's. Still no commits, no fold, no limits, nothing checked:
whatever Anabranch costs above this is what an agent is.

Responsible for: both relays. The client and the texts are the floor's.
Must never: do more than a relay of such records has to.
Called by: `worker.py`, `__main__.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Final

import orjson

from anabranch.codec import Outgoing, Record
from anabranch.config import Settings
from anabranch.kafka.seam import Appender, Place, Subscription
from anabranch.kafka.sent import Sent
from anabranch.roles import broker_of
from anabranch.runtime import Shutdown
from anabranch.tasks import alongside
from tests.bench import logged, workload
from tests.bench.floor import Body, Pairs, Sender, Topics, floor
from tests.bench.subject import Subject

PROCESSES: Final = {"agent": "dressed-agent", "tool": "dressed-tool"}
CALL_S: Final = 60.0
SOURCE: Final = "anabranch/worker/0123456789abcdef"

_numbers: Final = count()


def _headers(kind: str, run_id: str, **more: object) -> Pairs:
    """CloudEvents of `kind`, and what the event presumes; the floor has no values for these, so they are made up."""
    ours = {"specversion": "1.0", "id": f"0123456789abcdef{next(_numbers):x}", "source": SOURCE, "type": kind}
    named: dict[str, object] = {**ours, "runid": run_id, "life": 123_456, **more}
    return [(f"ce_{name}", str(value).encode()) for name, value in named.items()]


def _read(record: Any) -> dict[str, str]:
    """The headers as texts."""
    return {name: value.decode() for name, value in record.headers}


class _Relay(logged.Relay):
    """With headers, and a task for each model call."""

    def __init__(self, line: Sender, topics: Topics) -> None:
        super().__init__(line, topics)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, record: Any) -> None:
        _read(record)
        super().take(record)

    def ask(self, run_id: str, results: dict[str, str], then: Callable[[str], None]) -> None:
        task = asyncio.create_task(self._asked(run_id, results, then))
        self._tasks.add(task)
        task.add_done_callback(self._replied)

    async def _asked(self, run_id: str, results: dict[str, str], then: Callable[[str], None]) -> None:
        said = [{"type": "tool_result", "tool_use_id": call, "content": text} for call, text in results.items()]
        body = orjson.dumps({"model": "instant", "messages": [{"role": "user", "content": said}]})
        async with asyncio.timeout(CALL_S):
            await _model(body)
        then(run_id)

    def _replied(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def headers_of(self, topic: str, body: Body) -> Pairs:
        run_id = body["run_id"]
        if topic == self.topics.calls:
            return _headers("tool.call", run_id, callid=body["call_id"])
        if topic == self.topics.answers:
            return _headers("run.response", run_id)
        if body["event"] == "requested":
            return _headers("run.requested", run_id, after=123_455, requestoffset=123_456)
        return _headers("model.replied", run_id, turn=1, attempt=1, outcome="calls", plan="[]", usage="{}")


async def _model(body: bytes) -> bytes:
    """What a user hands in, at no cost of its own."""
    return body


async def _tool(wait_ms: int, note: str) -> str:
    if wait_ms:
        await asyncio.sleep(wait_ms / 1000)
    return workload.RESULT


async def relay_agent(settings: Settings, shutdown: Shutdown) -> None:
    """As `logged.relay_agent`."""
    topics = Topics.of(settings)
    async with _opened(settings, topics.requests, topics.results) as line:
        relay = _Relay(line, topics)
        async with alongside(relay.send_for_ever(), "sends"):
            await line.read_until(shutdown, relay.take)


async def relay_tool(settings: Settings, shutdown: Shutdown) -> None:
    """Calls to results, each in a task."""
    topics = Topics.of(settings)
    async with _opened(settings, topics.calls) as line, asyncio.TaskGroup() as tasks:
        await line.read_until(shutdown, lambda record: tasks.create_task(_execute(line, topics, record)))


async def _execute(line: _Line, topics: Topics, record: Any) -> None:
    named, call = _read(record), orjson.loads(record.value)
    async with asyncio.timeout(CALL_S):
        content = await _tool(**call["input"])
    result = {"call_id": call["call_id"], "run_id": call["run_id"], "content": content}
    headers = _headers("tool.returned", named["ce_runid"], callid=named["ce_callid"], outcome="ok")
    await line.send(topics.results, call["run_id"], result, headers=headers)


# --- our ways to Kafka --------------------------------------------------------------------------------------------


class _Line:
    """An appender of ours and, as its listener, a subscription. Made by `_opened`."""

    ahead_bytes: Final = 2 * 1024 * 1024
    is_answering: Final = False
    is_sated: Final = False

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._places: frozenset[Place] = frozenset()
        self._subscription: Subscription | None = None
        self._take: Callable[[Any], object] | None = None

    def serve(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def read_until(self, shutdown: Shutdown, take: Callable[[Any], object]) -> None:
        """Read from the start, for the topics are new, and hand each record to `take`."""
        assert self._subscription is not None
        self._take = take
        self.assigned(self._places)
        async with alongside(self._subscription.run(), "subscription"):
            shutdown.ready.set()
            await shutdown.asked.wait()

    async def send(
        self,
        topic: str,
        key: str,
        body: Body,
        partition: int | None = None,
        then: Callable[[], None] | None = None,
        headers: Pairs | None = None,
    ) -> None:
        """See `floor.Sender`."""
        record = Outgoing(topic, key.encode(), orjson.dumps(body), tuple(headers or ()), partition)
        self._appender.append(record).add_done_callback(partial(self._sent, then))

    def _sent(self, then: Callable[[], None] | None, sent: Sent) -> None:
        sent.result()
        if then is not None:
            then()

    # What a `Listener` has.

    def assigned(self, places: frozenset[Place]) -> None:
        self._places = places
        if self._take is not None and self._subscription is not None:
            for place in places:
                self._subscription.seek(place, 0)

    async def revoked(self, places: frozenset[Place], lost: bool) -> None:
        raise AssertionError("nobody else is in the group")

    def records(self, place: Place, records: Sequence[Record]) -> None:
        assert self._take is not None
        for record in records:
            self._take(record)

    def position(self, place: Place, offset: int) -> None:
        pass

    def known(self, place: Place) -> int:
        return 0


@asynccontextmanager
async def _opened(settings: Settings, *topics: str) -> AsyncIterator[_Line]:
    broker = broker_of(settings)
    async with broker.appender() as appender:
        line = _Line(appender)
        async with broker.subscribe(topics, topics[0], line) as subscription:
            line.serve(subscription)
            yield line


def dressed(bootstrap: str, namespace: str) -> AbstractAsyncContextManager[Subject]:
    """As `floor.floor`, with these relays."""
    return floor(bootstrap, namespace, PROCESSES, "dressed")
