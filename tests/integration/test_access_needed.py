"""Each grant of `anabranch.security.access` is needed, against a Kafka that allows nothing else.

Responsible for: that without any of them something fails, and says what.
Must never: grant anything beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.support.allowed import (
    LOOKS,
    QUEUE,
    allow,
    app,
    appended,
    around,
    as_user,
    commanded,
    heard,
    request_topics,
    steps,
)
from tests.support.fleet import ANSWER_S, Fleet
from tests.support.kafka_secured import SecuredKafka
from tests.support.raw import answer_of, produce

from anabranch.agent_role import serve_agent
from anabranch.client import Client
from anabranch.config import Settings
from anabranch.errors import Forbidden
from anabranch.roles import broker_of
from anabranch.runtime import Shutdown
from anabranch.security.access import Grant, grants
from anabranch.tool_role import serve_tools
from anabranch.topics import partition_of

pytestmark = pytest.mark.timeout(180)

ENDS_S = 40.0


async def end_of(serving: Any, shutdown: Shutdown, running: Fleet, work: str | None) -> str:
    """Why a worker ended by itself, at its start or when there was something to do; `work` is a run for it."""
    task = asyncio.create_task(serving)
    ready = asyncio.create_task(shutdown.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=ENDS_S)
        if not task.done() and work is not None:
            await running.client.submit("caller", work)
        await asyncio.wait({task}, timeout=ENDS_S)
        assert task.done(), "it goes on, as if nothing were missing"
        return _told(task.exception())
    finally:
        ready.cancel()
        shutdown.ask()
        shutdown.ask()
        await asyncio.wait({task}, timeout=ENDS_S)


def _told(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Forbidden), repr(error)
    return str(error)


def without(granted: Sequence[Grant], missing: Grant) -> list[Grant]:
    return [grant for grant in granted if grant != missing]


def named(missing: Grant, said: str, user: str) -> None:
    """The message names the user, what kind of thing, and its name; and where all that is needed is listed."""
    assert f"User:{user}" in said, said
    assert missing.name in said, said
    assert "anabranch topics acls" in said, said
    assert "kafka-acls" in said, said


async def test_an_agent_worker_needs_each_of_its_grants(
    secured: SecuredKafka, namespace: str, users: Iterator[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with around(secured, namespace, agents=0) as running:
        all_of_them = grants("agent", running.namespace, [QUEUE])
        for missing in all_of_them:
            user = await allow(secured, next(users), without(all_of_them, missing))
            its, shutdown = as_user(running.settings, secured, user), Shutdown()
            if missing.operation == "DescribeConfigs":
                caplog.clear()
                worker = await running.add_agent(settings=its)
                assert "allow DescribeConfigs" in caplog.text
                await running.stop(worker)
            elif missing.operation == "Write" and missing.name in request_topics(running.namespace):
                await _nothing_is_moved(running, its, missing.name)
            else:
                named(missing, await end_of(serve_agent(app, its, shutdown), shutdown, running, "near"), user)


async def _nothing_is_moved(running: Fleet, its: Settings, requests: str) -> None:
    """The one who sent it to the wrong place is told."""
    run_id = f"stray-in-{requests}"
    elsewhere = (partition_of(run_id, 4) + 1) % 4
    worker = await running.add_agent(settings=its)
    request = b'{"agent": "caller", "input": "near"}'
    await produce(running.bootstrap, requests, request, key=run_id.encode(), partition=elsewhere)
    answer = await answer_of(running.bootstrap, running.namespace.responses, run_id)
    assert answer["error"]["code"] == "invalid_request"
    assert f"--operation Write --topic {requests}" in answer["error"]["message"]
    await running.stop(worker)


async def test_a_tool_worker_needs_each_of_its_grants(
    secured: SecuredKafka, namespace: str, users: Iterator[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with around(secured, namespace, queues=[]) as running:
        all_of_them = grants("tool", running.namespace, [QUEUE])
        for missing in all_of_them:
            user = await allow(secured, next(users), without(all_of_them, missing))
            its, shutdown = as_user(running.settings, secured, user), Shutdown()
            if missing.operation == "DescribeConfigs":
                caplog.clear()
                worker = await running.add_tools(QUEUE, settings=its)
                assert "allow DescribeConfigs" in caplog.text
                await running.stop(worker)
            else:
                named(missing, await end_of(serve_tools(app, QUEUE, its, shutdown), shutdown, running, "near"), user)


async def test_a_client_needs_each_of_its_grants_for_what_is_said_of_it(
    secured: SecuredKafka, namespace: str, users: Iterator[str]
) -> None:
    async with around(secured, namespace) as running:
        ns = running.namespace
        all_of_them = grants("client", ns, [QUEUE])
        alone = {
            ("Write", ns.bulk_requests): _cancels,
            ("Read", ns.log): _watches,
            ("Write", ns.log): _cancels,
            ("Read", ns.stream): _streams,
        }
        for missing in all_of_them:
            user = await allow(secured, next(users), without(all_of_them, missing))
            its = as_user(running.settings, secured, user)
            use = alone.pop((missing.operation, missing.name), _submits)
            async with asyncio.timeout(ANSWER_S):
                with pytest.raises(Forbidden) as told:
                    async with Client.for_app(app, settings=its) as client:
                        await use(client)
                named(missing, str(told.value), user)
            if use is not _submits:  # the rest of its work it does
                async with Client.for_app(app, settings=its) as client:
                    assert await _submits(client) == "near"
        assert not alone


async def _submits(client: Client) -> str:
    async with asyncio.timeout(ANSWER_S):
        return await (await client.submit("caller", "near")).output()


async def _watches(client: Client) -> None:
    await steps(await client.submit("caller", "near"))


async def _cancels(client: Client) -> None:
    await (await client.submit("caller", "near")).cancel()


async def _streams(client: Client) -> None:
    """A run that goes on until it is heard: of one that is over before, nothing is missed."""
    run = await client.submit("caller", "long", stream=True)
    try:
        await asyncio.wait_for(heard(run), ANSWER_S)
    finally:
        await run.cancel()


async def test_who_looks_mends_or_administers_needs_each_of_his_grants(
    secured: SecuredKafka, namespace: str, users: Iterator[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    async with around(secured, namespace, agents=0, queues=[]) as running:
        ns = running.namespace
        for missing in grants("reader", ns, []):
            user = await allow(secured, next(users), without(grants("reader", ns, []), missing))
            its = as_user(running.settings, secured, user)
            looks = [await commanded(its, monkeypatch, *command) for command in LOOKS]
            assert 1 in [*looks, await commanded(its, monkeypatch, "runs", "show", "nobody")]
            named(missing, capsys.readouterr().err, user)
        for missing in grants("admin", ns, []):
            user = await allow(secured, next(users), without(grants("admin", ns, []), missing))
            await _cannot_administer(running, as_user(running.settings, secured, user), missing)


async def _cannot_administer(running: Fleet, its: Settings, missing: Grant) -> None:
    """Neither make a topic, nor add partitions, nor see and set what a topic is like."""
    calls, new = running.namespace.specs([QUEUE, "another"], 4)[-2:]
    longer = replace(calls, settings={"retention.ms": "999999999"})
    wanted = {"Create": new, "Alter": replace(calls, partitions=calls.partitions + 1), "AlterConfigs": longer}
    broker, spec = broker_of(its), wanted[missing.operation]
    if missing.operation == "AlterConfigs":
        assert await broker.apply([spec]) == []
        assert any("allow DescribeConfigs" in lack.message for lack in await broker.lacks([spec]))
    else:
        with pytest.raises(Forbidden, match=f"--operation ({missing.operation}|Describe) --topic {spec.name}"):
            await broker.apply([spec])


async def test_an_operator_needs_what_he_has_beside_a_reader(
    secured: SecuredKafka, namespace: str, users: Iterator[str]
) -> None:
    async with around(secured, namespace, agents=0, queues=[]) as running:
        ns = running.namespace
        all_of_them = grants("operator", ns, [])
        for missing in [grant for grant in all_of_them if grant not in grants("reader", ns, [])]:
            user = await allow(secured, next(users), without(all_of_them, missing))
            its = as_user(running.settings, secured, user)
            trying = appended(its, ns.calls(QUEUE)) if missing.prefixed else _cancels_somebody(its)
            with pytest.raises(Forbidden) as told:
                await trying
            named(missing, str(told.value), user)


async def _cancels_somebody(its: Settings) -> None:
    async with Client.for_app(app, settings=its) as client:
        await client.cancel("somebody")
