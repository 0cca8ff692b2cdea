"""What all owners of one agent worker share: where to write, whom to ask, how much room there is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from anabranch import messages as m
from anabranch.agent.plan import Place, by_key
from anabranch.agent.thinking import Clockwork, Thinker
from anabranch.codec import Outgoing, Record, encode
from anabranch.config import AgentSettings, Price
from anabranch.deadletters import dead_letter
from anabranch.errors import AnabranchError
from anabranch.kafka.seam import Acked, Appender
from anabranch.registry import Registry
from anabranch.topics import Namespace

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Room:
    """Bytes of open runs, over all partitions of this worker. `freed` is set whenever some run has ended."""

    limit: int
    used: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, size: int) -> None:
        self.used += size
        if size < 0:
            self.freed.set()


@dataclass(frozen=True, slots=True)
class Station:
    """`worker_id` is unique to this process; `source` is what its events carry as `ce_source`."""

    namespace: Namespace
    worker_id: str
    appender: Appender
    thinker: Thinker
    registry: Registry
    settings: AgentSettings
    prices: dict[str, Price]
    clockwork: Clockwork
    room: Room
    partitions: int
    response_partitions: int
    place: Place = by_key

    def append(self, partition: int, event: m.Event) -> asyncio.Future[Acked]:
        """Append an event to the run log."""
        sent = self.send(encode(event, self.namespace.log, partition, self.worker_id))
        sent.add_done_callback(_tell_failure)
        return sent

    def send(self, record: Outgoing, once: bool = False) -> asyncio.Future[Acked]:
        return self.appender.append(record, once)

    async def bury(self, record: Record, reason: str) -> None:
        """Keep a record as a dead letter; returns when the broker has it, or if it never will."""
        try:
            await self.send(dead_letter(self.namespace, record, reason))
        except AnabranchError as error:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            log.error("%s could not be kept as a dead letter: %s (its reason: %s)", where, error, reason)


def _tell_failure(sent: asyncio.Future[Acked]) -> None:
    """Nobody may have to look for it: what cannot be appended will not happen."""
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.error("an event could not be appended: %s", error)
