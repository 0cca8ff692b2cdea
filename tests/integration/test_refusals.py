"""A Kafka that refuses: topics that were deleted, access that is denied, a broker that is full.

Responsible for: that a worker which cannot go on ends, and says who may not do what and how to mend it; that one which
can go on does, and costs only what needs the missing thing. Must never: run on a Kafka that is not ours to break.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from tests.support.acls import deny
from tests.support.deaths import apart, death_of
from tests.support.fleet import ANSWER_S, Fleet, fleet, settings_for
from tests.support.kafka import Broker, launch
from tests.support.kafka_admin import drop_topics
from tests.support.kafka_sources import KafkaUnavailable
from tests.support.need import unavailable
from tests.support.raw import answer_of
from tests.support.wait import until

from anabranch import App
from anabranch.agent_role import serve_agent
from anabranch.config import AnthropicSettings, Settings
from anabranch.kafka import appender
from anabranch.kafka.link import Link, Then
from anabranch.kafka.produce import producing
from anabranch.kafka.produce.wire import PRODUCE
from anabranch.roles import broker_of, topic_specs
from anabranch.runtime import Shutdown
from anabranch.testing import Answer, last_results, prompt_of, result_text, tool_use, turn_of
from anabranch.tool_role import serve_tools

pytestmark = pytest.mark.timeout(120)

STORAGE_ERROR = 56

app = App("refusals")


@app.tool(queue="io")
async def near() -> str:
    """Answers, from the queue that the tests break."""
    return "near"


@app.tool(queue="other")
async def far() -> str:
    """Answers, from another queue."""
    return "far"


app.agent("caller", model="scripted", tools=[near, far])


def script(request: dict[str, Any]) -> Answer:
    """Calls the tools that the prompt names, all at once, and answers with their results."""
    if turn_of(request) == 1:
        return [tool_use(name, {}) for name in prompt_of(request).split()]
    return " | ".join(result_text(block) for block in last_results(request).values())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Broker]:
    """A Kafka of this module's own, where access control lists hold at a second address."""
    try:
        broker = launch(guarded=True)
    except KafkaUnavailable as error:
        unavailable(str(error))
    with broker:
        yield broker


def as_user(settings: Settings, broker: Broker, user: str) -> Settings:
    kafka = replace(
        settings.kafka,
        bootstrap=broker.guarded,
        security_protocol="SASL_PLAINTEXT",
        sasl_username=user,
        sasl_password=user,
    )
    return replace(settings, kafka=kafka)


@asynccontextmanager
async def doomed(
    role: str, broker: Broker, namespace: str, queues: tuple[str, ...] = ("other",)
) -> AsyncIterator[tuple[Fleet, asyncio.Task[int]]]:
    """A fleet, one worker of which ("agent", or "tool" for the queue io) logs in as `agents` or `tools`."""
    agents = 0 if role == "agent" else 1
    served = (*queues, "io") if role == "agent" else queues
    shutdown, settings = Shutdown(), settings_for(broker.bootstrap, namespace)
    async with fleet(app, script, settings, agents=agents, queues=served, refusals=True) as running:
        its = as_user(running.settings, broker, f"{role}s")
        serving = serve_agent(app, its, shutdown) if role == "agent" else serve_tools(app, "io", its, shutdown)
        async with apart(serving, shutdown) as task:
            yield running, task


NEEDS = [
    ("agent", "write", "topic", "agent.log"),
    ("agent", "read", "topic", "agent.requests"),
    ("agent", "read", "group", "agents"),
    ("tool", "write", "topic", "agent.log"),
    ("tool", "read", "topic", "tool.calls.io"),
    ("tool", "read", "group", "tools.io"),
]


@pytest.mark.parametrize(("role", "operation", "kind", "name"), NEEDS, ids=lambda value: str(value))
async def test_a_worker_that_may_no_longer_do_what_it_lives_by_ends_and_says_what_allows_it(
    guarded: Broker, namespace: str, role: str, operation: str, kind: str, name: str
) -> None:
    async with doomed(role, guarded, namespace) as (running, task):
        assert (await running.ask("caller", "near far")).output == "near | far"
        await deny(guarded.bootstrap, f"{role}s", operation, kind, f"{namespace}.{name}")
        await running.client.submit("caller", "near far")
        said = await death_of(task)
    assert f"User:{role}s" in said
    allows = f"--allow-principal User:{role}s --operation {operation.title()} --{kind} {namespace}.{name}"
    assert "kafka-acls" in said
    assert said.endswith(allows)


