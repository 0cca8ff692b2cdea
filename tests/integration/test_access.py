"""What each role is allowed suffices, against a Kafka that allows nothing else.

Responsible for: that the grants of `anabranch.security.access` suffice for all that a role does. That each one is
needed is in `test_access_needed.py`, and what is refused in `test_access_refused.py`.
Must never: grant anything beside them. How one logs in is in tests/integration/test_logins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.support.allowed import (
    LOOKS,
    QUEUE,
    allow,
    app,
    around,
    as_user,
    commanded,
    gate,
    heard,
    request_topics,
    response_of,
    steps,
)
from tests.support.fleet import ANSWER_S, Fleet, settings_for
from tests.support.kafka_secured import SecuredKafka
from tests.support.raw import answer_of, produce, read_until, reason_of
from tests.support.wait import until

from anabranch.client import Client
from anabranch.config import Settings
from anabranch.kafka.seam import Place
from anabranch.roles import broker_of, topic_specs
from anabranch.security.access import ROLES, grants
from anabranch.topics import Namespace, partition_of

pytestmark = pytest.mark.timeout(180)


async def test_each_role_does_all_its_work_with_its_grants_and_no_others(
    secured: SecuredKafka, namespace: str, users: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ns = Namespace(namespace)
    its = {role: as_user(settings_for(secured.open, namespace), secured, next(users)) for role in ROLES}
    for role in ROLES:
        await allow(secured, str(its[role].kafka.sasl_username), grants(role, ns, [QUEUE]))
    specs = topic_specs(app, its["admin"])
    assert [line for line in await broker_of(its["admin"]).apply(specs) if "created" in line]
    more = [replace(spec, partitions=spec.partitions + 1) for spec in specs if spec.name == ns.calls(QUEUE)]
    assert len(await broker_of(its["admin"]).apply(more)) == 1
    assert await broker_of(its["admin"]).lacks(specs) == []
    async with around(secured, namespace, agents=0, queues=[]) as running:
        as_agent = replace(its["agent"], anthropic=running.settings.anthropic)
        await running.add_agent(settings=as_agent)
        await running.add_tools(QUEUE, settings=its["tool"])
        async with Client.for_app(app, settings=its["client"]) as client:
            await _submits_watches_and_cancels(client)
            await _hand_off_and_come_back(running, client, as_agent, its["tool"])
        await _misplaced_and_unreadable(secured.open, ns)
        await _looks_and_mends(its["reader"], its["operator"], ns, monkeypatch)


async def _submits_watches_and_cancels(client: Client) -> None:
    run = await client.submit("caller", "near near", stream=True)
    spoken, seen = await asyncio.wait_for(asyncio.gather(heard(run), steps(run)), ANSWER_S)
    assert (await run).output == "near | near"
    assert spoken
    assert "ModelReplied" in seen
    waiting = await client.submit("caller", "long")
    await waiting.cancel()
    assert (await asyncio.wait_for(response_of(waiting), ANSWER_S)).status == "cancelled"


async def _hand_off_and_come_back(running: Fleet, client: Client, as_agent: Settings, as_tool: Settings) -> None:
    """Both roles are replaced while a call is under way."""
    before = running.model.calls
    run = await client.submit("caller", "long near")
    await until(lambda: running.model.calls > before, ANSWER_S, "the call is out")
    await running.add_tools(QUEUE, settings=as_tool)
    await running.add_agent(settings=as_agent)
    stopping = [asyncio.create_task(running.stop(worker)) for worker in (running.agents[0], running.tools[0])]
    gate.open.set()
    assert (await asyncio.wait_for(response_of(run), ANSWER_S)).output == "long | near"
    await asyncio.gather(*stopping)


async def _misplaced_and_unreadable(bootstrap: str, ns: Namespace) -> None:
    """What makes an agent worker write requests, and both roles dead letters."""
    request = b'{"agent": "caller", "input": "near"}'
    elsewhere = (partition_of("stray", 4) + 1) % 4
    for requests in request_topics(ns):
        await produce(bootstrap, requests, request, key=b"stray", partition=elsewhere)
    assert (await answer_of(bootstrap, ns.responses, "stray"))["output"] == "near"
    await produce(bootstrap, ns.requests, b"no json", key=b"garbage")
    await produce(bootstrap, ns.calls(QUEUE), b"no json either", key=b"garbage")
    letters = await read_until(bootstrap, ns.dead_letters, lambda found: len(found) == 2)
    assert all("JSON" in reason_of(letter) for letter in letters)


async def _looks_and_mends(reader: Settings, operator: Settings, ns: Namespace, patch: pytest.MonkeyPatch) -> None:
    for command in LOOKS:
        assert await commanded(reader, patch, *command) == 0, command
    places = [Place(ns.dead_letters, number) for number in range(6)]
    async with broker_of(operator).reader(places, "begin") as dead:
        letters = [letter for _ in range(4) for letter in await dead.read(0.5)]
    origins = sorted(dict(letter.headers)["ce_origin"].decode() for letter in letters)
    assert [await commanded(operator, patch, "dlq", "replay", origin) for origin in origins[:2]] == [0, 0]
    assert await commanded(reader, patch, "runs", "show", "stray") == 0
