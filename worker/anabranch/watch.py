"""Watches the roles of a process for those outside: feels the loop's pulse, samples the roles, opens the port.

Responsible for: who is watched, and that watching costs next to nothing, and nothing at all without a port. Must never:
end a worker because it cannot be watched, or be asked by one what to do. `runtime.py` hands its roles over; a place for
whatever else is told of a process while it runs.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Protocol

from anabranch.config import WorkerSettings
from anabranch.errors import AnabranchError
from anabranch.health import Health, Process
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Place
from anabranch.meters import Gauge, Meters
from anabranch.tasks import alongside

log = logging.getLogger(__name__)

BEAT_S: Final = 0.25
SAMPLE_EVERY: Final = 4
"""Beats between two samples."""
LAG_S: Final = 5.0
"""How often Kafka is asked for the ends of a worker's partitions: one request to each broker."""


class Watched(Protocol):
    """What can be asked of a role, in the loop. `sample` brings its gauges up to date."""

    @property
    def is_settled(self) -> bool: ...
    @property
    def unready(self) -> str: ...
    @property
    def positions(self) -> dict[Place, int]: ...
    def sample(self) -> None: ...


Ends = Callable[[Iterable[Place]], Awaitable[Mapping[Place, int]]]


class Build(Meters):
    """What runs here."""

    def __init__(self) -> None:
        labels = ("version", "python")
        self.info = Gauge("anabranch_build_info", "Always 1: the versions of Anabranch and of Python", labels)
        self.info.set(1, version("anabranch"), platform.python_version())


@dataclass(slots=True)
class Role:
    """One that is watched."""

    meters: RoleMeters
    health: Health
    worker: Watched
    blind: bool = False
    """Its sampling has failed: a defect of ours, said once."""

    def look(self) -> None:
        self.health.see(self.worker.is_settled, self.worker.unready)
        self.meters.ready.set(self.health.is_ready)
        self.meters.draining.set(self.health.draining)

    def sample(self) -> None:
        if self.blind:
            return
        try:
            self.worker.sample()
        except Exception:
            self.blind = True
            log.exception("%s cannot be measured any more; it goes on without", self.health.name)


class Watch:
    """See the module. Made by `watching`, one for a process; without a port it watches nothing."""

    def __init__(self, settings: WorkerSettings, roles: int = 1) -> None:
        self._settings = settings
        self.is_on = settings.http_port != 0
        self.process = Process(settings.stalled_s, time.monotonic(), roles)
        self._roles: list[Role] = []
        self._build = Build()

    def meters(self) -> list[Meters]:
        """What there is to be read at present. For any thread."""
        return [self._build, *(role.meters for role in self._roles.copy())]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        if not self.is_on:
            yield
            return
        from anabranch.metrics import application  # a worker without a port is spared the import
        from anabranch.probes import serving

        settings = self._settings
        metrics = application(self.meters)
        async with (
            serving(settings.http_host, settings.http_port, self.process, metrics) as port,
            alongside(self._beat(), "pulse"),
        ):
            log.info("health and metrics at port %d", port)
            yield

    def take(self, meters: RoleMeters, worker: Watched) -> Health:
        """Watch this role from now on."""
        health = Health(f"{meters.role} {meters.queue}".strip())
        self.process.roles.append(health)
        self._roles.append(Role(meters, health, worker))
        return health

    # --- in the loop --------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        beats = 0
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            self.process.beat(now)
            beats += 1
            for role in self._roles:
                role.meters.loop_lag.observe(now - due)
                role.look()
                if beats % SAMPLE_EVERY == 0:
                    role.sample()

    async def follow_lag(self, meters: RoleMeters, worker: Watched, ends: Ends) -> None:
        """Ask for the ends of what is read, for ever; without an answer the last one stands."""
        while self.is_on:
            await asyncio.sleep(LAG_S)
            try:
                found = await ends(worker.positions) if worker.positions else {}
            except AnabranchError as error:
                log.debug("the lag of %s cannot be had: %s", meters.role, error)
                continue
            lag: dict[tuple[str, ...], float] = {}
            for place, position in worker.positions.items():
                behind = max(0, found.get(place, 0) - position)
                lag[place.topic,] = lag.get((place.topic,), 0) + behind
            meters.lag.replace(lag)


@asynccontextmanager
async def watching(settings: WorkerSettings, given: Watch | None = None) -> AsyncIterator[Watch]:
    """The one that is given, which others have opened, or one of our own while inside."""
    if given is not None:
        yield given
        return
    watch = Watch(settings)
    async with watch.opened():
        yield watch
