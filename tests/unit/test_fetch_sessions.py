"""What a consumer's fetches become: named once, then only what changed, and anew when a broker may have lost count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, UnknownError
from aiokafka.protocol.fetch import FetchRequest, FetchResponse_v5, FetchResponse_v11
from aiokafka.protocol.metadata import MetadataRequest

from anabranch.kafka.sessions import LONGEST_PAUSE_S, PAUSE_S, FetchSessions

NOT_FOUND, WRONG_EPOCH, UNKNOWN_ERROR = 70, 71, -1
Asked = dict[str, dict[int, int]]


class Broker:
    """The broker's half of KIP-227: what it remembers, and what each request named. It answers nothing new."""

    def __init__(self, session_id: int = 7, versions: tuple[int, int] = (4, 11)) -> None:
        self.session_id, self.versions = session_id, versions
        self.brings = b""
        self.asked_at: list[float] = []
        self.known: Asked = {}
        self.named: list[tuple[int, int, Asked, dict[str, list[int]]]] = []
        self.fails: list[int | Exception | asyncio.Event] = []

    async def send(self, node: int, request: Any) -> Any:
        self.asked_at.append(time.monotonic())
        body = request.prepare({1: self.versions}).to_object()
        if "session_id" not in body:
            self.named.append((0, 0, _asked(body), {}))
            return FetchResponse_v5(0, [])
        forgotten = {each["topic"]: each["partitions"] for each in body["forgotten_topics_data"]}
        self.named.append((body["session_id"], body["session_epoch"], _asked(body), forgotten))
        if self.fails and (fails := self.fails.pop(0)) is not None:
            if isinstance(fails, asyncio.Event):
                await fails.wait()
            elif isinstance(fails, Exception):
                raise fails
            else:
                return FetchResponse_v11(0, fails, 0, [])
        self._remember(body["session_epoch"], _asked(body), forgotten)
        brought: list[Any] = [("log", [(0, 0, 0, 0, 0, [], -1, self.brings)])] if self.brings else []
        return FetchResponse_v11(0, 0, self.session_id, brought)

    def _remember(self, epoch: int, asked: Asked, forgotten: dict[str, list[int]]) -> None:
        self.known = {} if epoch == 0 else self.known
        for topic, offsets in asked.items():
            self.known.setdefault(topic, {}).update(offsets)
        for topic, partitions in forgotten.items():
            for partition in partitions:
                del self.known[topic][partition]


def _asked(body: Any) -> Asked:
    return {
        each["topic"]: {one["partition"]: one.get("fetch_offset", one.get("offset")) for one in each["partitions"]}
        for each in body["topics"]
    }


def fetch(wanted: Asked) -> FetchRequest:
    topics = [(topic, [(p, offset, 1000) for p, offset in offsets.items()]) for topic, offsets in wanted.items()]
    return FetchRequest(100, 1, 50_000, 1, topics)


async def test_the_first_fetch_names_everything_and_the_next_only_what_changed() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    await sessions.send(1, fetch({"log": {0: 5, 1: 6}, "calls": {0: 9}}))
    await sessions.send(1, fetch({"log": {0: 5, 1: 8}, "calls": {0: 9}}))
    await sessions.send(1, fetch({"log": {0: 5, 1: 8}, "calls": {0: 9}}))
    assert broker.named == [
        (0, 0, {"log": {0: 5, 1: 6}, "calls": {0: 9}}, {}),
        (7, 1, {"log": {1: 8}}, {}),
        (7, 2, {}, {}),
    ]
    assert broker.known == {"log": {0: 5, 1: 8}, "calls": {0: 9}}


async def test_what_is_no_longer_read_is_forgotten_and_what_is_read_again_named_again() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    for wanted in ({"log": {0: 5, 1: 6}}, {"log": {1: 6}}, {"log": {0: 5, 1: 6}}):
        await sessions.send(1, fetch(wanted))
        assert broker.known == wanted
    assert [forgotten for *_, forgotten in broker.named] == [{}, {"log": [0]}, {}]


async def test_each_broker_has_a_session_of_its_own() -> None:
    one, two = Broker(session_id=7), Broker(session_id=9)
    sessions = FetchSessions(lambda node, request: (one if node == 1 else two).send(node, request))
    for _ in range(2):
        await sessions.send(1, fetch({"log": {0: 5}}))
        await sessions.send(2, fetch({"log": {1: 6}}))
    assert [named[0] for named in one.named] == [0, 7]
    assert [named[0] for named in two.named] == [0, 9]


@pytest.mark.parametrize("code", [NOT_FOUND, WRONG_EPOCH])
async def test_a_session_that_the_broker_does_not_know_is_begun_anew_at_once(code: int) -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    await sessions.send(1, fetch({"log": {0: 5, 1: 6}}))
    broker.fails, broker.known = [code], {}
    await sessions.send(1, fetch({"log": {0: 5, 1: 7}}))
    assert [named[1] for named in broker.named] == [0, 1, 0]
    assert broker.known == {"log": {0: 5, 1: 7}}


