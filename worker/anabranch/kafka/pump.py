"""Reads as a member of a consumer group, and tells a `Listener` what is assigned, revoked and read.

What is awkward about the group protocol ends here: every rebalance resets positions and forgets pauses, also
of partitions that were kept; records may be delivered while the assignment is being handled; a lost session
is reported as a revoke. So nothing of a place is delivered before the listener has said `seek`, and a commit
is bounded and never crosses a generation. It decides nothing about runs or calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import InconsistentGroupProtocolError, InvalidSessionTimeoutError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError
from anabranch.kafka.admin import Admin
from anabranch.kafka.assignor import Memory, make_assignor
from anabranch.kafka.fetch.fetching import LOOK_S, Fetching
from anabranch.kafka.liveness import Liveness
from anabranch.kafka.refusals import refusal
from anabranch.kafka.seam import Committed, Listener, Place
from anabranch.tasks import bounded, happens

log = logging.getLogger(__name__)

COMMIT_S = 5.0
GONE_S = 3.0
STOP_S = 10.0
REBALANCE_S = 30.0
COUNT_AGAIN_S = 30.0
"""How often the group's leader counts the partitions; when some were added, the group divides them anew."""
HEARTBEATS = 4
"""How many there are in the time of a session."""
AT_ONCE = 500
"""Records in one delivery: taking in more would keep the loop from all else for too long. Who is told to pause by one
has no more than this, and a fetch, beyond its bounds."""
TURN_S = 0.1
"""After so long no more is delivered before all else has had its turn: what is compressed takes time to unpack."""
AT_LEISURE = 3
"""How many times as long as a delivery took the next one waits, if the listener has enough to do."""
LEISURE_S = 0.5
"""The longest such wait: a process that stood still in a delivery is not to stand still three times as long again."""


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """See `seam.Subscription`."""

    def __init__(
        self,
        settings: KafkaSettings,
        arguments: dict[str, Any],
        topics: Sequence[str],
        group: str,
        listener: Listener,
        admin: Admin,
        newer: Sequence[str] = (),
    ) -> None:
        self._topics, self._group, self._listener, self._admin = [*topics, *newer], group, listener, admin
        self._memory, self._newer = Memory(), frozenset(newer)
        self._where, self._session_s = settings.bootstrap, settings.session_timeout_s
        self._arguments = arguments
        self._missing_since: float | None = None
        self._liveness = Liveness(settings.session_timeout_s, settings.session_timeout_s / HEARTBEATS, time.monotonic())
        self._stopped = asyncio.Event()
        self._begun: dict[Place, int] = {}
        self._told: dict[Place, int] = {}
        self._commits = asyncio.Lock()
        self._may_commit = True
        self._consumer = AIOKafkaConsumer(
            **arguments,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[make_assignor(self._memory, newer)],
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / HEARTBEATS),
            rebalance_timeout_ms=int(REBALANCE_S * 1000),
            request_timeout_ms=int(REBALANCE_S * 1000) + 10_000,
            max_poll_interval_ms=600_000,
            metadata_max_age_ms=int(COUNT_AGAIN_S * 1000),
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=listener.ahead_bytes,
        )
        self._fetching = Fetching(self._consumer, self._deliver, listener.known, lambda: listener.is_answering)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self._consumer.subscribe(self._topics, listener=self)
        try:
            await self._consumer.start()
            self._liveness.joined(time.monotonic())
            yield
        except (KafkaError, OSError) as error:
            raise self._explained("cannot be joined", error) from error
        finally:
            await self._stop()

    async def _stop(self) -> None:
        if not await bounded(self._consumer.stop(), STOP_S):
            log.warning("the consumer of group %s did not stop within %g s", self._group, STOP_S)

    def _explained(self, what: str, error: Exception) -> BrokerError:
        if isinstance(error, InvalidSessionTimeoutError):
            return BrokerError(
                f"group {self._group} at {self._where} {what}: its brokers do not take ANABRANCH_SESSION_TIMEOUT_S "
                f"{self._session_s:g}: it must lie between their group.min.session.timeout.ms and "
                "group.max.session.timeout.ms (6 s and 30 min, unless set)"
            )
        if isinstance(error, InconsistentGroupProtocolError):
            return BrokerError(
                f"group {self._group} at {self._where} {what}: its members share partitions out in another way: they "
                "are no workers of ours, or of a version that is far older; stop them first"
            )
        refused = refusal(error, self._arguments, "Read", self._group)
        return refused or BrokerError(f"group {self._group} at {self._where} {what}: {error!r}")

    # --- reading ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            self._fetching.begin()
            while not self._stopped.is_set():
                self._fetching.check()
                self._fetching.look()
                self._liveness.polled(time.monotonic())
                self._report()
                await self._see_topics()
                await happens(self._stopped, LOOK_S)
        except (KafkaError, OSError) as error:
            raise self._explained("cannot be read", error) from error
        finally:
            await self._fetching.end()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def alive(self) -> bool:
        """A process that was frozen finds out here, before its first heartbeat does."""
        return self._liveness.is_alive(time.monotonic())

    def _deliver(self) -> None:
        """So much in this turn of the loop; what was fetched ahead may be a lot more. Nothing while somebody else may
        have been given it: `run` soon looks again.
        """
        if not self.alive:
            return
        left, began = AT_ONCE, time.monotonic()
        while left > 0 and time.monotonic() - began < TURN_S and not self._stopped.is_set():
            if (taken := self._fetching.take(left)) is None:
                break
            place, records = taken
            left -= len(records)
            begun = self._begun.get(place)
            if begun is None:
                continue  # fetched before the listener said where to begin
            self._see_whether_shorter(place, records[0].offset, begun)  # sooner than `_report` does
            self._begun[place] = records[-1].offset + 1
            self._listener.records(place, records)
        took_s = time.monotonic() - began
        self._fetching.tell_soon(min(AT_LEISURE * took_s, LEISURE_S) if self._listener.is_sated else 0.0)

    def _report(self) -> None:
        """Positions move past what is not delivered too (the markers of a transaction, say)."""
        for place in list(self._begun):
            offset = self._fetching.position(place)
            begun = self._begun.get(place)
            if offset is None or begun is None or offset == self._told.get(place):
                continue  # not known, no longer ours, or not new
            self._see_whether_shorter(place, offset, begun)
            if offset < begun:
                continue
            self._begun[place] = self._told[place] = offset
            self._listener.position(place, offset)

    def _see_whether_shorter(self, place: Place, offset: int, begun: int) -> None:
        """If what was read is gone, a place is read from its beginning again. Whoever goes by it must not go on."""
        if offset < begun and self._fetching.was_reset(place):
            raise BrokerError(
                f"{place.topic}/{place.partition} was read up to {begun}, and it ends before that now: records are "
                "lost. Was it deleted and created anew, or did a replica become leader that lacked some?"
            )

    async def _see_topics(self) -> None:
        """The group goes on without a topic that was deleted, and says nothing: nobody would be served, silently."""
        gone = [topic for topic in self._topics if self._consumer.partitions_for_topic(topic) is None]
        if not gone:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = time.monotonic()
        elif time.monotonic() - self._missing_since > GONE_S:
            self._missing_since = None
            await self._admin.partitions(gone[0])  # raises if there is no such topic

    def seek(self, place: Place, offset: int) -> None:
        if self._is_ours(place):
            self._begun[place] = offset
            self._told.pop(place, None)
            self._fetching.seek(place, offset)
            self._fetching.resume(place)

    def pause(self, place: Place) -> None:
        if self._is_ours(place):
            self._fetching.pause(place)

    def resume(self, place: Place) -> None:
        if self._is_ours(place):
            self._fetching.resume(place)

    def _is_ours(self, place: Place) -> bool:
        return TopicPartition(*place) in self._consumer.assignment()

    # --- the group ----------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._begun.clear()
        places = self._places(revoked)
        try:
            if places:
                await self._listener.revoked(places, lost=self._generation() < 0)
        except Exception:  # which aiokafka swallows
            log.exception("revoking partitions of group %s failed", self._group)
            raise
        finally:
            async with self._commits:  # none may be under way when the generation ends: it would count in the next
                self._may_commit = False

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        wheres = list(assigned)
        self._fetching.keep_to_resets()  # aiokafka's fetcher knows no position yet
        self._begun.clear()
        self._may_commit = True
        if wheres:
            self._consumer.pause(*wheres)
        self._listener.assigned(self._places(wheres))

    def _places(self, wheres: Iterable[TopicPartition]) -> frozenset[Place]:
        """Those that count: of a newer topic none while a member of the group does not know it."""
        hidden = self._newer - self._memory.known
        return frozenset(Place(*where) for where in wheres if where.topic not in hidden)

    def _generation(self) -> int:
        return int(self._consumer._coordinator.generation)

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        return await self._admin.committed(self._group, places)

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        if not offsets:
            return True
        async with self._commits:
            return self._may_commit and self._generation() >= 0 and await self._commit(offsets)

    async def _commit(self, offsets: Mapping[Place, Committed]) -> bool:
        wanted = {TopicPartition(*place): OffsetAndMetadata(at.offset, at.metadata) for place, at in offsets.items()}
        try:
            async with asyncio.timeout(COMMIT_S):  # `wait_for` may swallow a cancellation: then our caller hangs
                await self._consumer.commit(wanted)
        except (KafkaError, TimeoutError, ValueError) as error:
            log.info("a commit of group %s was not confirmed: %r", self._group, error)
            return False
        return True

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """Behind all that is written, in transactions that are open, too: what stands behind one is not read yet."""
        return await self._ask(self._consumer.end_offsets, places)

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        return await self._ask(self._consumer.beginning_offsets, places)

    async def partitions(self, topic: str) -> int:
        return await self._admin.partitions(topic)

    async def _ask(self, question: Any, places: Iterable[Place]) -> dict[Place, int]:
        try:
            found = await question([TopicPartition(*place) for place in places])
        except (KafkaError, OSError) as error:
            raise self._explained("tells no offsets", error) from None
        return {Place(*where): offset for where, offset in found.items()}
