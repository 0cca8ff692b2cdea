"""The batches of a fetch, each looked at before it is unpacked: 9 kB of zstd may unpack to 300 MB, and 1 MB to 30 GB.

A broker stores whatever it can read through, so whoever may write to a topic could end each of its readers in turn. A
batch that unpacks to more than `LARGEST` is `Unreadable`, and so little is unpacked that this is certain. One that is
`Damaged` is not what was written: it may be read when it is fetched again.

Responsible for: what aiokafka's `PartitionRecords` takes batches from. Must never: look into a record. Called by:
`reading.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, Final

import cramjam
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

LARGEST: Final = 32 * 1024 * 1024
"""What a batch may unpack to: topics take 1 MB, and text becomes a twentieth. So much is unpacked at once, too, about:
a fetch may have hundreds of such batches."""

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


class Batches:
    """See the module. `last` is the batch that was given last; `unpacked` counts what was unpacked since `go_on`."""

    __slots__ = ("_at", "_raw", "_records", "last", "unpacked")

    def __init__(self, raw: bytes) -> None:
        self._raw, self._records = raw, MemoryRecords(raw)
        self._at = self.unpacked = 0
        self.last: Any = None

    def has_next(self) -> bool:
        """Whether there is a batch that may be unpacked now."""
        return self.unpacked < LARGEST and bool(self._records.has_next())

    def go_on(self) -> bool:
        """Whether there are batches that `has_next` has kept back: it does no longer."""
        was_full, self.unpacked = self.unpacked >= LARGEST, 0
        return was_full and bool(self._records.has_next())

    def next_batch(self) -> Any:
        """Raises `Damaged`, or `Unreadable`: what comes behind it can be read."""
        self.last = None
        batch, raw, at = self._records.next_batch(), self._raw, self._at
        self._at += _BEHIND_LENGTH + _LENGTH.unpack_from(raw, at + _LENGTH_AT)[0]
        if not batch.validate_crc():
            raise Damaged("its checksum is of something else")
        self.last = batch
        if raw[at + _MAGIC_AT] >= _NEWEST and (codec := raw[at + _ATTRIBUTES_AT] & _CODEC):
            self.unpacked += self._size(codec, memoryview(raw)[at + _RECORDS_AT : self._at])
        return batch

    def _size(self, codec: int, packed: memoryview) -> int:
        """What it unpacks to; 0 with a codec that aiokafka does not know either."""
        try:
            size = _snappy_size(packed) if codec == _SNAPPY else _stream_size(codec, packed)
        except (cramjam.DecompressionError, StructError, ValueError) as error:
            raise Unreadable(f"what was compressed cannot be unpacked: {error}") from None
        if size > LARGEST:
            self.unpacked += LARGEST
            raise Unreadable(f"{len(packed)} bytes, compressed, unpack to more than {LARGEST}")
        return size


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
