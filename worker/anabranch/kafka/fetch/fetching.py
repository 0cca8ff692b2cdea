"""Fetches for a consumer of aiokafka, which does all the rest: the group, positions, commits, resets and connections.

Its own fetcher has a task for each fetch, another that waits for them, and looks at all partitions before and after: on
a lone run that was a fifth of what a worker spent. Here one fetch is under way for each broker; its answer is handled
in the turn of the loop that received it, and whoever reads takes the records from `Fetching`, some at a time.

Where an acknowledgement is a reading, a fetch begins behind what is known: our own events would come back one by one,
each for the price of a fetch, which is more than half of those that a lone run needs.

Responsible for: what is fetched of whom, what was fetched and is not taken, and whatever goes wrong with either. Must
never: deliver by itself, fetch a partition of which something is to be taken, or end silently. Called by:
`kafka/pump.py`, `kafka/reader.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, OffsetResetStrategy
from aiokafka.errors import (
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    for_code,
)

from anabranch.kafka.fetch.asking import REST_S, Asking
from anabranch.kafka.fetch.reading import Reading
from anabranch.kafka.fetch.unpacking import LARGEST
from anabranch.kafka.fetch.wire import Answer, Bounds
from anabranch.kafka.link import Link, linked
from anabranch.kafka.seam import Place
from anabranch.kafka.silent import Silent

log = logging.getLogger(__name__)

EACH: Final = 50
"""How many records of a place are taken before it is the next one's turn."""
UNPACKED: Final = 2 * LARGEST
"""Bytes of large batches that all places together hold unpacked."""
LOOK_S: Final = 0.1
"""How often `look` and `check` are to be called."""
SILENT_S: Final = 15.0
"""After so long without an answer a broker is left: it was asked to answer within 0.1 s, whatever there is."""
RESETS_S: Final = 1.0
"""How often aiokafka's fetcher looks whether a position is missing, unless it is told."""
NOBODY: Final = frozenset({None, -1})
"""The leader of a partition that has none, or whose leader is not known."""

Known = Callable[[Place], int]
"""Where to read on in a place at the earliest: what lies below is known. It may grow at any time."""


