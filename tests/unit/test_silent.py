"""Brokers that say nothing: who is asked instead, and for how long, without a broker.

Responsible for: `Silent`, around a fake of aiokafka's client. Must never: open a socket; tests/integration does. Called
by: pytest.
"""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import RequestTimedOutError
from tests.support.wait import until

from anabranch.kafka import silent
from anabranch.kafka.silent import Silent

SOON_S = 10.0
GROUPS = ConnectionGroup.DEFAULT, ConnectionGroup.COORDINATION, "records"


class Connection:
    def __init__(self) -> None:
        self.closed_for: Any = None
        self.is_open = True
        self.answer: Any = SimpleNamespace(brokers=[1])
        self.asked: list[Any] = []
        self.aborted = 0
        self._last_action = -math.inf
        self._writer = SimpleNamespace(transport=SimpleNamespace(abort=self._abort))

    def _abort(self) -> None:
        assert self.closed_for is None, "it is closed already, and writes what is left"
        self.aborted += 1

    def connected(self) -> bool:
        return self.is_open

    def close(self, reason: Any = None, exc: Exception | None = None) -> None:
        self.closed_for, self.is_open = reason, False

    async def send(self, request: Any) -> Any:
        self.asked.append((request._topics, request._allow_auto_topic_creation))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Client:
    """What `Silent` uses of aiokafka's: brokers 1 and 2, of which those in `dead` cannot be connected to. It connects
    one at a time.
    """

    def __init__(self, servers: int = 2) -> None:
        self.hosts = [("broker", number, 0) for number in range(servers)]
        brokers = [SimpleNamespace(nodeId=1), SimpleNamespace(nodeId=2)]
        self.cluster = SimpleNamespace(brokers=lambda: brokers, update_metadata=lambda told: self.told.append(told))
        self._conns: dict[tuple[Any, Any], Connection] = {
            (node, group): Connection() for node in (1, 2) for group in GROUPS
        }
        self._request_timeout_ms = 40_000
        self.dead: dict[int | str, float] = {}
        self.late: set[int] = set()
        self.asked: list[int | str] = []
        self.looked = 0
        self.patience: list[int] = []
        self.odd: Exception | None = None
        self.told: list[Any] = []
        self._turn = asyncio.Lock()

    def force_metadata_update(self) -> None:
        self.looked += 1

    async def _get_conn(self, node_id: int | str, *, group: int | str = ConnectionGroup.DEFAULT) -> Connection | None:
        async with self._turn:
            self.asked.append(node_id)
            if self.odd is not None:
                raise self.odd
            if node_id in self.dead:
                await asyncio.sleep(self.dead[node_id])
                return None
            connection = self._conns.setdefault((node_id, group), Connection())
            connection.is_open = True
            return connection

    async def _metadata_update(self, cluster: Any, topics: set[str] | None) -> bool:
        raise AssertionError("it would create topics, and ask no servers")

    async def send(self, node_id: int, request: str, *, group: int | str = ConnectionGroup.DEFAULT) -> str:
        if node_id in self.late:
            raise RequestTimedOutError
        return f"{node_id} says: {request} ({group})"

    def lose(self) -> None:
        """Let all connections end."""
        for connection in self._conns.values():
            connection.is_open = False

    async def bootstrap(self) -> None:
        self.patience.append(self._request_timeout_ms)


def refusing(monkeypatch: pytest.MonkeyPatch, refused_s: float, dead: dict[int | str, float]) -> Client:
    """One whose `dead` brokers cannot be connected to after so long: longer than `refused_s` is silence."""
    client = Client()
    Silent(client)
    monkeypatch.setattr(silent, "REFUSED_S", refused_s)
    client.dead = dead
    return client


def closed(client: Client) -> set[int]:
    return {node for (node, _), connection in client._conns.items() if connection.closed_for is not None}


async def test_a_silent_broker_is_left_by_all_and_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    Silent(client)
    monkeypatch.setattr(silent, "LEAVE_S", 0.2)
    Silent.of(client).leave(1)
    assert closed(client) == {1}
    assert {client._conns[1, group].closed_for for group in GROUPS} == {CloseReason.CONNECTION_TIMEOUT}
    assert {client._conns[1, group].aborted for group in GROUPS} == {1}
    assert await client._get_conn(1) is None
    assert (client.asked, client.looked) == ([], 1), "another one may know who leads"
    assert await client._get_conn(2, group="records") is client._conns[2, "records"]
    found = await until(lambda: client._get_conn(1), SOON_S, "it to be asked again")
    assert found is client._conns[1, ConnectionGroup.DEFAULT]


async def test_one_that_takes_long_to_fail_is_silent_and_one_that_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = refusing(monkeypatch, 0.1, {1: 0.15, 2: 0.0})
    client.lose()
    for node in (2, 2, 1, 1):
        assert await client._get_conn(node) is None
    assert client.asked == [2, 2, 1]
    assert closed(client) == {1}


async def test_one_that_never_says_whether_it_can_be_connected_to_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """However patient its client is otherwise: others wait meanwhile."""
    client = refusing(monkeypatch, 0.01, {1: 3600.0})
    monkeypatch.setattr(silent, "CONNECT_S", 0.05)
    client.lose()
    assert await client._get_conn(1) is None
    assert closed(client) == {1}
    assert await client._get_conn(2) is not None


async def test_one_that_is_waited_for_in_vain_is_silent_also_if_whoever_waits_has_less_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As aiokafka's client for administration, whose patience with a request covers the connection for it."""
    client = refusing(monkeypatch, 0.05, {1: 3600.0})
    client.lose()
    for patience_s, silents in ((0.01, set()), (0.1, {1})):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client._get_conn(1), patience_s)
        assert closed(client) == silents
    assert await client._get_conn(1) is None
    assert client.asked == [1, 1]


