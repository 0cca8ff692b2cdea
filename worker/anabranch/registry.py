"""What is registered: tools, limits, agents and the workers that are alive, read from the `registry` topic.

A view in memory of a compacted topic. Agent workers and the commands follow it; a worker registers
what its App declares when it starts. It decides nothing: who uses it looks a name up and copes with its absence.
Agent workers also keep it up (`keep_up`): compaction drops what somebody's junk has replaced, and never a dead worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import orjson

from anabranch.bodies import dump, read
from anabranch.codec import Outgoing, Record, cloud_event
from anabranch.errors import AnabranchError, WireError
from anabranch.kafka.seam import Appender, Broker, Place
from anabranch.security.signing import NO_SIGNER, Signer
from anabranch.specs import AgentSpec, LimitSpec, ToolSpec, WorkerInfo
from anabranch.tasks import alongside
from anabranch.topics import Namespace

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
DEAD_S: Final = 30.0
"""How long after its last sign of life a worker counts as dead."""
BURIED_S: Final = 86_400.0
"""How long after it one that was killed is told of: agent workers take it out of the registry then."""
KEEP_UP_S: Final = 60.0


class Registry:
    """Tools and limits by name, agents by name and revision, workers by id. `on_workers` are called when one tells of
    itself, or is gone. Agents that `signer` does not vouch for are not taken. `version` changes with all but workers.
    `spoilt` are the keys of which the last record is no JSON object.
    `now` is epoch seconds.
    """

    def __init__(self, signer: Signer = NO_SIGNER, now: Callable[[], float] = time.time) -> None:
        self._signer, self.now = signer, now
        self.tools: dict[str, ToolSpec] = {}
        self.limits: dict[str, LimitSpec] = {}
        self.agents: dict[str, AgentSpec] = {}
        self.revisions: dict[tuple[str, str], AgentSpec] = {}
        self.workers: dict[str, WorkerInfo] = {}
        self.on_workers: list[Callable[[], None]] = []
        self.spoilt: set[str] = set()
        self.version = 0

    def tool(self, name: str) -> ToolSpec | None:
        return self.tools.get(name)

    def agent(self, name: str, revision: str | None = None) -> AgentSpec | None:
        """That revision, or the one that was registered last."""
        return self.agents.get(name) if revision is None else self.revisions.get((name, revision))

    def add(
        self, tools: Iterable[ToolSpec] = (), agents: Iterable[AgentSpec] = (), limits: Iterable[LimitSpec] = ()
    ) -> None:
        """What this process declares itself is known at once."""
        self.version += 1
        self.tools.update({tool.name: tool for tool in tools})
        self.limits.update({limit.name: limit for limit in limits})
        for agent in agents:
            self.agents[agent.name] = self.revisions[agent.name, agent.revision] = agent

    def take(self, record: Record) -> None:
        """One record of the topic. What cannot be read is logged and skipped."""
        key = (record.key or b"").decode("utf-8", "replace")
        kind, _, name = key.partition("/")
        self.spoilt.discard(key)
        try:
            if kind == "agent":
                self._signer.vouch(record, "an agent")
            if kind == "worker":
                self._take_worker(name, record)
            elif record.value is None:
                self._drop(kind, name)
            elif kind == "tool":
                self._take_tool(read(ToolSpec, record.value))
            elif kind == "limit":
                self._take_limit(read(LimitSpec, record.value))
            elif kind == "agent":
                self.add(agents=[read(AgentSpec, record.value)])
        except WireError as error:
            log.warning("registry record %r at offset %d cannot be read: %s", record.key, record.offset, error)
            if record.value is not None and not _is_object(record.value):  # else of a newer version, or key, perhaps
                self.spoilt.add(key)

    def _drop(self, kind: str, name: str) -> None:
        self.version += 1
        if kind == "tool":
            self.tools.pop(name, None)
        elif kind == "limit":
            self.limits.pop(name, None)
        elif kind == "agent":
            agent, _, revision = name.rpartition("@")
            gone = self.revisions.pop((agent, revision), None)
            if gone is not None and self.agents.get(agent) is gone:
                del self.agents[agent]

    def _take_tool(self, tool: ToolSpec) -> None:
        if self.tools.get(tool.name) != tool:  # the same spec keeps its identity, and its compiled schema
            self.add([tool])

    def _take_limit(self, limit: LimitSpec) -> None:
        if (known := self.limits.get(limit.name)) is not None and known.queue != limit.queue:
            twice = "limit %s was registered with queue %r, and now with %r: each has a budget of its own; use one"
            log.warning(twice, limit.name, known.queue, limit.queue)
        self.add(limits=[limit])

    def _take_worker(self, name: str, record: Record) -> None:
        """When it was seen is for the broker to say: its own clock may be ahead, and would keep it alive."""
        if record.value is None:
            self.workers.pop(name, None)
        else:
            told, seen_at = read(WorkerInfo, record.value), min(record.timestamp / 1000, self.now())
            self.workers[name] = replace(told, seen_at=seen_at, started_at=seen_at - told.seen_at + told.started_at)
        for changed in self.on_workers:
            changed()


def is_alive(worker: WorkerInfo, now: float) -> bool:
    """Whether it has given a sign of life lately; `now` is epoch seconds."""
    return now - worker.seen_at <= DEAD_S


async def follow(broker: Broker, namespace: Namespace, registry: Registry, ready: asyncio.Event) -> None:
    """Read the topic for ever; `ready` is set when all that was there at the start has been read."""
    place = Place(namespace.registry, 0)
    async with broker.reader([place], "begin") as reader:
        end = (await reader.ends())[place]
        while True:
            if reader.position(place) >= end:
                ready.set()
            for record in await reader.read(POLL_S):
                registry.take(record)


async def snapshot(broker: Broker, namespace: Namespace) -> Registry:
    """What is registered now."""
    registry, ready = Registry(), asyncio.Event()
    async with alongside(follow(broker, namespace, registry, ready), "registry"):
        await ready.wait()
    return registry


async def register(
    appender: Appender,
    namespace: Namespace,
    source: str,
    tools: Iterable[ToolSpec],
    agents: Iterable[AgentSpec],
    limits: Iterable[LimitSpec] = (),
    signer: Signer = NO_SIGNER,
) -> None:
    """Announce limits, tools and agents, these signed; returns when the broker has them. A tool follows its limit."""
    entries = [_entry(namespace, source, f"limit/{limit.name}", "registry.limit", dump(limit)) for limit in limits]
    entries += [_entry(namespace, source, f"tool/{tool.name}", "registry.tool", dump(tool)) for tool in tools]
    entries += [
        signer.signed(_entry(namespace, source, f"agent/{agent.name}@{agent.revision}", "registry.agent", dump(agent)))
        for agent in agents
    ]
    await asyncio.gather(*(appender.append(entry) for entry in entries))


async def keep_up(registry: Registry, appender: Appender, namespace: Namespace, source: str, signer: Signer) -> None:
    """Say again what is known of spoilt keys, and bury the dead, for ever. Several may do so at once."""
    while True:
        await asyncio.sleep(KEEP_UP_S)
        tools, agents, limits = _replaced(registry)
        known: list[ToolSpec | LimitSpec | AgentSpec] = [*tools, *limits, *agents]
        if said := ", ".join(dict.fromkeys(spec.name for spec in known)):
            log.warning("said again in the registry, for there was junk in its place: %s", said)
        try:
            await register(appender, namespace, source, tools, agents, limits, signer)
        except AnabranchError as error:
            log.warning("what there was junk over cannot be said again, and is tried again: %s", error)
        if _is_current(registry, source):
            for worker in list(registry.workers.values()):
                if registry.now() - worker.seen_at > BURIED_S:
                    appender.append(worker_gone(namespace, worker.id))


def _replaced(registry: Registry) -> tuple[list[ToolSpec], list[AgentSpec], list[LimitSpec]]:
    """What is known of the spoilt keys: they are so until it is read again. The others are of no more interest."""
    if not (spoilt := registry.spoilt):
        return [], [], []
    tools = {f"tool/{name}": tool for name, tool in registry.tools.items() if f"tool/{name}" in spoilt}
    limits = {f"limit/{name}": limit for name, limit in registry.limits.items() if f"limit/{name}" in spoilt}
    revisions = {f"agent/{name}@{of}": agent for (name, of), agent in registry.revisions.items()}
    agents = {key: agent for key, agent in revisions.items() if key in spoilt}
    spoilt &= tools.keys() | limits.keys() | agents.keys()
    counts = {agent.name: last for agent in agents.values() if (last := registry.agent(agent.name)) is not None}
    earlier = [agent for agent in agents.values() if agent is not counts.get(agent.name)]
    return list(tools.values()), [*earlier, *counts.values()], list(limits.values())  # new runs get what is said last


def _is_current(registry: Registry, source: str) -> bool:
    """Whether we have read what we last said of ourselves: who was asleep knows only who lived before."""
    us = registry.workers.get(source)
    return us is not None and is_alive(us, registry.now())


def worker_entry(namespace: Namespace, info: WorkerInfo) -> Outgoing:
    """The sign of life of a worker."""
    return _entry(namespace, info.id, f"worker/{info.id}", "registry.worker", dump(info))


def worker_gone(namespace: Namespace, worker_id: str) -> Outgoing:
    """The tombstone of a worker that stops cleanly."""
    return _entry(namespace, worker_id, f"worker/{worker_id}", "registry.worker", None)


def _is_object(value: bytes) -> bool:
    try:
        return isinstance(orjson.loads(value), dict)
    except orjson.JSONDecodeError:
        return False


def _entry(namespace: Namespace, source: str, key: str, kind: str, value: bytes | None) -> Outgoing:
    return cloud_event(namespace.registry, kind, source, key, value, partition=0)
