"""What all owners of one agent worker share: where to write, whom to ask, how much room there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import field
from functools import partial

from anabranch import log_events as e
from anabranch.about import about_record, place_of
from anabranch.agent.admission.room import Room
from anabranch.agent.admission.saturation import Saturation
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.reply.plan import Partitioner, by_key
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.agent.telemetry.traces import AgentTraces
from anabranch.bodies import without_given
from anabranch.clockwork import Clockwork
from anabranch.codec import Outgoing, Record, encode
from anabranch.config import AgentSettings
from anabranch.deadletters import dead_letter
from anabranch.errors import AnabranchError, BrokerError
from anabranch.kafka.seam import Appender
from anabranch.kafka.sent import Acked, Sent
from anabranch.prices import Price
from anabranch.registry import Registry
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.security.signing import NO_SIGNER, Signer
from anabranch.store import NO_STORE, Store
from anabranch.topics import Namespace
from anabranch.values import frozen

log = logging.getLogger(__name__)


class Fate:
    """Why this worker cannot go on, once something shows that."""

    def __init__(self) -> None:
        self._known = asyncio.Event()
        self._error: Exception | None = None

    def seal(self, error: Exception) -> None:
        self._error = self._error or error
        self._known.set()

    async def come(self) -> None:
        """Ends by raising it."""
        await self._known.wait()
        if self._error is not None:
            raise self._error


@frozen()
class Station:
    """See the module. `worker_id` is unique to this process, and its events carry it as `ce_source`. `heard` are those
    who are told, by partition, what the broker has said of an event of ours.
    """

    namespace: Namespace
    worker_id: str
    appender: Appender
    thinker: Thinker
    registry: Registry
    settings: AgentSettings
    prices: dict[str, Price]
    clockwork: Clockwork
    room: Room
    saturation: Saturation
    partitions: int
    response_partitions: int
    place: Partitioner = by_key
    store: Store = NO_STORE
    sealing: Sealing = NO_SEALING
    signer: Signer = NO_SIGNER
    fate: Fate = field(default_factory=Fate)
    meters: AgentMeters = field(default_factory=AgentMeters)
    traces: AgentTraces | None = None
    heard: dict[int, Callable[[e.Event, int, Acked], None]] = field(default_factory=dict)

    def append(self, partition: int, event: e.Event) -> Sent:
        """Append an event to the run log. The partition's owner hears of the acknowledgement (`heard`)."""
        return self.append_encoded(partition, event, self.encoded(partition, event))

    def encoded(self, partition: int, event: e.Event) -> Outgoing:
        return self.signer.signed(encode(event, self.namespace.log, partition, self.worker_id))

    def append_encoded(self, partition: int, event: e.Event, record: Outgoing) -> Sent:
        sent = self.send(record)
        sent.add_done_callback(partial(self._appended, partition, event, len(record.value or b"")))
        return sent

    def _appended(self, partition: int, event: e.Event, size: int, sent: Sent) -> None:
        """Nobody may have to look for it: what cannot be appended will not happen, and without a log nothing can."""
        if sent.is_written:
            self._hear(partition, event, size, sent.result())
        elif (error := sent.exception()) is not None:
            run_id = getattr(event, "run_id", None)
            what = {"partition": partition, "run_id": run_id, "call_id": getattr(event, "call_id", None)}
            log.error("an event could not be appended: %s", error, extra=what)
            if isinstance(error, BrokerError):
                self.fate.seal(error)

    def _hear(self, partition: int, event: e.Event, size: int, acked: Acked) -> None:
        """A defect that shows here ends the worker, as it does when the event is read."""
        if (hear := self.heard.get(partition)) is not None:
            try:
                hear(event, size, acked)
            except Exception as error:  # noqa: BLE001 - it is raised by `fate`
                self.fate.seal(error)

    def send(self, record: Outgoing, once: bool = False) -> Sent:
        return self.appender.append(record, once)

    def send_dead_letter(self, record: Record, kind: str, reason: str) -> Sent:
        self.meters.dead_letters.count(kind)
        return self.send(dead_letter(self.namespace, record, reason))

    async def bury(self, record: Record, reason: str) -> None:
        """Keep a request as a dead letter; returns when the broker has it, or if it never will."""
        try:
            await self.send_dead_letter(record, "bad_request", reason)
        except AnabranchError as error:
            why = without_given(reason)
            what = about_record(record, reason)
            log.error(
                "%s could not be kept as a dead letter: %s (its reason: %s)", place_of(record), error, why, extra=what
            )
