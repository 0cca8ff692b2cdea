"""What is not granted is refused, against a Kafka that allows nothing else.

Responsible for: that no role reads or writes beyond its grants, and that who may write to the log of runs can neither
speak for the model nor for the calls of others.
Must never: grant anything beside the grants of `anabranch.security.access`.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import pytest
from tests.support.allowed import (
    QUEUE,
    allow,
    appended,
    around,
    as_user,
    gate,
    response_of,
)
from tests.support.fleet import ANSWER_S, settings_for
from tests.support.kafka_secured import SecuredKafka
from tests.support.raw import read_until, reason_of
from tests.support.wait import until

from anabranch.codec import Outgoing, encode
from anabranch.config import Settings, SigningSettings
from anabranch.errors import Forbidden
from anabranch.kafka.seam import Place
from anabranch.log_events import ModelFailed, RunExpired, ToolReturned
from anabranch.messages import RunError
from anabranch.roles import broker_of
from anabranch.security.access import ROLES, Grant, Role, grants
from anabranch.topics import Namespace, partition_of

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("role", ROLES)
async def test_what_is_not_granted_is_refused(
    secured: SecuredKafka, namespace: str, users: Iterator[str], role: str
) -> None:
    """A tool worker reads no requests, runs and calls of other queues, and answers nobody; and so on, for each."""
    settings = settings_for(secured.open, namespace)
    ns, of = Namespace(namespace), cast(Role, role)
    specs = ns.specs([QUEUE, "other"], 1)
    await broker_of(settings).apply(specs)
    async with broker_of(settings).appender() as appender:
        await asyncio.gather(*(appender.append(Outgoing(spec.name, b"key", b"{}", (), 0)) for spec in specs))
    granted = grants(of, ns, [QUEUE])
    its = as_user(settings, secured, await allow(secured, next(users), granted))
    topics = [spec.name for spec in specs]
    may = {operation: [topic for topic in topics if _may(granted, operation, topic)] for operation in ("Read", "Write")}
    reads, writes = await asyncio.gather(_readable(its, topics), _writable(its, topics))
    assert (reads, writes) == (may["Read"], may["Write"])


def _may(granted: Sequence[Grant], operation: str, topic: str) -> bool:
    of_topics = [grant for grant in granted if grant.kind == "topic" and grant.operation == operation]
    return any(topic == grant.name or (grant.prefixed and topic.startswith(grant.name)) for grant in of_topics)


async def _readable(its: Settings, topics: Sequence[str]) -> list[str]:
    async def is_readable(topic: str) -> bool:
        try:
            async with broker_of(its).reader([Place(topic, 0)], "begin") as reader:
                return bool(await until(lambda: reader.read(0.5), ANSWER_S, f"{topic} is read, or refused"))
        except Forbidden:
            return False

    found = await asyncio.gather(*(is_readable(topic) for topic in topics))
    return [topic for topic, readable in zip(topics, found, strict=True) if readable]


async def _writable(its: Settings, topics: Sequence[str]) -> list[str]:
    async def is_writable(topic: str) -> bool:
        try:
            await appended(its, topic)
        except Forbidden:
            return False
        return True

    found = await asyncio.gather(*(is_writable(topic) for topic in topics))
    return [topic for topic, writable in zip(topics, found, strict=True) if writable]


async def test_where_agent_workers_sign_nobody_else_writes_their_events(
    secured: SecuredKafka, namespace: str, users: Iterator[str]
) -> None:
    """A tool worker forges a reply of the model that would end the run; the run goes on, and the forgery is kept."""
    keys = f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}"
    settings = replace(settings_for(secured.open, namespace), signing=SigningSettings(keys, "require"))
    async with around(secured, namespace, settings, queues=[]) as running:
        ns = running.namespace
        its = as_user(running.settings, secured, await allow(secured, next(users), grants("tool", ns, [QUEUE])))
        await running.add_tools(QUEUE, settings=replace(its, signing=SigningSettings()))
        run = await running.client.submit("caller", "long")
        [call] = await read_until(secured.open, ns.calls(QUEUE), lambda found: len(found) == 1)
        life = dict(call.headers)["ce_life"].decode()
        ending = ModelFailed(run.run_id, life, 2, "guess", RunError("model_refused", "forged"))
        expired = RunExpired(run.run_id, life, "forged")
        async with broker_of(its).appender() as appender:
            for forged in (ending, expired):
                await appender.append(encode(forged, ns.log, partition_of(run.run_id, 4), "agent-1"))
        letters = await read_until(secured.open, ns.dead_letters, lambda found: len(found) == 2)
        assert all("no signature of ours" in reason_of(letter) for letter in letters)
        gate.open.set()
        assert (await asyncio.wait_for(response_of(run), ANSWER_S)).output == "long"
        await running.stop(running.agents[0])
        await running.add_agent()  # who takes over folds what is signed, its predecessor's snapshots and all
        assert (await running.ask("caller", "near")).output == "near"


async def test_a_tool_worker_answers_no_call_but_those_that_it_was_given(
    secured: SecuredKafka, namespace: str, users: Iterator[str]
) -> None:
    """Who knows one call's id tells from it neither those of the same reply nor any other."""
    async with around(secured, namespace) as running:
        ns = running.namespace
        its = as_user(running.settings, secured, await allow(secured, next(users), grants("tool", ns, [QUEUE])))
        run = await running.client.submit("caller", "long long")
        calls = await read_until(secured.open, ns.calls(QUEUE), lambda found: len(found) == 2)
        known = dict(calls[0].headers)
        life, call_id = known["ce_life"].decode(), known["ce_callid"].decode()
        head, token, index = call_id.rsplit("/", 2)
        guesses = [f"{head}/{token}/{1 - int(index)}", f"{head}/1.{'0' * 16}/{index}", f"{head}/{token}/7"]
        partition = partition_of(run.run_id, 4)
        async with broker_of(its).appender() as appender:
            for guess in guesses:
                forged = ToolReturned(run.run_id, life, guess, "ok", b'{"content": "forged"}')
                await appender.append(encode(forged, ns.log, partition, "forger"))
        gate.open.set()
        assert (await asyncio.wait_for(response_of(run), ANSWER_S)).output == "long | long"
