"""What each role is allowed, against a Kafka that allows nothing else.

Responsible for: that the grants of `anabranch.access` suffice for all that a role does; that each one is needed, for
without it something fails, and says what; that what is not granted is refused.
Must never: grant anything beside them. How one logs in is in tests/integration/test_logins.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.acls import Entry, put
from tests.support.fleet import ANSWER_S, Fleet, fleet, settings_for
from tests.support.kafka_secured import USERS, SecuredKafka
from tests.support.raw import answer_of, produce, read_until, reason_of
from tests.support.wait import until

from anabranch import App, Limit
from anabranch.access import ROLES, Grant, Role, grants
from anabranch.cli import anabranch, frame
from anabranch.client import Client
from anabranch.codec import Outgoing, encode
from anabranch.config import Settings, SigningSettings
from anabranch.errors import Forbidden
from anabranch.events import RunEvent, Text
from anabranch.kafka.seam import Place
from anabranch.log_events import ModelFailed, RunExpired, ToolReturned
from anabranch.messages import RunError
from anabranch.roles import broker_of, serve_agent, serve_tools, topic_specs
from anabranch.runtime import Shutdown
from anabranch.testing import Answer, last_results, prompt_of, result_text, tool_use, turn_of
from anabranch.topics import Namespace, partition_of

pytestmark = pytest.mark.timeout(180)

ENDS_S = 40.0
QUEUE = "io"

app = App("access")
gate = SimpleNamespace(open=asyncio.Event())


@app.tool(queue=QUEUE, limit=Limit("api", "50/s", concurrency=5))
async def near() -> str:
    """Answers, under a limit."""
    return "near"


@app.tool(queue=QUEUE, timeout=60)
async def long() -> str:
    """Takes until the test says so."""
    await gate.open.wait()
    return "long"


app.agent("caller", model="scripted", tools=[near, long])


def script(request: dict[str, Any]) -> Answer:
    """Calls the tools that the prompt names, all at once, and answers with their results."""
    if turn_of(request) == 1:
        return [tool_use(name, {}) for name in prompt_of(request).split()]
    return " | ".join(result_text(block) for block in last_results(request).values())


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    """An event belongs to the loop in which it was waited for."""
    gate.open = asyncio.Event()


@pytest.fixture(scope="session")
def users() -> Iterator[str]:
    """Names that nobody has been granted anything for."""
    return iter(USERS)


def as_user(settings: Settings, kafka: SecuredKafka, user: str) -> Settings:
    return replace(settings, kafka=replace(settings.kafka, **kafka.as_user(user)))


async def allow(kafka: SecuredKafka, user: str, granted: Sequence[Grant]) -> str:
    await put(kafka.open, [Entry(user, grant.operation, grant.kind, grant.name, grant.prefixed) for grant in granted])
    return user


@asynccontextmanager
async def around(kafka: SecuredKafka, namespace: str, **options: Any) -> AsyncIterator[Fleet]:
    """A fleet of those who may do everything, beside which one who may not is tried."""
    async with fleet(app, script, settings_for(kafka.open, namespace), **options) as running:
        yield running


# --- enough -----------------------------------------------------------------------------------------------------------


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
    spoken, seen = await asyncio.wait_for(asyncio.gather(_heard(run), _steps(run)), ANSWER_S)
    assert (await run).output == "near | near"
    assert spoken
    assert "ModelReplied" in seen
    waiting = await client.submit("caller", "long")
    await waiting.cancel()
    assert (await asyncio.wait_for(_response(waiting), ANSWER_S)).status == "cancelled"


async def _heard(run: Any) -> list[Text]:
    return [event async for event in run.events() if isinstance(event, Text)]


async def _steps(run: Any) -> list[str]:
    return [type(event.event).__name__ async for event in run.events() if isinstance(event, RunEvent)]


async def _response(run: Any) -> Any:
    return await run


async def _hand_off_and_come_back(running: Fleet, client: Client, as_agent: Settings, as_tool: Settings) -> None:
    """Both roles are replaced while a call is under way."""
    before = running.model.calls
    run = await client.submit("caller", "long near")
    await until(lambda: running.model.calls > before, ANSWER_S, "the call is out")
    await running.add_tools(QUEUE, settings=as_tool)
    await running.add_agent(settings=as_agent)
    stopping = [asyncio.create_task(running.stop(worker)) for worker in (running.agents[0], running.tools[0])]
    gate.open.set()
    assert (await asyncio.wait_for(_response(run), ANSWER_S)).output == "long | near"
    await asyncio.gather(*stopping)


async def _misplaced_and_unreadable(bootstrap: str, ns: Namespace) -> None:
    """What makes an agent worker write requests, and both roles dead letters."""
    request = b'{"agent": "caller", "input": "near"}'
    elsewhere = (partition_of("stray", 4) + 1) % 4
    for requests in _requests(ns):
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


LOOKS = (("runs", "list"), ("agents",), ("tools",), ("workers",), ("usage", "--by", "model"), ("dlq", "list"))


async def commanded(settings: Settings, patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The status of a command, run as the user of `settings`."""
    given = settings.kafka
    for name in ("bootstrap", "security_protocol", "sasl_username", "sasl_password"):
        patch.setenv(f"ANABRANCH_{name.upper()}", str(getattr(given, name)))
    patch.setenv("ANABRANCH_NAMESPACE", str(settings.worker.namespace))
    return await asyncio.to_thread(frame.invoke, anabranch, list(arguments))


# --- each one is needed -----------------------------------------------------------------------------------------------


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
            elif missing.operation == "Write" and missing.name in _requests(running.namespace):
                await _nothing_is_moved(running, its, missing.name)
            else:
                named(missing, await end_of(serve_agent(app, its, shutdown), shutdown, running, "near"), user)


def _requests(ns: Namespace) -> tuple[str, str]:
    return ns.requests, ns.bulk_requests


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
    await _steps(await client.submit("caller", "near"))


async def _cancels(client: Client) -> None:
    await (await client.submit("caller", "near")).cancel()


async def _streams(client: Client) -> None:
    """A run that goes on until it is heard: of one that is over before, nothing is missed."""
    run = await client.submit("caller", "long", stream=True)
    try:
        await asyncio.wait_for(_heard(run), ANSWER_S)
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
            trying = _appended(its, ns.calls(QUEUE)) if missing.prefixed else _cancels_somebody(its)
            with pytest.raises(Forbidden) as told:
                await trying
            named(missing, str(told.value), user)


async def _cancels_somebody(its: Settings) -> None:
    async with Client.for_app(app, settings=its) as client:
        await client.cancel("somebody")


# --- nothing else is allowed ------------------------------------------------------------------------------------------


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


async def _appended(its: Settings, topic: str) -> None:
    async with broker_of(its).appender() as appender:
        await appender.append(Outgoing(topic, b"key", b"{}", (), 0))


async def _writable(its: Settings, topics: Sequence[str]) -> list[str]:
    async def is_writable(topic: str) -> bool:
        try:
            await _appended(its, topic)
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
    async with fleet(app, script, settings, queues=[]) as running:
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
        assert (await asyncio.wait_for(_response(run), ANSWER_S)).output == "long"
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
        assert (await asyncio.wait_for(_response(run), ANSWER_S)).output == "long | long"