async def test_one_that_answers_is_not_silent_though_another_connection_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its name is not found just now, or there is no token: what is connected goes on."""
    client = refusing(monkeypatch, 0.05, {1: 0.1, 2: 0.1})
    for node in (1, 2):
        client._conns[node, ConnectionGroup.DEFAULT].is_open = False
        client._conns[node, ConnectionGroup.COORDINATION].is_open = node == 1
        client._conns[node, "records"]._last_action = time.monotonic() - silent.HEARD_S - 1
        client._conns[node, ConnectionGroup.COORDINATION]._last_action = time.monotonic()
    for node in (1, 2, 1):
        assert await client._get_conn(node) is None
    assert client.asked == [1, 2, 1]
    assert closed(client) == {2}


async def test_who_waits_meanwhile_does_not_wait_for_the_silent_one_again_and_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = refusing(monkeypatch, 0.1, {1: 0.15, 2: 0.0})
    client.lose()
    client._conns[2, "records"].is_open = True
    waiting = asyncio.gather(*(client._get_conn(node, group=group) for node in (1, 2) for group in GROUPS[:2]))
    await asyncio.sleep(0)
    assert await client._get_conn(2, group="records") is client._conns[2, "records"], "what is there is had at once"
    assert not waiting.done()
    assert await waiting == [None] * 4
    assert client.asked == [1, 2, 2]
    assert closed(client) == {1}


async def test_if_all_are_silent_none_is_left() -> None:
    client = Client()
    Silent(client).leave(1)
    Silent.of(client).leave(2)
    assert await client._get_conn(1) is not None
    assert await client._get_conn(2) is not None


async def test_one_that_is_late_with_an_answer_is_left_if_that_is_asked_for() -> None:
    client = Client()
    Silent(client).leave_who_is_late()
    client.late = {1}
    assert await client.send(2, "who are you?", group="records") == "2 says: who are you? (records)"
    with pytest.raises(RequestTimedOutError):
        await client.send(1, "who are you?")
    assert (closed(client), client.looked) == ({1}, 1)
    assert Silent.of(client).is_left(1)


async def test_two_requests_that_are_late_in_the_same_turn_are_both_late() -> None:
    """aiokafka's own client: what is late first closes the connection, which a third one that connects forgets."""
    client = AIOKafkaClient(bootstrap_servers="localhost:1")
    Silent(client)
    late = asyncio.get_running_loop().create_future()
    connection: Any = SimpleNamespace(send=lambda request, expect_response: late, connected=lambda: True)
    client._conns[1, ConnectionGroup.DEFAULT] = connection
    asking = [asyncio.create_task(client.send(1, object())) for _ in range(2)]
    await until(lambda: len(late._callbacks or ()) == 2, what="both to wait")
    connection.close = lambda reason: client._conns.clear()
    late.set_exception(TimeoutError())
    for task in asking:
        with pytest.raises(RequestTimedOutError):
            await task


@pytest.mark.parametrize(("servers", "patience_ms"), [(1, 40_000), (3, 4_000)])
async def test_a_start_has_time_for_several_servers(servers: int, patience_ms: int) -> None:
    client = Client(servers)
    Silent(client)
    await client.bootstrap()
    assert client.patience == [patience_ms]
    assert client._request_timeout_ms == 40_000, "for whatever is asked then"


async def test_one_whose_connection_fails_oddly_is_one_that_cannot_be_connected_to() -> None:
    """It would end aiokafka's task that asks who leads, and nobody would hear of it."""
    client = Client()
    Silent(client)
    client.lose()
    client.odd = UnicodeError("label too long")
    assert await client._get_conn(1) is None
    assert client.looked == 1
    client.odd = None
    assert await client._get_conn(1) is not None


@pytest.mark.parametrize(("topics", "named"), [({"log"}, ["log"]), (set(), None), (None, None)])
async def test_one_broker_is_asked_who_leads_what_and_is_to_create_nothing(
    topics: set[str] | None, named: list[str] | None
) -> None:
    client = Client()
    Silent(client)
    client.dead = {2: 0.0}
    client._conns[2, GROUPS[0]].is_open = False
    assert await client._metadata_update(client.cluster, topics)
    one = client._conns[1, GROUPS[0]]
    assert (client.told, one.asked, one.is_open) == ([one.answer], [(named, False)], True)


async def test_if_no_broker_can_be_had_the_servers_are_asked_where_they_are_by_now() -> None:
    """All have come back at other addresses; the first server is gone, and the second one has no answer."""
    client = Client(3)
    Silent(client)
    client.lose()
    names = ["broker:0", "broker:1", "broker:2"]
    client.dead = {1: 0.0, 2: 0.0, names[0]: 0.0}
    lost, good = Connection(), Connection()
    lost.answer = RequestTimedOutError()
    lost.is_open = good.is_open = False
    client._conns |= {(names[1], GROUPS[0]): lost, (names[2], GROUPS[0]): good}
    assert await client._metadata_update(client.cluster, {"log"})
    assert (sorted(client.asked[:2]), client.asked[2:]) == ([1, 2], names)
    assert client.cluster._bootstrap_brokers[names[2]][1:3] == ("broker", 2)
    assert (client.told, good.asked) == ([good.answer], [(["log"], False)])
    assert not lost.is_open
    assert not good.is_open
    client.dead = dict.fromkeys([1, 2, *names], 0.0)
    assert not await client._metadata_update(client.cluster, {"log"})
