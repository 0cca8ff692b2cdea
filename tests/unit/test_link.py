"""Requests and answers on one connection, without a broker.

Responsible for: `Link`'s framing, its order, and what becomes of requests when the connection ends. Must never: open a
socket; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import logging
import random
import struct
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CorrelationIdError, IncompatibleBrokerVersion, KafkaConnectionError
from tests.support.wait import until

from anabranch.kafka import link as link_module
from anabranch.kafka.link import Link

SOON_S = 10.0


class Connection:
    """What a link uses of aiokafka's."""

    host, port, _client_id = "broker", 9092, "me"

    def __init__(self) -> None:
        self._versions = {0: (3, 12), 1: (4, 17)}
        self._requests: deque[tuple[int, float, Any]] = deque()
        self._reader: Any = SimpleNamespace()
        self._writer: Any = SimpleNamespace(transport=SimpleNamespace(write=self.write, abort=self.abort))
        self._last_action = 0.0
        self.written: list[bytes] = []
        self.closed_for: list[Any] = []
        self.broken = self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        if self.broken:
            raise OSError("broken pipe")
        self.written.append(data)

    def connected(self) -> bool:
        return self._reader is not None

    def close(self, reason: Any, exc: Exception) -> None:
        """As aiokafka does it: in the order of the requests, and only then forgets them."""
        self.closed_for.append(reason)
        self._reader = self._writer = None
        for _, _, asked in self._requests:
            if not asked.done():
                asked.set_exception(KafkaConnectionError(str(exc)))
        self._requests = deque()


def frame(correlation_id: int, body: bytes) -> bytes:
    return struct.pack(">ii", 4 + len(body), correlation_id) + body


async def test_a_request_goes_out_at_once_behind_its_header() -> None:
    connection = Connection()
    Link(connection, SOON_S).ask(0, 7, b"body", lambda _: None)
    (written,) = connection.written
    assert written == struct.pack(">ihhih", 16, 0, 7, 1, 2) + b"me" + b"body"


@pytest.mark.parametrize("seed", range(20))
async def test_however_answers_are_cut_each_request_hears_its_own(seed: int) -> None:
    chance = random.Random(seed)
    connection = Connection()
    link = Link(connection, SOON_S)
    feed = connection._reader.feed_data
    heard: list[bytes | Exception] = []
    bodies = [chance.randbytes(chance.choice([0, 1, 50, 5000])) for _ in range(20)]
    for _ in bodies:
        link.ask(1, 11, b"", heard.append)
    stream = b"".join(frame(number, body) for number, body in enumerate(bodies, 1))
    while stream:
        size = chance.choice([1, 3, 100, 20_000])
        feed(stream[:size])
        stream = stream[size:]
    assert heard == [struct.pack(">i", number) + body for number, body in enumerate(bodies, 1)]
    assert connection._last_action > 0


async def test_an_answer_to_another_request_ends_the_connection_and_all_hear_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = Connection()
    link = Link(connection, SOON_S)
    heard: list[bytes | Exception] = []
    feed = connection._reader.feed_data
    link.ask(0, 7, b"", heard.append)
    link.ask(0, 7, b"", heard.append)
    with caplog.at_level(logging.CRITICAL):
        feed(frame(9, b"?") + frame(2, b"late"))
    assert [type(each) for each in heard] == [CorrelationIdError, KafkaConnectionError]
    assert not link.is_open


async def test_a_failure_to_understand_an_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection()
    link = Link(connection, SOON_S)
    feed = connection._reader.feed_data

    def misread(_: bytes | Exception) -> None:
        raise ValueError("what is this?")

    link.ask(0, 7, b"", misread)
    feed(frame(1, b""))
    assert not link.is_open
    assert "cannot be understood" in caplog.text


@pytest.mark.parametrize("size", [-4, 0, 3])
async def test_a_stream_that_is_no_answers_ends_the_connection_and_all_hear_of_it(size: int) -> None:
    connection = Connection()
    link = Link(connection, SOON_S)
    heard: list[bytes | Exception] = []
    feed = connection._reader.feed_data
    link.ask(0, 7, b"", heard.append)
    feed(struct.pack(">i", size) + b"xxxx")
    assert [type(each) for each in heard] == [KafkaConnectionError]
    assert not link.is_open


