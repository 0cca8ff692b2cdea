"""`anabranch dev APP`: an embedded broker, the agents and a worker for each queue of tools, in one process.

For trying an App out: nothing outlives it. It listens where the settings say that Kafka is, so that commands in
other terminals find it without settings of their own. Must never talk to another broker than its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import click

from anabranch.cli import frame, output
from anabranch.config import without_secrets
from anabranch.errors import BrokerError, ConfigError, DefinitionError
from anabranch.wording import counted

if TYPE_CHECKING:
    from anabranch.app import App
    from anabranch.config import AnthropicSettings, Settings
    from anabranch.kafka.embedded import EmbeddedBroker
    from anabranch.runtime import Shutdown
    from anabranch.watch import Watch

log = logging.getLogger(__name__)

Role: TypeAlias = "Callable[[Shutdown], Awaitable[int]]"

SESSION_S: Final = 4.0
"""The embedded broker keeps a new group waiting for half its session's time."""
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


@click.command()
@click.argument("reference", metavar="APP")
@click.option("--port", type=click.IntRange(1, 65535), help="The broker's port; default: that of ANABRANCH_BOOTSTRAP.")
@click.option("--script", metavar="SCRIPT", help="A scripted model (see anabranch.testing) instead of the real API.")
@frame.options(least="debug", content=True)
def dev(common: frame.Frame, reference: str, port: int | None, script: str | None) -> int:
    """Run everything that APP needs in this process, with a broker in memory. Ctrl-C drains.

    Needs the extra anabranch[dev-broker]. All records are gone when it ends.
    """
    from anabranch.cli.commands.worker import serve

    app = common.app(reference)
    app.check()
    if not app.agents and not app.tools:
        raise DefinitionError(f"App {app.name!r} has neither agents nor tools: there is nothing to run")
    provider = common.settings.anthropic
    if app.agents and script is None and not (provider.api_key or provider.auth_token):
        raise ConfigError("no key for the model: set ANTHROPIC_API_KEY, or give --script SCRIPT for a scripted one")
    work = _Dev(app, common, port, script)
    abandoned = frame.run_async(serve(work.run, common.settings.worker.drain_s))
    if abandoned:
        output.say(f"{counted(abandoned, 'call')} did not finish in time, and went with the broker")
    return 0


