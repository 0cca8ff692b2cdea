"""Batches that unpack to much: how many places hold one at a time, and what is left of one in a pause.

Responsible for: the bound that `kafka/fetch/unpacking.py`, `reading.py` and `fetching.py` keep together, and turns of
the loop that end in time. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
from tests.support.fetch_scene import A, B, MakeScene, scenes
from tests.support.fetches import batch
from tests.support.wait import until

from anabranch.kafka import pump
from anabranch.kafka.fetch import fetching, reading, unpacking
from anabranch.kafka.fetch.reading import _Records

ZSTD = 4
EACH = 10_000


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    """What unpacks to more than one record is much, two records are taken at once, and one batch may be unpacked."""
    monkeypatch.setattr(unpacking, "LIGHT", EACH + 1000)
    monkeypatch.setattr(reading, "LIGHT", EACH + 1000)
    monkeypatch.setattr(reading, "TAKEN", 2 * EACH)
    monkeypatch.setattr(fetching, "UNPACKED", 6 * EACH)
    return scenes(monkeypatch)


def packed(first: int, count: int) -> bytes:
    return batch(first, count, size=EACH, codec=ZSTD)


async def test_a_place_whose_batch_unpacks_to_much_waits_until_another_is_done_with_its_own(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, packed(0, 5)), (B, 0, packed(0, 5)))
        await s.got(A, 0, 1, 2, 3, 4)
        await s.got(B, 0, 1, 2, 3, 4)
        assert s.member.deliveries == [(A, 2), (A, 2), (A, 1), (B, 2), (B, 2), (B, 1)]


async def test_who_has_unpacked_much_keeps_nobody_waiting_that_has_not(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.broker.answer((A, 0, packed(0, 5)), (B, 0, packed(0, 1) + packed(1, 1) + batch(2)))
        await s.got(A, 0, 1, 2, 3, 4)
        await s.got(B, 0, 1, 2)
        assert s.member.deliveries[:2] == [(A, 2), (B, 2)]


async def test_what_was_unpacked_is_let_go_of_in_a_pause_and_fetched_again(scene: MakeScene) -> None:
    gc.collect()
    gc.disable()
    try:
        async with scene(a=0, b=0) as s:
            s.member.on_records = lambda place: s.subscription.pause(place) if place == A else None
            s.broker.answer((A, 0, packed(0, 5)), (B, 0, packed(0, 5)))
            await s.got(B, 0, 1, 2, 3, 4)
            await until(lambda: not any(isinstance(each, _Records) for each in gc.get_objects()), what="all is freed")
            assert s.member.offsets(A) == [0, 1]
            s.member.on_records = lambda place: None
            assert (await s.broker.request()).read == {B: 5}
            s.subscription.resume(A)
            s.broker.answer()
            assert (await s.broker.request()).read == {A: 2, B: 5}
            s.broker.answer((A, 0, packed(0, 5)))
            await s.got(A, 0, 1, 2, 3, 4)
    finally:
        gc.enable()


async def test_what_is_small_is_kept_through_a_pause(scene: MakeScene) -> None:
    async with scene(a=0, b=0) as s:
        s.member.on_records = lambda place: s.subscription.pause(place)
        s.broker.answer((A, 0, b"".join(packed(offset, 1) for offset in range(3))))
        assert s.member.offsets(A) == [0, 1]
        s.subscription.resume(A)
        await s.got(A, 0, 1, 2)


async def test_a_turn_of_the_loop_ends_though_there_is_more_to_deliver(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)

    def takes_long(_: object) -> None:
        clock.now += 2 * pump.TURN_S

    async with scene(a=0, b=0) as s:
        monkeypatch.setattr(pump, "time", SimpleNamespace(monotonic=lambda: clock.now))
        monkeypatch.setattr(
            s.subscription, "_liveness", SimpleNamespace(is_alive=lambda _: True, polled=lambda _: None)
        )
        s.member.on_records = takes_long
        s.broker.answer((A, 0, batch(0)), (B, 0, batch(0)))
        assert s.member.deliveries == [(A, 1)]
        await s.got(B, 0)