async def test_who_asks_on_a_closed_or_broken_connection_hears_of_it() -> None:
    heard: list[bytes | Exception] = []
    connection = Connection()
    link = Link(connection, SOON_S)
    connection.broken = True
    link.ask(0, 7, b"", heard.append)
    link.ask(0, 7, b"", heard.append)
    assert [type(each) for each in heard] == [KafkaConnectionError, KafkaConnectionError]


async def test_a_broker_that_does_not_answer_in_time_is_left_also_if_it_answered_others() -> None:
    connection = Connection()
    silences: list[None] = []
    link = Link(connection, 0.05, lambda: silences.append(None))
    feed = connection._reader.feed_data
    heard: list[bytes | Exception] = []
    link.ask(0, 7, b"", heard.append)
    link.ask(0, 7, b"", heard.append)
    feed(frame(1, b""))
    await until(lambda: len(heard) == 2, SOON_S, "the second one is told")
    assert len(silences) == 1
    assert isinstance(heard[1], KafkaConnectionError)
    assert not link.is_open
    assert connection.aborted, "what has not been written yet is sent again, and must not follow that"


async def test_a_broker_that_has_said_that_it_hears_nothing_for_a_while_is_not_silent() -> None:
    connection = Connection()
    heard: list[bytes | Exception] = []
    link = Link(connection, 0.05)
    began = time.monotonic()
    link.throttled(200)
    link.throttled(1)
    assert link.is_deaf
    link.ask(0, 7, b"", heard.append)
    await until(lambda: bool(heard), SOON_S, "it is silent after that")
    assert time.monotonic() - began >= 0.25
    assert not link.is_deaf


async def test_a_broker_that_asks_for_weeks_is_not_given_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "DEAF_S", 0.1)
    heard: list[bytes | Exception] = []
    link = Link(Connection(), 0.05)
    link.throttled(2**31 - 1)
    assert caplog.messages == ["broker:9092 hears nothing more for 2147483.6 s: a quota of Kafka is exceeded"]
    link.ask(0, 7, b"", heard.append)
    await until(lambda: bool(heard), SOON_S, "it is silent")
    link = Link(Connection(), 0.05)
    link.throttled(60_000)
    link.abort()
    assert not link.is_deaf, "another connection is heard"


async def test_who_stood_still_reads_what_was_answered_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LATE_S", 0.05)
    connection = Connection()
    silences: list[None] = []
    link = Link(connection, 0.02, lambda: silences.append(None))
    feed = connection._reader.feed_data
    heard: list[bytes | Exception] = []
    link.ask(0, 7, b"", heard.append)
    began = time.monotonic()
    while time.monotonic() < began + 0.1:  # the whole process, not this task
        pass
    first = link._watch
    await until(lambda: link._watch is not first, SOON_S, "it to look")
    assert link.is_open
    feed(frame(1, b""))
    assert not isinstance(heard[0], Exception)
    link.ask(0, 7, b"", heard.append)
    await until(lambda: len(heard) == 2, SOON_S, "the broker to be silent")
    assert (link.is_open, len(silences)) == (False, 1)


async def test_an_idle_connection_is_not_taken_for_a_broker_that_hangs() -> None:
    connection = Connection()
    link = Link(connection, 0.01)
    feed = connection._reader.feed_data
    for number in range(1, 6):
        link.ask(0, 7, b"", lambda _: None)
        feed(frame(number, b""))
        await until(lambda: link._watch is None, SOON_S, "nothing is watched")
    assert link.is_open


async def test_versions_are_agreed_on_or_refused() -> None:
    link = Link(Connection(), SOON_S)
    assert link.version(0, 3, 7) == 7
    assert link.version(1, 1, 4) == 4
    with pytest.raises(IncompatibleBrokerVersion, match="versions 4 to 17 of request 1, and we 1 to 3"):
        link.version(1, 1, 3)
    with pytest.raises(IncompatibleBrokerVersion):
        link.version(99, 0, 3)
