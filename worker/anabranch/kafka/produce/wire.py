"""The protocol's request to write, and its answer, as bytes. PURE.

Versions 3 (Kafka 0.11) to 7 (2.1, and every later one) differ in the answer alone, by one field.

Responsible for: those two texts. Must never: know a batch's records. Called by: `producing.py`.
Source: Kafka's protocol guide, "Produce API".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from anabranch.kafka.seam import Place

PRODUCE: Final = 0
LOWEST, HIGHEST = 3, 7
_WITH_LOG_START: Final = 5
"""The version since which an answer says where the log begins."""

Produced = tuple[int, int, int]
"""The error's code (0: none), the first record's offset, and the broker's time in ms; -1 where it tells none."""

_HEAD: Final = struct.Struct(">hhii")
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_PARTITION: Final = struct.Struct(">ii")
_RESULT: Final = struct.Struct(">ihqq")
_NO_TRANSACTION: Final = -1
_ALL_REPLICAS: Final = -1
_CORRELATION_BYTES: Final = 4
_LOG_START_BYTES: Final = 8


def write_produce(batches: Sequence[tuple[Place, bytes | bytearray]], timeout_ms: int) -> bytes:
    """A request for all replicas to have `batches`, one of each place at most."""
    of_topic: dict[str, list[bytes | bytearray]] = {}
    for (topic, partition), data in batches:
        parts = of_topic.get(topic)
        if parts is None:
            parts = of_topic[topic] = []
        parts.append(_PARTITION.pack(partition, len(data)))
        parts.append(data)
    whole: list[bytes | bytearray] = [_HEAD.pack(_NO_TRANSACTION, _ALL_REPLICAS, timeout_ms, len(of_topic))]
    for topic, parts in of_topic.items():
        name = topic.encode()
        whole += (_INT16.pack(len(name)), name, _INT32.pack(len(parts) // 2))
        whole += parts
    return b"".join(whole)


def read_throttled_ms(answer: bytes) -> int:
    """For how long the broker hears nothing more, since we have exceeded a quota; 0 if we have not."""
    return int(_INT32.unpack_from(answer, len(answer) - _INT32.size)[0])


def read_produced(answer: bytes, version: int) -> dict[Place, Produced]:
    """What became of each batch, by its place. `answer` begins with its correlation id. Raises `struct.error`."""
    found: dict[Place, Produced] = {}
    step = _RESULT.size + (_LOG_START_BYTES if version >= _WITH_LOG_START else 0)
    (topics,) = _INT32.unpack_from(answer, _CORRELATION_BYTES)
    at = _CORRELATION_BYTES + _INT32.size
    for _ in range(topics):
        (length,) = _INT16.unpack_from(answer, at)
        at += _INT16.size
        topic = answer[at : at + length].decode()
        at += length
        (partitions,) = _INT32.unpack_from(answer, at)
        at += _INT32.size
        for _ in range(partitions):
            partition, code, offset, at_ms = _RESULT.unpack_from(answer, at)
            found[Place(topic, partition)] = code, offset, at_ms
            at += step
    return found
