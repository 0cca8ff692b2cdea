"""Batches that unpack to far more than they are, and those of which no record can be had: they cost nothing else.

Responsible for: `kafka/fetch/unpacking.py`, and what `kafka/fetch/reading.py` makes of it. Must never: run a broker,
or unpack what it says cannot be. Called by: pytest.
"""

from __future__ import annotations

from struct import pack

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from tests.support.fetch_scene import A, B, MakeScene, scenes
from tests.support.fetches import batch, rewritten
from tests.support.wait import until

from anabranch.kafka.fetch import unpacking
from anabranch.kafka.fetch.unpacking import LARGEST, Batches, Unreadable

GZIP, SNAPPY, LZ4, ZSTD = CODECS = (1, 2, 3, 4)
NAMES = ["gzip", "snappy", "lz4", "zstd"]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    return scenes(monkeypatch)


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
async def test_compressed_batches_are_read(scene: MakeScene, codec: int) -> None:
    async with scene(a=6) as s:
        s.broker.answer((A, 0, batch(4, 5, codec=codec) + batch(9, 1, size=1_000_000, codec=codec) + batch(10)))
        await s.got(A, 6, 7, 8, 9, 10)
        assert len(s.member.got[A][-2].value) == 1_000_000


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
async def test_a_batch_that_unpacks_to_too_much_is_one_record_that_says_so(
    scene: MakeScene, codec: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unpacking, "LARGEST", 1_000_000)
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0) + batch(1, 3, size=400_000, codec=codec) + batch(4)))
        await s.got(A, 0, 3, 4)
        told = s.member.got[A][1]
        assert (told.key, told.headers, told.timestamp) == (None, (), 1)
        assert b"offsets 1 to 3 cannot be read, and are passed over as one record" in told.value
        assert b"unpack to more than 1000000" in told.value
        assert told.value.decode() in caplog.text
        assert (await s.broker.request()).fetched == {A: 5}


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_what_unpacks_to_the_most_that_there_may_be_is_read(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = batch(0, size=100_000, codec=codec)
    batches = Batches(packed)
    batches.next_batch()
    monkeypatch.setattr(unpacking, "LARGEST", batches.unpacked)
    (record,) = Batches(packed).next_batch()
    assert len(record.value) == 100_000
    monkeypatch.setattr(unpacking, "LARGEST", batches.unpacked - 1)
    with pytest.raises(Unreadable):
        Batches(packed).next_batch()


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_a_bomb_is_told_from_its_beginning(codec: int) -> None:
    """Of 300 MB no more is unpacked than there may be."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 2**30)
    builder.append(0, 1, None, bytes(LARGEST + 1), [])
    with pytest.raises(Unreadable, match=f"unpack to more than {LARGEST}"):
        Batches(bytes(builder.build())).next_batch()


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
async def test_what_cannot_be_unpacked_is_passed_over(scene: MakeScene, codec: int) -> None:
    packed = batch(1, 2, size=1000, codec=codec)
    async with scene(a=0) as s:
        s.broker.answer((A, 0, batch(0) + rewritten(packed, packed[61:90], b"\xff" * 29) + batch(3)))
        await s.got(A, 0, 2, 3)


@pytest.mark.parametrize("block", [pack(">i", -4), pack(">i", 99) + b"x", b"\0"], ids=["none", "cut", "no length"])
async def test_blocks_of_snappy_that_are_none_are_passed_over(scene: MakeScene, block: bytes) -> None:
    packed = batch(0, size=1000, codec=SNAPPY)
    junk = (block * len(packed))[: len(packed) - 77]
    async with scene(a=0) as s:
        s.broker.answer((A, 0, rewritten(packed, packed[77:], junk) + batch(1)))
        await s.got(A, 0, 1)


async def test_a_record_that_is_against_the_format_takes_along_no_more_than_the_rest_of_its_batch(
    scene: MakeScene,
) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2**30)
    for number in range(4):
        builder.append(number, 1, None, b"", [("name" if number == 1 else "good", b"")])
    junk = rewritten(bytes(builder.build()), b"name", b"\xff\xfe\xfd\xfc")
    async with scene(a=0) as s:
        s.broker.answer((A, 0, junk + batch(4)))
        await s.got(A, 0, 3, 4)
        assert b"offsets 1 to 3 cannot be read" in s.member.got[A][1].value


async def test_of_what_unpacks_to_much_so_much_is_taken_and_then_others_have_their_turn(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "LARGEST", 150_000)
    heavy = b"".join(batch(offset, size=100_000, codec=ZSTD) for offset in range(5))
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, heavy), (B, 0, batch(0)))
        assert s.member.deliveries == [(A, 2), (B, 1)], "in one turn of the loop"
        await until(lambda: s.member.offsets(A) == [0, 1, 2, 3, 4], 5.0, "the rest")
        assert s.member.deliveries[2:] == [(A, 2), (A, 1)]


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Four batches, of which two are unpacked at once."""
    monkeypatch.setattr(unpacking, "LARGEST", 101_000)
    return b"".join(batch(offset, size=100_000, codec=ZSTD) for offset in range(4))


async def test_what_was_kept_back_waits_for_the_end_of_a_pause(scene: MakeScene, heavy: bytes) -> None:
    async with scene(a=0) as s:
        s.member.on_records = lambda place: s.subscription.pause(place)
        s.broker.answer((A, 0, heavy))
        assert s.member.offsets(A) == [0, 1]
        await s.turns()
        assert s.member.offsets(A) == [0, 1]
        s.subscription.resume(A)
        await s.got(A, 0, 1, 2, 3)


async def test_nothing_that_was_kept_back_is_taken_of_a_former_assignment(scene: MakeScene, heavy: bytes) -> None:
    async with scene(a=0) as s:
        s.broker.answer((A, 0, heavy))
        await s.assign(A, B, a=7)
        await s.turns()
        assert s.member.offsets(A) == [0, 1]
