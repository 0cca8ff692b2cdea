"""A fetch and its answer are the bytes that aiokafka makes of them, in every version that we speak."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from aiokafka.protocol import fetch as protocol

from anabranch.kafka.fetch.wire import HIGHEST, LOWEST, Bounds, Part, answer, request
from anabranch.kafka.seam import Place

VERSIONS = range(LOWEST, HIGHEST + 1)
CASES = 60
BOUNDS = Bounds(max_wait_ms=100, min_bytes=1, max_bytes=50_000, partition_bytes=1000, isolation_level=1)


def any_places(chance: random.Random) -> list[Place]:
    topics = [f"t{number}-é" for number in range(chance.randrange(4))]
    return [Place(topic, number) for topic in topics for number in range(chance.randrange(1, 5))]


def by_topic(pairs: list[tuple[Place, Any]]) -> list[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for place, one in pairs:
        found.setdefault(place.topic, []).append(one)
    return list(found.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_is_the_one_that_aiokafka_writes(version: int) -> None:
    chance = random.Random(version)
    for _ in range(CASES):
        asked = {place: chance.randrange(2**40) for place in any_places(chance)}
        forgotten, session = any_places(chance), (chance.randrange(2**31), chance.randrange(2**31))
        assert request(version, BOUNDS, session, asked, forgotten) == theirs(version, session, asked, forgotten)


def theirs(version: int, session: tuple[int, int], asked: dict[Place, int], forgotten: list[Place]) -> bytes:
    kind = getattr(protocol, f"FetchRequest_v{version}")
    epoch = (-1,) if version >= 9 else ()
    start = (-1,) if version >= 5 else ()
    topics = by_topic([(place, (place.partition, *epoch, offset, *start, 1000)) for place, offset in asked.items()])
    more: tuple[Any, ...] = ()
    if version >= 7:
        more = (by_topic([(place, place.partition) for place in forgotten]),)
    rack = ("",) if version >= 11 else ()
    whole: bytes = kind(-1, 100, 1, 50_000, 1, *(session if version >= 7 else ()), topics, *more, *rack).encode()
    return whole


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_is_read_as_aiokafka_writes_it(version: int) -> None:
    chance = random.Random(version)
    kind = getattr(protocol, f"FetchResponse_v{version}")
    for _ in range(CASES):
        parts = [any_part(chance, place) for place in any_places(chance)]
        error, session = (chance.randrange(-1, 80), chance.randrange(2**31)) if version >= 7 else (0, 0)
        start = (chance.randrange(100),) if version >= 5 else ()
        replica = (chance.randrange(-1, 9),) if version >= 11 else ()
        topics = by_topic([(part.place, theirs_of(part, start, replica)) for part in parts])
        frame = b"\0\0\0\1" + kind(7, *((error, session) if version >= 7 else ()), topics).encode()
        assert answer(version, frame) == (error, session, parts, 7)


def theirs_of(part: Part, start: tuple[int, ...], replica: tuple[int, ...]) -> tuple[Any, ...]:
    place, error_code, highwater, stable, aborted, records = part
    return place.partition, error_code, highwater, stable, *start, aborted, *replica, records


def any_part(chance: random.Random, place: Place) -> Part:
    aborted = [(chance.randrange(2**40), chance.randrange(2**40)) for _ in range(chance.randrange(3))]
    records = chance.randbytes(chance.randrange(50))
    return Part(place, chance.randrange(-1, 80), chance.randrange(2**40), chance.randrange(2**40), aborted, records)


def test_what_is_not_there_is_nothing() -> None:
    """Instead of an empty list of aborted transactions, or of empty records, a broker may send none: -1."""
    frame = protocol.FetchResponse_v11(0, 0, 7, [("t", [(3, 1, 9, 8, 0, [], -1, b"")])]).encode()
    nothing = frame[:-12] + struct.pack(">iii", -1, -1, -1)
    assert answer(11, b"\0\0\0\1" + nothing).parts == [Part(Place("t", 3), 1, 9, 8, [], b"")]


def test_a_broken_answer_is_refused() -> None:
    frame = b"\0\0\0\1" + protocol.FetchResponse_v11(0, 0, 7, [("t", [(3, 1, 9, 8, 0, [], -1, b"records")])]).encode()
    for broken in (frame[:-1], frame + b"x", frame[:9]):
        with pytest.raises((ValueError, struct.error)):
            answer(11, broken)