async def test_a_worker_that_may_not_register_does_not_start(guarded: Broker, namespace: str) -> None:
    settings = settings_for(guarded.bootstrap, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    await deny(guarded.bootstrap, "tools", "write", "topic", f"{namespace}.registry")
    serving = serve_tools(app, "io", as_user(settings, guarded, "tools"), shutdown := Shutdown())
    async with apart(serving, shutdown) as task:
        assert f"--operation Write --topic {namespace}.registry" in await death_of(task)


async def test_a_call_that_may_not_be_published_is_an_error_result_and_its_siblings_and_other_runs_go_on(
    guarded: Broker, namespace: str
) -> None:
    async with doomed("agent", guarded, namespace) as (running, task):
        await deny(guarded.bootstrap, "agents", "write", "topic", f"{namespace}.tool.calls.io")
        mixed, other = await asyncio.gather(running.ask("caller", "near far near"), running.ask("caller", "far far"))
        assert not task.done()
    refused = "the call could not be handed to a worker: Kafka does not take it"
    assert mixed.output == f"{refused} | far | {refused}"
    assert (mixed.calls.failed, other.output) == (2, "far | far")


async def test_an_answer_that_may_not_be_written_is_kept_and_written_by_the_next_who_may(
    guarded: Broker, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    responses = f"{namespace}.agent.responses"
    async with doomed("agent", guarded, namespace) as (running, task):
        await deny(guarded.bootstrap, "agents", "write", "topic", responses)
        await running.client.submit("caller", "near", run_id="order-1")
        await until(lambda: f"--operation Write --topic {responses}" in caplog.text, ANSWER_S, "it says why")
        assert not task.done()
        await running.add_agent()
        assert (await answer_of(guarded.bootstrap, responses, "order-1"))["output"] == "near"


# --- deleted topics -------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A send waits for a topic that is not there for 3 s instead of 15 s."""
    monkeypatch.setattr(producing, "REQUEST_S", 3.0)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_whose_topic_is_deleted_ends_and_says_so(guarded: Broker, namespace: str) -> None:
    """Idle ones, all at once, for they only wait."""

    async def one(role: str, name: str) -> None:
        settings = settings_for(guarded.bootstrap, f"{namespace}-{name.replace('.', '-')}")
        settings = replace(settings, anthropic=AnthropicSettings(api_key="test"))
        await broker_of(settings).apply(topic_specs(app, settings))
        topic, shutdown = f"{settings.worker.namespace}.{name}", Shutdown()
        serving = (
            serve_agent(app, settings, shutdown) if role == "agent" else serve_tools(app, "io", settings, shutdown)
        )
        async with apart(serving, shutdown) as task:
            await asyncio.to_thread(drop_topics, guarded.bootstrap, topic)
            said = await death_of(task)
        assert f"topic {topic} does not exist" in said
        assert "anabranch topics apply" in said

    await asyncio.gather(one("agent", "agent.log"), one("agent", "agent.requests"), one("tool", "tool.calls.io"))


@pytest.mark.usefixtures("impatient")
async def test_topics_that_an_agent_worker_only_writes_to_cost_no_more_than_what_goes_there(
    guarded: Broker, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The calls of a deleted queue fail by their ids; answers wait for their topic to be made anew."""
    async with fleet(app, script, settings_for(guarded.bootstrap, namespace), queues=["other"]) as running:
        assert (await running.ask("caller", "far")).output == "far"
        await asyncio.to_thread(drop_topics, guarded.bootstrap, f"{namespace}.tool.calls.io")
        mixed, *others = await running.ask_all("caller", ["near far near", "far", "far far"])
        refused = "the call could not be handed to a worker: Kafka does not take it"
        assert mixed.output == f"{refused} | far | {refused}"
        assert [other.output for other in others] == ["far", "far | far"]
        responses = f"{namespace}.agent.responses"
        await asyncio.to_thread(drop_topics, guarded.bootstrap, responses)
        await running.client.submit("caller", "far", run_id="order-2")
        await until(lambda: f"topic {responses} does not exist" in caplog.text, ANSWER_S, "it says why")
        await broker_of(running.settings).apply(topic_specs(app, running.settings))
        assert (await answer_of(guarded.bootstrap, responses, "order-2"))["output"] == "far"


# --- a full broker --------------------------------------------------------------------------------------------


async def test_a_full_broker_is_named_and_when_it_has_room_again_nothing_is_lost(
    guarded: Broker, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KAFKA_STORAGE_ERROR in the place of its answers: a broker with a full disk does not even live to say more."""
    full = asyncio.Event()
    asks = Link.ask

    def ask(link: Link, api_key: int, version: int, body: bytes, then: Then) -> None:
        if full.is_set() and api_key == PRODUCE:
            asyncio.get_running_loop().call_soon(then, _refused(body))
        else:
            asks(link, api_key, version, body, then)

    monkeypatch.setattr(Link, "ask", ask)
    monkeypatch.setattr(appender, "STUCK_S", 5.0)
    async with fleet(app, script, settings_for(guarded.bootstrap, namespace)) as running:
        runs = [await running.client.submit("caller", "near far") for _ in range(5)]
        full.set()
        log = f"{namespace}.agent.log"
        await until(
            lambda: any("is the broker full" in m and log in m for m in caplog.messages), ANSWER_S, "it says so"
        )
        full.clear()
        async with asyncio.timeout(ANSWER_S):
            assert [(await run).output for run in runs] == ["near | far"] * 5
        assert (await running.ask("caller", "far")).output == "far"


def _refused(body: bytes) -> bytes:
    """The answer to a request to write of a broker whose disk is full."""
    asked = ProduceRequest_v7.decode(body).topics
    topics = [(topic, [(partition, STORAGE_ERROR, -1, -1, -1) for partition, _ in parts]) for topic, parts in asked]
    return struct.pack(">i", 0) + bytes(ProduceResponse_v7(topics=topics, throttle_time_ms=0).encode())
