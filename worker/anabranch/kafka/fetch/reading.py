"""One assigned partition: what is fetched of it next, and what was fetched and is not taken yet.

aiokafka's state of the partition says where it is read on, and whether it is paused. It may change at any time: what
was fetched for a position that is no longer the position is dropped, and what was fetched before a pause is kept.

Responsible for: what of an answer counts, and the position. Must never: ask for anything. Called by: `fetching.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException, KafkaError, RecordTooLargeError
from aiokafka.structs import ConsumerRecord

from anabranch.kafka.fetch.unpacking import LIGHT, Batches, Damaged
from anabranch.kafka.fetch.wire import Bounds, Part
from anabranch.kafka.seam import Place

log = logging.getLogger(__name__)

TAKEN: Final = 1024 * 1024
"""How many bytes of values are taken of a place before it is the next one's turn, and it may be paused."""


class Reading:
    """See the module. `state` is aiokafka's. Until `barred_until` is 0 again, something is the matter with it. When it
    `is_heavy`, what comes next unpacks to so much that others have their turn before; `has_room` says whether so many
    bytes more may be held unpacked.
    """

    __slots__ = (
        "_asked", "_asker", "_at", "_has_room", "_offset", "_records",
        "barred_until", "is_heavy", "is_ready", "is_warned", "leader", "place", "state", "was_reset",
    )  # fmt: skip

    def __init__(self, place: Place, state: Any, has_room: Callable[[int], bool]) -> None:
        self.place, self.state, self._has_room = place, state, has_room
        self.leader: int | None = None
        self.barred_until = 0.0
        self.is_ready = self.is_warned = self.is_heavy = self.was_reset = False
        self._asker: object = None
        self._asked = self._offset = self._at = 0
        self._records: Any = None

    @property
    def is_fetched(self) -> bool:
        """Whether there is something to be taken, now or once it is no longer paused."""
        return self._records is not None

    @property
    def held(self) -> int:
        """Bytes that are unpacked, of a batch that is being taken."""
        return 0 if self._records is None else int(self._records.held)

    @property
    def is_wanted(self) -> bool:
        state = self.state
        return state._position is not None and not state._paused and self._records is None and not self.barred_until

    def ask(self, asker: object, known: int) -> int:
        """The offset to fetch from, for `asker`, of what is wanted: the position, or what lies behind what is known."""
        self._asker, self._asked = asker, self.state._position
        self._offset = max(self._asked, known)
        return self._offset

    def forget(self) -> None:
        """Nothing counts of what was fetched, or is on its way: it was sought, perhaps to where it was before."""
        self._asker = None
        self._drop()
        self.was_reset = False

    def let_go(self) -> None:
        """It is paused: what has unpacked to much is fetched anew once it goes on."""
        if self.held > LIGHT:
            self._drop()

    def _drop(self) -> None:
        if self._records is not None:
            self._records.end()
            self._records = None

    @property
    def asked(self) -> int:
        """The offset that the last fetch began at."""
        return self._offset

    def is_asked(self, asker: object) -> bool:
        """Whether an answer to `asker` is one to the last question, and the position still that of the question."""
        return asker is self._asker and self.state._position == self._asked

    def hear(self, part: Part, bounds: Bounds) -> None:
        """Raises `RecordTooLargeError` for the beginning of a record that is larger than a fetch may be."""
        self._asker = None
        state = self.state
        state.highwater, state.lso, state.timestamp = part.highwater, part.stable, int(time.time() * 1000)
        self.is_warned = False
        if not part.records:
            return
        records = Batches(part.records, self._has_room)
        if not records.go_on():
            at, most = self._offset, bounds.partition_bytes
            raise RecordTooLargeError(f"the record at {at} of {self.place} is larger than a fetch may be: {most} bytes")
        where = TopicPartition(*self.place)
        self._at = self._asked
        self._records = _Records(where, records, part.aborted, self._offset, None, None, False, bounds.isolation_level)

    def take(self, most: int) -> list[Any]:
        """The next records, `most` of them at most, and not much more than `TAKEN`; the position is behind them. None
        while it is paused.

        Raises `Damaged`. What has no records, like the end of a transaction, moves the position too.
        """
        state, records, self.is_heavy = self.state, self._records, False
        if records is None or state._paused:
            return []
        if state._position != self._at:
            self._drop()
            return []
        taken, size = [], 0
        for record in records:
            taken.append(record)
            size += record.serialized_value_size
            if size >= TAKEN or len(taken) == most:
                break
        else:
            self.is_heavy = records.goes_on()
            if not self.is_heavy:
                self._records = None
        self._at = records.next_fetch_offset
        state.consumed_to(self._at)
        return taken


class _Records(PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """What cannot be read, of all that is left of its batch, is one record that whoever reads it cannot read either."""

    _records: Batches
    _records_iterator: Any
    next_fetch_offset: int

    def __next__(self) -> Any:
        try:
            return next(self._records_iterator)
        except StopIteration:
            self._records_iterator = None  # which leads back to us
            raise
        except Damaged:
            raise
        except (CorruptRecordException, ValueError) as error:  # also a header's name that is no UTF-8
            if self._records.last is None:
                raise
            return self._in_place_of(self._records.last, error)

    @property
    def held(self) -> int:
        return self._records.held

    def end(self) -> None:
        """Its iterator leads back to it: without this, what is unpacked would stay until Python looks for such."""
        self._records_iterator = None

    def goes_on(self) -> bool:
        """Whether there is more, that was not to be unpacked at once with what came before."""
        if is_more := self._records.go_on():
            self._records_iterator = self._unpack_records()
        return is_more

    def _in_place_of(self, batch: Any, error: Exception) -> Any:
        """It lies where the last one did, and its value says what was there."""
        first, last = max(batch.base_offset, self.next_fetch_offset), batch.next_offset - 1
        why = f"offsets {first} to {last} cannot be read, and are passed over as one record: {error}"
        log.error("%s/%d: %s", *self._tp, why)
        self.next_fetch_offset = last + 1
        self._records_iterator = self._unpack_records()
        value = why.encode()
        stamp, kind = batch.max_timestamp, batch.timestamp_type
        return ConsumerRecord(*self._tp, last, stamp, kind, None, value, None, -1, len(value), ())

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        """What compaction leaves of a marker, when nobody needs it any more, is a batch that is empty."""
        try:
            return bool(super()._contains_abort_marker(next_batch))
        except KafkaError:  # of no record
            return False
