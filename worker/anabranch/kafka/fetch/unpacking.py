"""The batches of a fetch, each looked at before it is unpacked: 9 kB of zstd may unpack to 300 MB, and 1 MB to 30 GB.

A broker stores whatever it can read through, so whoever may write to a topic could end each of its readers in turn. A
batch that unpacks to more than `LARGEST` is `Unreadable`, and so little is unpacked that this is certain. One that is
`Damaged` is not what was written: it may be read when it is fetched again. What a reader's places hold that is unpacked
has a bound that they share: clients that compress may well send batches of twenty times what a fetch may bring.

Responsible for: what aiokafka's `PartitionRecords` takes batches from. Must never: look into a record. Called by:
`reading.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

LARGEST: Final = 32 * 1024 * 1024
"""What a batch may unpack to: topics take 1 MB, and text becomes a twentieth. So much is unpacked at once, too, about:
a fetch may have hundreds of such batches."""
LIGHT: Final = 1024 * 1024
"""What unpacks to more is held by few places at a time, and by none that is paused: there may be a hundred of them."""

_LENGTH: Final = Struct(">i")
_LENGTH_AT, _MAGIC_AT, _ATTRIBUTES_AT, _RECORDS_AT = 8, 16, 22, 61
_BEHIND_LENGTH: Final = 12
_CODEC: Final = 0x07
_NEWEST: Final = 2
_SNAPPY: Final = 2
_STREAMS: Final[dict[int, Callable[[Any, Any], int]]] = {
    1: cramjam.gzip.decompress_into,
    3: cramjam.lz4.decompress_into,
    4: cramjam.zstd.decompress_into,
}
_FULL: Final = "failed to write whole buffer"
_BLOCKS: Final = b"\x82SNAPPY\0"
_BLOCKS_AT: Final = 16


class Damaged(CorruptRecordException):  # type: ignore[misc]  # aiokafka has no types
    """A batch that is not what its checksum was made of."""


class Unreadable(ValueError):
    """A batch that is as it was written, and of which no record can be had."""


class Next(NamedTuple):
    """The batch that comes next: where it ends, what it unpacks to, and why it cannot be, if so."""

    end: int
    size: int
    unreadable: str | None


class Batches:
    """See the module. `last` is the batch that was given last, `held` what is unpacked of it; `unpacked` counts what
    was unpacked since `go_on`. `has_room` says whether so many bytes more may be held, and is asked from `LIGHT` on.
    """

    __slots__ = ("_at", "_has_room", "_next", "_raw", "_records", "held", "last", "unpacked")

    def __init__(self, raw: bytes, has_room: Callable[[int], bool] = lambda size: True) -> None:
        self._raw, self._records, self._has_room = raw, MemoryRecords(raw), has_room
        self._at = self.unpacked = self.held = 0
        self._next: Next | None = None
        self.last: Any = None

    def has_next(self) -> bool:
        """Whether there is a batch that may be unpacked now. The one before it has been read."""
        self.held = 0
        if self.unpacked >= LARGEST or not self._records.has_next():
            return False
        comes = self._look()
        return comes.size <= LIGHT or comes.unreadable is not None or self._has_room(comes.size)

    def go_on(self) -> bool:
        """Whether there are batches that `has_next` has kept back: it may no longer."""
        self.unpacked = 0
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        """Raises `Damaged`, or `Unreadable`: what comes behind it can be read."""
        self.last, comes = None, self._look()
        batch = self._records.next_batch()
        self._at, self._next = comes.end, None
        if not batch.validate_crc():
            raise Damaged("its checksum is of something else")
        self.last = batch
        self.unpacked += min(comes.size, LARGEST)
        if comes.unreadable is not None:
            raise Unreadable(comes.unreadable)
        self.held = comes.size
        return batch

    def _look(self) -> Next:
        if self._next is None:
            raw, at = self._raw, self._at
            end = at + _BEHIND_LENGTH + _LENGTH.unpack_from(raw, at + _LENGTH_AT)[0]
            codec = raw[at + _ATTRIBUTES_AT] & _CODEC if raw[at + _MAGIC_AT] >= _NEWEST else 0
            self._next = (
                _looked_at(codec, memoryview(raw)[at + _RECORDS_AT : end], end) if codec else Next(end, 0, None)
            )
        return self._next


def _looked_at(codec: int, packed: memoryview, end: int) -> Next:
    """Of a codec that aiokafka does not know either the size is 0."""
    try:
        size = _snappy_size(packed) if codec == _SNAPPY else _stream_size(codec, packed)
    except (cramjam.DecompressionError, StructError, ValueError) as error:
        return Next(end, 0, f"what was compressed cannot be unpacked: {error}")
    if size > LARGEST:
        return Next(end, size, f"{len(packed)} bytes, compressed, unpack to more than {LARGEST}")
    return Next(end, size, None)


def _stream_size(codec: int, packed: memoryview) -> int:
    """No more memory is taken than what it unpacks to."""
    unpack = _STREAMS.get(codec)
    if unpack is None:
        return 0
    with mmap.mmap(-1, LARGEST) as room:
        try:
            return int(unpack(packed, room))
        except cramjam.DecompressionError as error:
            if _FULL in str(error):
                return LARGEST + 1
            raise


def _snappy_size(packed: memoryview) -> int:
    """It says what it unpacks to, of each block if it has blocks."""
    if bytes(packed[: len(_BLOCKS)]) != _BLOCKS:
        return int(cramjam.snappy.decompress_raw_len(packed))
    at, size = _BLOCKS_AT, 0
    while at < len(packed):
        (length,) = _LENGTH.unpack_from(packed, at)
        at += _LENGTH.size + length
        if length <= 0 or at > len(packed):
            raise ValueError(f"a block of {length} bytes")
        size += cramjam.snappy.decompress_raw_len(packed[at - length : at])
    return size
