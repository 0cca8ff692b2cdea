"""Agents, tools, a scripted model and a client around one App, in this process, on a given broker.

Responsible for: starting and stopping them, for failing a test whose worker died, and a test in which the strict
scripted model refused a request of ours. Called by: integration tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from anabranch.agent_role import serve_agent
from anabranch.app import App
from anabranch.client import Client
from anabranch.config import AgentSettings, AnthropicSettings, KafkaSettings, Settings, WorkerSettings
from anabranch.messages import RunResponse
from anabranch.roles import broker_of, namespace_of, topic_specs
from anabranch.runtime import Shutdown
from anabranch.testing import Answer, RateLimits, Script, ScriptedModel, last_results, result_text, turn_of
from anabranch.tool_role import serve_tools
from anabranch.topics import Namespace

START_S = 30.0
ANSWER_S = 45.0
"""How long an answer may take on a machine that is busy with other things."""
PARTITIONS = 4

Request = dict[str, Any]


def settings_for(bootstrap: str, namespace: str, **kafka: Any) -> Settings:
    """Settings of a test's workers: few partitions, quick commits, quick retries."""
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap, partitions=PARTITIONS, session_timeout_s=6.0, **kafka),
        worker=WorkerSettings(namespace=namespace, drain_s=5.0, commit_s=0.2, heartbeat_s=1.0),
        agent=AgentSettings(model_backoff_s=0.05, model_backoff_max_s=0.2),
    )


def by_turn(*answers: Answer) -> Callable[[Request], Answer]:
    """A script that gives every run these answers, one a turn."""
    return lambda request: answers[turn_of(request) - 1]


def told(request: Request) -> list[str]:
    """The texts of the results that a request carries, in their order."""
    return [result_text(block) for block in last_results(request).values()]


@dataclass(slots=True)
class Fleet:
    """What is running. `agents` and `tools` are one `Shutdown` for each worker."""

    app: App
    settings: Settings
    model: ScriptedModel
    client: Client
    tasks: asyncio.TaskGroup
    agents: list[Shutdown] = field(default_factory=list)
    tools: list[Shutdown] = field(default_factory=list)
    running: dict[Shutdown, asyncio.Task[int]] = field(default_factory=dict)

    @property
    def bootstrap(self) -> str:
        return self.settings.kafka.bootstrap

    @property
    def namespace(self) -> Namespace:
        return namespace_of(self.app, self.settings)

    @property
    def request(self) -> Request:
        """What the model was asked last."""
        return self.model.requests[-1]

    async def ask(self, agent: str, input: Any = "hi", *, within_s: float = ANSWER_S, **options: Any) -> RunResponse:
        """Submit a run and await its answer, `within_s` seconds."""
        async with asyncio.timeout(within_s):
            return await (await self.client.submit(agent, input, **options))

    async def ask_all(self, agent: str, inputs: Sequence[str], **options: Any) -> list[RunResponse]:
        """Submit many runs at once and await their answers, in the order of `inputs`."""
        return list(await asyncio.gather(*(self.ask(agent, text, **options) for text in inputs)))

    def with_port(self, port: int, **worker: Any) -> Settings:
        """The settings, with health and metrics at `port`."""
        return replace(self.settings, worker=replace(self.settings.worker, http_port=port, **worker))

    async def add_agent(self, app: App | None = None, settings: Settings | None = None) -> Shutdown:
        shutdown = Shutdown()
        self.agents.append(shutdown)
        serving = serve_agent(app or self.app, settings or self.settings, shutdown)
        self.running[shutdown] = self.tasks.create_task(serving, name="agent worker")
        await asyncio.wait_for(shutdown.ready.wait(), START_S)
        return shutdown

    async def add_tools(self, queue: str, app: App | None = None, settings: Settings | None = None) -> Shutdown:
        shutdown = Shutdown()
        self.tools.append(shutdown)
        serving = serve_tools(app or self.app, queue, settings or self.settings, shutdown)
        self.running[shutdown] = self.tasks.create_task(serving, name="tool worker")
        await asyncio.wait_for(shutdown.ready.wait(), START_S)
        return shutdown

    async def stop(self, worker: Shutdown) -> int:
        """Ask one worker to drain, as SIGTERM does; returns what it abandoned once it is gone."""
        worker.ask()
        return await asyncio.wait_for(asyncio.shield(self.running[worker]), START_S)


@asynccontextmanager
async def fleet(
    app: App,
    script: Script,
    settings: Settings,
    *,
    agents: int = 1,
    queues: Sequence[str] | None = None,
    models: Sequence[str] = ("scripted",),
    also: Sequence[App] = (),
    refusals: bool = False,
    limits: RateLimits | None = None,
    windows: Mapping[str, int] | None = None,
    binds_thinking: bool = False,
) -> AsyncIterator[Fleet]:
    """One agent worker and one tool worker for each queue, unless said otherwise.

    `also` are Apps of the same namespace, whose topics are made too; the model enforces `limits` and `windows`. Fails
    if the model refused a request, unless `refusals` says that the test wants that.
    """
    failed: Exception | None = None
    for each in (app, *also):
        await broker_of(settings).apply(topic_specs(each, settings))
    async with ScriptedModel(
        script, models=tuple(models), limits=limits, windows=windows, binds_thinking=binds_thinking
    ) as model:
        provider = AnthropicSettings(api_key="test", base_url=model.base_url)
        settings = replace(settings, anthropic=provider)
        async with Client.for_app(app, settings=settings) as client, asyncio.TaskGroup() as tasks:
            running = Fleet(app, settings, model, client, tasks)
            for _ in range(agents):
                await running.add_agent()
            for queue in queues if queues is not None else sorted({t.spec.queue for t in app.tools.values()}):
                await running.add_tools(queue)
            try:
                yield running
            except Exception as error:  # noqa: BLE001 - raised below, without the task group around it
                failed = error
            finally:
                for worker in running.running:
                    worker.ask()
        if failed is not None:
            raise failed
        assert refusals or not model.refusals, f"the model refused: {model.refusals}"