@dataclass(frozen=True)
class _Dev:
    """What to run, and how."""

    app: App
    common: frame.Frame
    port: int | None
    script: str | None

    async def run(self, shutdown: Shutdown) -> int:
        """Until asked to stop; returns how many calls were abandoned."""
        from anabranch.kafka.embedded import EmbeddedBroker

        async with (
            _provider(self.app, self.common.settings.anthropic, self.script) as provider,
            EmbeddedBroker(self.port or port_of(self.common.settings.kafka.bootstrap)) as broker,
        ):
            if self.port is not None and not broker.bootstrap.endswith(f":{self.port}"):
                raise BrokerError(f"port {self.port} is taken: choose another one, or leave --port out")
            settings = replace(self._settings(broker), anthropic=provider)
            return await self._serve(broker, settings, shutdown)

    def _settings(self, broker: EmbeddedBroker) -> Settings:
        wanted = self.common.settings
        session = min(wanted.kafka.session_timeout_s, SESSION_S)
        kafka = replace(broker.settings(), partitions=wanted.kafka.partitions, session_timeout_s=session)
        return replace(wanted, kafka=kafka)

    async def _serve(self, broker: EmbeddedBroker, settings: Settings, shutdown: Shutdown) -> int:
        from anabranch.kafka.connect import KafkaBroker
        from anabranch.watch import Watch

        specs = self.common.namespace(self.app).specs(self.app.queues(), settings.kafka.partitions)
        # Before anything else connects: this broker creates what a client asks for, with its own number of partitions.
        await KafkaBroker(settings.kafka).apply(specs)
        self._warn()
        watch = Watch(settings.worker, len(self._queues()) + bool(self.app.agents))
        async with watch.opened(), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(broker.died(), name="broker")
            workers = [_Worker(work) for work in self._roles(settings, watch)]
            running = [tasks.create_task(worker.run(shutdown)) for worker in workers]
            for worker in workers:
                await worker.shutdown.ready.wait()
            shutdown.ready.set()
            if not shutdown.asked.is_set():
                self._greet(broker.bootstrap, settings)
            abandoned = sum(await asyncio.gather(*running))
            watching.cancel()
        return abandoned

    def _roles(self, settings: Settings, watch: Watch) -> list[Role]:
        from anabranch.agent_role import serve_agent
        from anabranch.tool_role import serve_tools

        def tools(queue: str) -> Role:
            return lambda shutdown: serve_tools(self.app, queue, settings, shutdown, lenient=True, watch=watch)

        roles = [tools(queue) for queue in self._queues()]
        if self.app.agents:
            roles.append(lambda shutdown: serve_agent(self.app, settings, shutdown, watch=watch))
        return roles

    def _queues(self) -> list[str]:
        return sorted({tool.spec.queue for tool in self.app.tools.values()})

    def _warn(self) -> None:
        for tool in self.app.tools.values():
            if tool.spec.delivery == "at_most_once":
                log.warning(
                    "tool %s is at_most_once, and this broker keeps no commit metadata: the promise holds only while "
                    "this process lives",
                    tool.name,
                )
        if elsewhere := sorted(set(self.app.queues()) - set(self._queues())):
            log.warning("nobody here serves the queues %s: start their workers yourself", ", ".join(elsewhere))

    def _greet(self, bootstrap: str, settings: Settings) -> None:
        namespace = self.common.namespace(self.app).name
        lines = {
            "Kafka": f"{bootstrap} (in memory, gone when this ends)",
            "namespace": namespace,
            "agents": ", ".join(self.app.agents) or "none",
            "tools": ", ".join(f"{tool.name} ({tool.spec.queue})" for tool in self.app.tools.values()) or "none",
            "model": self.script or _address(settings) or "the Messages API, which costs money",
        }
        if port := settings.worker.http_port:
            lines["metrics"] = f"http://localhost:{port}/metrics"
        text = "".join(f"  {name:<10} {value}\n" for name, value in lines.items())
        before = "" if _found_by_default(bootstrap) else f"export ANABRANCH_BOOTSTRAP={bootstrap}\n    "
        agent = next(iter(self.app.agents), None)
        command = f'anabranch run {agent} "..."' if agent else "anabranch tools"
        click.echo(
            f"\nanabranch dev is up\n\n{text}\nIn another terminal:\n"
            f"    {before}{command} --namespace {namespace}\n\nCtrl-C ends it.\n"
        )


class _Worker:
    """One role in this process. It is asked to stop when the process is, and has its own word for being up."""

    def __init__(self, work: Role) -> None:
        from anabranch.runtime import Shutdown

        self._work, self.shutdown = work, Shutdown()

    async def run(self, outer: Shutdown) -> int:
        self.shutdown.on_failure = lambda: outer.fail("one of its workers cannot")
        passing = asyncio.create_task(self._pass_on(outer))
        try:
            return await self._work(self.shutdown)
        finally:
            passing.cancel()

    async def _pass_on(self, outer: Shutdown) -> None:
        await outer.asked.wait()
        self.shutdown.ask()
        await outer.hurry.wait()
        self.shutdown.ask()


@asynccontextmanager
async def _provider(app: App, given: AnthropicSettings, script: str | None) -> AsyncIterator[AnthropicSettings]:
    """Where the model is: as the settings say, or a scripted one that runs here."""
    if script is None:
        yield given
        return
    from anabranch.testing import ScriptedModel
    from anabranch.testing.load import load_script

    models = sorted({agent.spec.model for agent in app.agents.values()})
    async with ScriptedModel(load_script(script), models=models or ("scripted",), keep=0) as model:
        yield replace(given, api_key="scripted", auth_token=None, base_url=model.base_url)


def port_of(bootstrap: str) -> int | None:
    """The port of the first address if that is on this machine: `localhost:9092` -> 9092."""
    host, _, port = bootstrap.split(",")[0].strip().rpartition(":")
    return int(port) if host.lower() in _LOOPBACK and port.isdigit() and 0 < int(port) < 65536 else None


def _address(settings: Settings) -> str:
    return without_secrets(settings.anthropic.base_url or "")


def _found_by_default(bootstrap: str) -> bool:
    """Whether a command in another terminal, with the same environment, finds the broker there."""
    from anabranch.environment import load

    return port_of(load(environment=os.environ).kafka.bootstrap) == port_of(bootstrap)
