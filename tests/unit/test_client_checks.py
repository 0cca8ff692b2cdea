"""What a client refuses on the spot: each a clear error, and nothing of it in Kafka."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from anabranch.client import Client
from anabranch.codec import Outgoing, decode
from anabranch.errors import AnabranchError, BrokerError, InvalidRequest
from anabranch.fields import LANES
from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.seam import Place
from anabranch.log_events import RunCancelled
from anabranch.topics import Namespace

SHOP = Namespace("shop")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(SHOP.specs(["io"]))


@pytest.fixture
async def client(broker: MemoryBroker) -> AsyncIterator[Client]:
    async with Client(SHOP, broker) as client:
        yield client


def written(broker: MemoryBroker, *topics: str) -> int:
    specs = SHOP.specs(["io"])
    return sum(len(broker.records(Place(s.name, n))) for s in specs if s.name in topics for n in range(s.partitions))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lane": "bulky"}, "lane: 'bulky' must be one of 'interactive', 'bulk'"),
        ({"lane": None}, "lane: None"),
        ({"max_cost_usd": math.nan}, "max_cost_usd: nan must be a number above 0"),
        ({"max_cost_usd": math.inf}, "max_cost_usd: inf"),
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"max_turns": object()}, "max_turns: cannot be written as JSON"),
        ({"input": None}, "give either input or messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "give either input or messages"),
        ({"input": " \n"}, "input: is blank"),
        ({"input": []}, "input: is empty"),
        ({"deadline": "soon"}, "deadline: 'soon' is no duration"),
        ({"deadline": -1}, "deadline: the duration -1"),
        ({"deadline": 0}, "deadline: 0 leaves no time"),
        ({"deadline": "0s"}, "deadline: '0s' leaves no time"),
        ({"metadata": [1]}, "metadata: must be a dict, not list"),
        ({"metadata": {"a": object()}}, "metadata: cannot be written as JSON"),
        ({"metadata": {dt.date: 1}}, "metadata: cannot be written as JSON"),
        ({"metadata": {"a": [1, math.nan]}}, "metadata.a.1: nan is no number of JSON"),
        ({"metadata": {"a": -math.inf}}, "metadata.a: -inf is no number of JSON"),
        (
            {"metadata": {"at": {"day": dt.date(2026, 1, 1)}}},
            "metadata.at.day: a date is no value of JSON: make it a text",
        ),
        ({"input": [{"type": "text", "text": "a", "n": math.inf}]}, "input.0.n: inf"),
        ({"input": None, "messages": [{"role": "user", "content": UUID(int=1)}]}, "messages.0.content: a UUID"),
        ({"input": {"type": "text"}}, "input: Input should be a text, or a list of content blocks"),
        ({"input": None, "messages": []}, "messages: is empty"),
        ({"input": None, "messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ({"input": None, "messages": [{"role": "developer", "content": "x"}]}, "messages.0.role: must be one of"),
        ({"input": "\ud800"}, "input: cannot be written as JSON"),
        ({"run_id": "\ud800"}, "run_id: .* must be the id of a run"),
        ({"run_id": ["r"]}, "run_id: .* must be the id of a run"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": "a b"}, "run_id"),
    ],
)
async def test_a_wrong_request_is_refused_by_its_field(
    broker: MemoryBroker, client: Client, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await client.submit("analyst", **{"input": "hello", **options})
    assert written(broker, *(SHOP.requests_of(lane) for lane in LANES)) == 0


@pytest.mark.parametrize(
    ("run_id", "reason", "told"),
    [
        ("", "why", "run_id: ''"),
        ("a b", "why", "run_id: 'a b'"),
        (None, "why", "run_id: None"),
        ("r", 5, "reason: 5"),
        ("r", "\ud800", "reason: cannot"),
    ],
)
async def test_a_wrong_cancel_leaves_nothing_in_the_log(
    broker: MemoryBroker, client: Client, run_id: Any, reason: Any, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await client.cancel(run_id, reason)
    assert written(broker, SHOP.log) == 0


async def test_a_conversation_may_be_of_tuples(broker: MemoryBroker, client: Client) -> None:
    """They are lists in JSON."""
    messages: Any = ({"role": "user", "content": ({"type": "text", "text": "hello"},)},)
    await client.submit("analyst", messages=messages)
    assert written(broker, SHOP.requests) == 1


async def test_an_agent_is_named(broker: MemoryBroker, client: Client) -> None:
    nobody: Any = None
    with pytest.raises(InvalidRequest, match="agent: is missing"):
        await client.submit(nobody, "hello")
    assert written(broker, SHOP.requests) == 0


@pytest.mark.parametrize(
    ("run_id", "since", "told"),
    [
        ("a b", None, "run_id: 'a b'"),
        (5, None, "run_id: 5"),
        ("r", "today", "since: 'today'"),
        ("r", math.nan, "since: nan"),
    ],
)
async def test_events_are_of_a_run_and_since_a_time(client: Client, run_id: Any, since: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await anext(client.events(run_id, since))


async def test_a_client_that_is_open_is_not_opened_again(client: Client) -> None:
    with pytest.raises(AnabranchError, match="is open already"):
        await client.__aenter__()


async def test_a_cancel_names_the_offsets_behind_its_requests(broker: MemoryBroker, client: Client) -> None:
    """So it is still remembered when these are taken up, and they end nothing that was asked for later."""
    await client.submit("analyst", "hello", run_id="r", lane="bulk")
    await client.cancel("r")
    records = [r for n in range(24) for r in broker.records(Place(SHOP.log, n))]
    events = [event for event in map(decode, records) if isinstance(event, RunCancelled)]
    assert [(event.before, event.before_bulk) for event in events] == [(None, None), (1, 2)]


@pytest.mark.parametrize("closed", [False, True])
async def test_a_client_that_is_not_open_says_so(broker: MemoryBroker, closed: bool) -> None:
    client = Client(SHOP, broker)
    error, told = (BrokerError, "the client was closed") if closed else (AnabranchError, "the client is not open")
    if closed:
        async with client:
            pass
    with pytest.raises(error, match=told):
        await client.submit("analyst", "hello")
    with pytest.raises(error, match=told):
        await client.cancel("run-1")
    with pytest.raises(error, match=told):
        await anext(client.events("run-1"))


async def test_who_submits_while_the_client_is_closed_is_told_so_and_is_not_cancelled(broker: MemoryBroker) -> None:
    async with Client(SHOP, broker) as client:
        broker.cut()
        submitting = asyncio.create_task(client.submit("analyst", "hello"))
        cancelling = asyncio.create_task(client.cancel("run-1"))
        given_up = asyncio.create_task(client.submit("analyst", "hello"))
        await asyncio.sleep(0)
        given_up.cancel()
    for task in submitting, cancelling:
        with pytest.raises(BrokerError, match="the client was closed before Kafka had confirmed"):
            await task
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_an_inbox_is_none_of_the_partitions_that_were_added_to_the_answers() -> None:
    """Agent workers that began before that know nothing of them, and would refuse the request."""
    specs = [replace(spec, partitions=1_000 if spec.name == SHOP.responses else 1) for spec in SHOP.specs([])]
    async with Client(SHOP, MemoryBroker(specs)) as client:
        assert client._inbox == 0


async def test_a_client_that_was_opened_in_another_event_loop_says_so(client: Client) -> None:
    def elsewhere() -> None:
        with pytest.raises(AnabranchError, match="opened in another event loop"):
            asyncio.run(client.cancel("run-1"))

    await asyncio.to_thread(elsewhere)


async def test_who_waits_for_an_answer_is_told_why_the_client_reads_no_more(
    broker: MemoryBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(record: Any) -> None:
        raise BrokerError("topic shop.agent.responses does not exist")

    run = await client.submit("analyst", "hello")
    monkeypatch.setattr(client, "_take", gone)
    async with broker.appender() as appender:
        await appender.append(Outgoing(SHOP.responses, b"another", b"{}", partition=client._inbox))
    with pytest.raises(BrokerError, match=r"no longer reads its inbox: .*agent.responses does not exist"):
        await run
