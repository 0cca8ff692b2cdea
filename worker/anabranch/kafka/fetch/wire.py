"""A fetch and its answer as bytes: Kafka's protocol of request 1, versions 4 to 11. PURE.

What aiokafka makes of both (a structure of Python objects, field by field) costs more than all the rest of a fetch that
brings one record. Must never: look into the records themselves, or know what a session is. Called by: `sessions.py`,
`asking.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final, NamedTuple

from anabranch.kafka.seam import Place
from anabranch.values import frozen

API_KEY: Final = 1
LOWEST, HIGHEST = 4, 11
"""Version 4 brought the isolation level. From 12 on the fields are compact, and topics have ids."""
LOG_START_SINCE: Final = 5
SESSIONS_SINCE: Final = 7
LEADER_EPOCH_SINCE: Final = 9
RACK_SINCE: Final = 11
UNKNOWN: Final = -1

_SHORT, _INT = Struct(">h"), Struct(">i")
_BOUNDS: Final = Struct(">iiiib")
_SESSION: Final = Struct(">ii")
_ASKED_4: Final = Struct(">iqi")
_ASKED_5: Final = Struct(">iqqi")
_ASKED_9: Final = Struct(">iiqqi")
_HEAD: Final = Struct(">ii")
_WHOLE: Final = Struct(">hi")
_PART_4: Final = Struct(">ihqq")
_PART_5: Final = Struct(">ihqqq")
_ABORTED: Final = Struct(">qq")


@frozen()
class Bounds:
    """What every fetch asks for: how long the broker waits for how much, and how much it sends at most."""

    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    partition_bytes: int
    isolation_level: int


class Part(NamedTuple):
    """What the broker says of one partition. `aborted` are producers' ids, and the offsets where they began."""

    place: Place
    error_code: int
    highwater: int
    stable: int
    aborted: list[tuple[int, int]]
    records: bytes


class Answer(NamedTuple):
    """`error_code` is about the fetch as a whole. Brokers without sessions give `session_id` 0. For `throttled_ms` the
    broker hears nothing more, since we have exceeded a quota; what it held back for that is asked for again.
    """

    error_code: int
    session_id: int
    parts: list[Part]
    throttled_ms: int


def request(
    version: int, bounds: Bounds, session: tuple[int, int], asked: Mapping[Place, int], forgotten: Iterable[Place]
) -> bytes:
    """A fetch of `asked`, offsets by place, in a session: its id and epoch. Old brokers are told of no session."""
    pieces = [
        _BOUNDS.pack(UNKNOWN, bounds.max_wait_ms, bounds.min_bytes, bounds.max_bytes, bounds.isolation_level)
    ]  # we are no replica
    if version >= SESSIONS_SINCE:
        pieces.append(_SESSION.pack(*session))
    _add_topics(pieces, ((place, _asked(version, place, offset, bounds)) for place, offset in asked.items()))
    if version >= SESSIONS_SINCE:
        _add_topics(pieces, ((place, _INT.pack(place.partition)) for place in forgotten))
    if version >= RACK_SINCE:
        pieces.append(_SHORT.pack(0))
    return b"".join(pieces)


def _asked(version: int, place: Place, offset: int, bounds: Bounds) -> bytes:
    if version >= LEADER_EPOCH_SINCE:
        return _ASKED_9.pack(place.partition, UNKNOWN, offset, UNKNOWN, bounds.partition_bytes)
    if version >= LOG_START_SINCE:
        return _ASKED_5.pack(place.partition, offset, UNKNOWN, bounds.partition_bytes)
    return _ASKED_4.pack(place.partition, offset, bounds.partition_bytes)


def _add_topics(pieces: list[bytes], partitions: Iterable[tuple[Place, bytes]]) -> None:
    topics: dict[str, list[bytes]] = {}
    for place, packed in partitions:
        topics.setdefault(place.topic, []).append(packed)
    pieces.append(_INT.pack(len(topics)))
    for topic, packed_ones in topics.items():
        name = topic.encode()
        pieces += [_SHORT.pack(len(name)), name, _INT.pack(len(packed_ones)), *packed_ones]


def answer(version: int, frame: bytes) -> Answer:
    """Raises `ValueError` or `struct.error` for what is no answer to a fetch of this version."""
    error_code, session_id, at = 0, 0, _HEAD.size
    _, throttled_ms = _HEAD.unpack_from(frame)  # behind the correlation id
    if version >= SESSIONS_SINCE:
        error_code, session_id = _WHOLE.unpack_from(frame, at)
        at += _WHOLE.size
    (topics,) = _INT.unpack_from(frame, at)
    at += 4
    parts: list[Part] = []
    for _ in range(topics):
        (size,) = _SHORT.unpack_from(frame, at)
        at += 2 + size
        topic = frame[at - size : at].decode()
        (count,) = _INT.unpack_from(frame, at)
        at += 4
        for _ in range(count):
            part, at = _part(version, topic, frame, at)
            parts.append(part)
    if at != len(frame):
        raise ValueError(f"an answer to a fetch of version {version} has {len(frame)} bytes, and says {at}")
    return Answer(error_code, session_id, parts, throttled_ms)


def _part(version: int, topic: str, frame: bytes, at: int) -> tuple[Part, int]:
    if version >= LOG_START_SINCE:
        partition, error_code, highwater, stable, _ = _PART_5.unpack_from(frame, at)
        at += _PART_5.size
    else:
        partition, error_code, highwater, stable = _PART_4.unpack_from(frame, at)
        at += _PART_4.size
    (count,) = _INT.unpack_from(frame, at)
    at += 4
    aborted: list[tuple[int, int]] = []
    for _ in range(count):  # -1, for none, among transactions that nobody filters
        producer, first = _ABORTED.unpack_from(frame, at)
        aborted.append((producer, first))
        at += _ABORTED.size
    if version >= RACK_SINCE:
        at += 4  # another replica that we might read from, had we said where we are
    (size,) = _INT.unpack_from(frame, at)
    at += 4
    size = max(0, size)
    return Part(Place(topic, partition), error_code, highwater, stable, aborted, frame[at : at + size]), at + size