async def test_another_error_is_raised_and_the_next_fetch_begins_anew() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    await sessions.send(1, fetch({"log": {0: 5}}))
    broker.fails = [UNKNOWN_ERROR]
    with pytest.raises(UnknownError):
        await sessions.send(1, fetch({"log": {0: 5}}))
    await sessions.send(1, fetch({"log": {0: 5}}))
    assert [(named[1], named[2]) for named in broker.named] == [
        (0, {"log": {0: 5}}),
        (1, {}),
        (0, {"log": {0: 5}}),
    ]


async def test_after_a_lost_connection_it_begins_anew_for_the_broker_may_have_counted_the_fetch() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    await sessions.send(1, fetch({"log": {0: 5}}))
    broker.fails = [KafkaConnectionError("gone")]
    with pytest.raises(KafkaConnectionError):
        await sessions.send(1, fetch({"log": {0: 6}}))
    await sessions.send(1, fetch({"log": {0: 6}}))
    assert broker.named[-1] == (7, 0, {"log": {0: 6}}, {})


async def test_a_cancelled_fetch_begins_anew_for_the_broker_has_counted_it() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    await sessions.send(1, fetch({"log": {0: 5}}))
    broker.fails = [asyncio.Event()]
    fetching = asyncio.ensure_future(sessions.send(1, fetch({"log": {0: 6}})))
    await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await sessions.send(1, fetch({"log": {0: 6}}))
    assert broker.named[-1] == (7, 0, {"log": {0: 6}}, {})


@pytest.mark.parametrize(
    "broker",
    [lambda: Broker(session_id=0), lambda: Broker(versions=(4, 6))],
    ids=["has no room for sessions", "is too old for sessions"],
)
async def test_a_broker_that_keeps_no_session_is_told_everything_each_time(broker: Callable[[], Broker]) -> None:
    told = broker()
    sessions = FetchSessions(told.send)
    for offset in (5, 6, 7):
        await sessions.send(1, fetch({"log": {0: offset, 1: 1}}))
    assert [(named[1], named[2]) for named in told.named] == [(0, {"log": {0: o, 1: 1}}) for o in (5, 6, 7)]


async def test_every_version_of_a_fetch_with_sessions_can_be_written() -> None:
    for version in range(7, 12):
        broker = Broker(versions=(0, version))
        sessions = FetchSessions(broker.send)
        await sessions.send(1, fetch({"log": {0: 5}}))
        await sessions.send(1, fetch({"log": {0: 6}}))
        assert [named[1] for named in broker.named] == [0, 1], version
        whole = fetch({"log": {0: 5}}).prepare({1: (0, version)})
        assert whole.encode(), version


async def test_other_requests_pass_as_they_are() -> None:
    passed: list[Any] = []

    async def send(node: int, request: Any, **more: Any) -> str:
        passed.append((node, request, more))
        return "answered"

    request = MetadataRequest([])
    assert await FetchSessions(send).send(3, request, group=1) == "answered"
    assert passed == [(3, request, {"group": 1})]


async def test_a_fetch_follows_at_once_unless_the_last_one_has_brought_something() -> None:
    broker = Broker()
    sessions = FetchSessions(broker.send)
    for broker.brings in (b"", b"", b"x" * 100, b"x" * 10_000_000, b""):
        await sessions.send(1, fetch({"log": {0: 5}}))
    pauses = [after - before for before, after in pairwise(broker.asked_at)]
    assert pauses[2] >= PAUSE_S, "what is answered to it goes first"
    assert pauses[3] >= LONGEST_PAUSE_S, "and more comes together"
    assert min(pauses[:2]) < PAUSE_S


async def test_a_fetch_begins_behind_what_is_known_meanwhile() -> None:
    broker, known = Broker(), {("log", 0): 3}
    sessions = FetchSessions(broker.send, lambda topic, partition: known.get((topic, partition), 0))
    await sessions.send(1, fetch({"log": {0: 5, 1: 6}}))
    known["log", 0] = 8
    await sessions.send(1, fetch({"log": {0: 5, 1: 6}}))
    assert [named[2] for named in broker.named] == [{"log": {0: 5, 1: 6}}, {"log": {0: 8}}]


async def test_a_fetch_that_has_brought_something_is_answered_before_the_next_one() -> None:
    broker, answered_at = Broker(), 0.0
    broker.brings = b"x"
    sessions = FetchSessions(broker.send, is_answering=lambda: time.monotonic() < answered_at)
    await sessions.send(1, fetch({"log": {0: 5}}))
    answered_at = time.monotonic() + 2 * PAUSE_S
    await sessions.send(1, fetch({"log": {0: 6}}))
    assert broker.asked_at[1] >= answered_at


async def test_nobody_waits_long_for_what_takes_long_to_answer() -> None:
    broker = Broker()
    broker.brings = b"x"
    sessions = FetchSessions(broker.send, is_answering=lambda: True)
    async with asyncio.timeout(20):
        await sessions.send(1, fetch({"log": {0: 5}}))
        await sessions.send(1, fetch({"log": {0: 6}}))
    assert broker.asked_at[1] - broker.asked_at[0] >= LONGEST_PAUSE_S