class Fetching:
    """See the module. `on_fetched` is told, once a turn of the loop, as long as there is something to `take`."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        on_fetched: Callable[[], None],
        known: Known = lambda _: 0,
        is_answering: Callable[[], bool] = lambda: False,
    ) -> None:
        self._consumer, self._on_fetched, self._known = consumer, on_fetched, known
        self.is_answering = is_answering
        Silent(consumer._client)
        self.bounds = Bounds(
            consumer._fetch_max_wait_ms,
            consumer._fetch_min_bytes,
            consumer._fetch_max_bytes,
            consumer._max_partition_fetch_bytes,
            READ_COMMITTED,  # whatever the consumer asks for, which tells where partitions end by that
        )
        self._loop = asyncio.get_running_loop()
        self._assignment: Any = None
        self._readings: dict[Place, Reading] = {}
        self._barred: list[Reading] = []
        self._brokers: dict[int, Asking] = {}
        self._ready: deque[Reading] = deque()
        self._telling: asyncio.Handle | None = None
        self._is_leaderless = False
        self._failure: Exception | None = None
        self._is_begun = self._is_over = False

    # --- from the beginning to the end ------------------------------------------------------------------------

    def keep_to_resets(self) -> None:
        """Let aiokafka's fetcher find missing positions and fetch nothing. There is no public way to do it."""
        fetcher = self._consumer._fetcher
        fetcher._get_actions_per_node = lambda assignment: _resets(fetcher, assignment)

    def begin(self) -> None:
        """To be called once the consumer has been started; from then on `look` and `check`, every `LOOK_S`."""
        self.keep_to_resets()
        self._is_begun = True
        self._consumer._client.cluster.add_listener(self._led_anew)
        self.look()

    async def end(self) -> None:
        """Nothing is fetched or told any more, and our connections are ended."""
        self._is_over = True
        if self._is_begun:
            self._is_begun = False
            self._consumer._client.cluster.remove_listener(self._led_anew)
        if self._telling is not None:
            self._telling.cancel()
        for broker in self._brokers.values():
            await broker.end()

    def fail(self, error: Exception) -> None:
        """Whoever reads hears of it from `check`."""
        if self._failure is None:
            self._failure = error

    def check(self) -> None:
        """Raises what has gone wrong: here, in what we have told, or in aiokafka's tasks. It also shows that we read:
        else aiokafka leaves the group after a while.
        """
        consumer = self._consumer
        if self._failure is not None:
            raise self._failure
        consumer._coordinator.check_errors()
        if consumer._fetcher.error_future.done():
            consumer._fetcher.error_future.result()
        with consumer._subscription.fetch_context():
            pass

    # --- what is fetched next ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Whatever was left alone for a while, or has changed without our being told."""
        if self._is_over or not self._is_begun or not self._is_assigned():
            return
        if self._barred and (now := self._loop.time()) >= self._barred[0].barred_until:
            for reading in self._barred:
                if reading.barred_until <= now:
                    reading.barred_until = 0.0
            self._barred = [reading for reading in self._barred if reading.barred_until]
        if self._is_leaderless:
            self._consumer._client.force_metadata_update()
        self.tell_soon()
        self._ask()

    def position(self, place: Place) -> int | None:
        """Where a place is read on; None if it is not assigned, or not known yet."""
        reading = self._readings.get(place) if self._is_assigned() else None
        return None if reading is None else reading.state._position

    def was_reset(self, place: Place) -> bool:
        """Whether there was nothing to be read where it was to be read on, since it was sought."""
        reading = self._readings.get(place)
        return reading is not None and reading.was_reset

    def seek(self, place: Place, offset: int) -> None:
        self._consumer.seek(TopicPartition(*place), offset)
        if self._is_assigned() and (reading := self._readings.get(place)) is not None:
            reading.forget()
            self._soon()

    def pause(self, place: Place) -> None:
        self._consumer.pause(TopicPartition(*place))
        if (reading := self._readings.get(place)) is not None:
            reading.let_go()

    def resume(self, place: Place) -> None:
        self._consumer.resume(TopicPartition(*place))
        if self._is_assigned() and (reading := self._readings.get(place)) is not None:
            self._is_to_be_taken(reading)
            self._soon()

    @property
    def may_ask(self) -> bool:
        """Whether all is well, and nothing waits to be taken."""
        return self._is_begun and not self._ready and self._failure is None

    async def connect(self, node_id: int) -> Link:
        return await linked(self._consumer._client, node_id, SILENT_S)

    def wanted(self, asking: Asking) -> dict[Place, int]:
        """What is to be fetched of a broker. Some microseconds for each partition that it leads, before each fetch."""
        if not self._is_assigned():
            return {}
        known = self._known
        return {
            reading.place: reading.ask(asking, known(reading.place)) for reading in asking.readings if reading.is_wanted
        }

    def _is_assigned(self) -> bool:
        """Whether anything is ours; not while the group divides everything anew. A new assignment begins anew."""
        subscription = self._consumer._subscription.subscription
        if subscription is None or subscription._reassignment_in_progress:
            return False
        assignment = subscription.assignment
        if assignment is not self._assignment:
            self._assignment = assignment
            states = {} if assignment is None else assignment._tp_state
            self._readings = {
                Place(*where): Reading(Place(*where), state, self._has_room) for where, state in states.items()
            }
            self._ready.clear()
            self._barred.clear()
            self._led_anew(None)
        return assignment is not None and bool(assignment.active)

    def _led_anew(self, _: object) -> None:
        """Divide the partitions among their leaders. Called by aiokafka with whatever it has learnt of them."""
        leader_of = self._consumer._client.cluster.leader_for_partition
        led: dict[int, list[Reading]] = {}
        self._is_leaderless = False
        for reading in self._readings.values():
            leader = leader_of(reading.place)
            if leader != reading.leader:
                reading.leader, reading.barred_until = leader, 0.0
            if leader in NOBODY:
                self._is_leaderless = True
            else:
                led.setdefault(leader, []).append(reading)
        for node_id in led.keys() - self._brokers.keys():
            self._brokers[node_id] = Asking(self, node_id)
        for node_id, broker in self._brokers.items():
            broker.readings = led.get(node_id, [])

    def _ask(self) -> None:
        for broker in self._brokers.values():
            broker.ask()

    # --- what was fetched -------------------------------------------------------------------------------------

    def heard(self, asking: Asking, heard: Answer) -> None:
        """What a broker has answered. What is raised in here, also by whoever is told, is raised by `check`."""
        try:
            for part in heard.parts:
                reading = self._readings.get(part.place)
                if reading is None or not reading.is_asked(asking):
                    continue
                if part.error_code:
                    self._refused(reading, for_code(part.error_code))
                else:
                    reading.hear(part, self.bounds)
                    self._is_to_be_taken(reading)
            self._tell()
        except Exception as error:  # noqa: BLE001 - it would end the connection, and nothing else
            self.fail(error)

    def _refused(self, reading: Reading, error: Any) -> None:
        """One partition. It is left alone for a while: in a session its error would come back at once, each time."""
        if error is TopicAuthorizationFailedError:
            raise TopicAuthorizationFailedError(reading.place.topic)
        reading.barred_until = self._loop.time() + REST_S
        self._barred.append(reading)
        if error is OffsetOutOfRangeError:
            log.info("%s has no record at %d any more, or not yet: its position is reset", reading.place, reading.asked)
            fetcher = self._consumer._fetcher
            reading.was_reset = True
            reading.state.await_reset(OffsetResetStrategy.EARLIEST)
            fetcher._notify(fetcher._wait_consume_future)
        elif error.invalid_metadata:
            self._consumer._client.force_metadata_update()
        elif not reading.is_warned:
            reading.is_warned = True
            log.warning("%s cannot be read, and is tried again: %s", reading.place, error.__name__)

    def _is_to_be_taken(self, reading: Reading) -> None:
        if reading.is_fetched and not reading.is_ready and not reading.state._paused:
            reading.is_ready = True
            self._ready.append(reading)

    def tell_soon(self, pause_s: float = 0.0) -> None:
        """In the next turn of the loop, or after a pause, if there is something to be taken."""
        if self._ready:
            self._soon(pause_s)

    def _soon(self, pause_s: float = 0.0) -> None:
        """Ask, or tell of what is to be taken, once all has been said in this turn that is to be asked for together."""
        if self._telling is not None or not self._is_begun:
            return
        if pause_s:
            self._telling = self._loop.call_later(pause_s, self._tell_now)
        else:
            self._telling = self._loop.call_soon(self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        try:
            self._tell()
        except Exception as error:  # noqa: BLE001 - whoever reads raises it
            self.fail(error)

    def _tell(self) -> None:
        if self._telling is not None:
            return
        if self._is_over or not self._is_assigned():
            return  # whoever is told now finds nothing to take, and would be told again in each turn
        if self._ready and self._failure is None:
            self._on_fetched()
        else:
            self._ask()

    def take(self, most: int) -> tuple[Place, list[Any]] | None:
        """The next records of the place whose turn it is, `most` of them at most. The position is behind them already.

        Once all has been taken, more is fetched. Raises `KafkaError` for what cannot be read.
        """
        if not self._is_assigned() or self._is_over:
            return None
        while self._ready:
            part = most if len(self._ready) == 1 else min(most, EACH)
            reading = self._ready.popleft()
            try:
                records = reading.take(part)
            finally:
                reading.is_ready = False
                if reading.is_heavy:
                    self._loop.call_soon(self._go_on, reading)
                else:
                    self._is_to_be_taken(reading)
            if records:
                return reading.place, records
        self._ask()
        return None

    def _has_room(self, size: int) -> bool:
        """Whether one of the places may hold so much unpacked, beside what the others hold."""
        return sum(reading.held for reading in self._readings.values()) + size <= UNPACKED

    def _go_on(self, reading: Reading) -> None:
        """Take more of it, unless it is of a former assignment."""
        if self._readings.get(reading.place) is reading:
            self._is_to_be_taken(reading)
            self._soon()


def _resets(fetcher: Any, assignment: Any) -> tuple[list[Any], dict[int, list[Any]], float, bool, list[Any]]:
    """What aiokafka's fetcher is to do: no fetches, resets by broker, look again then, find leaders, no pauses."""
    leader_of = fetcher._client.cluster.leader_for_partition
    resets: dict[int, list[Any]] = {}
    lacks_leader = False
    for where, state in assignment._tp_state.items():
        if state.has_valid_position:
            continue
        leader = leader_of(where)
        if leader in NOBODY:
            lacks_leader = True
        elif leader not in fetcher._in_flight:
            resets.setdefault(leader, []).append(where)
    return [], resets, RESETS_S, lacks_leader, []
