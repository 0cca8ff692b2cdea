"""What a consumer's fetches become: named once, then only what changed, and anew when a broker may have lost count."""

from __future__ import annotations

import random

import pytest
from tests.support.fetches import Broker

from anabranch.kafka.fetch.sessions import LAST_EPOCH, Session
from anabranch.kafka.fetch.wire import Bounds
from anabranch.kafka.seam import Place

BOUNDS = Bounds(max_wait_ms=100, min_bytes=1, max_bytes=50_000, partition_bytes=1000, isolation_level=1)
A, B, C = Place("log", 0), Place("log", 1), Place("calls", 0)


class Told:
    """A session, and the broker that is told of it."""

    def __init__(self, version: int = 11, session_id: int = 7) -> None:
        self.session, self.broker = Session(), Broker(version, session_id)
        self._version, self._session_id = version, session_id

    def ask(self, asked: dict[Place, int], is_answered: bool = True) -> tuple[int, int, dict[Place, int], list[Place]]:
        read = self.broker._read(self.session.request(self._version, BOUNDS, asked))
        assert read.read == asked, "what the broker reads is what we mean"
        if is_answered:
            self.session.stands(self._session_id)
        return read.session, read.epoch, read.fetched, read.forgotten


async def test_the_first_fetch_names_everything_and_the_next_only_what_changed() -> None:
    told = Told()
    assert told.ask({A: 5, B: 6, C: 9}) == (0, 0, {A: 5, B: 6, C: 9}, [])
    assert told.ask({A: 5, B: 8, C: 9}) == (7, 1, {B: 8}, [])
    assert told.ask({A: 5, B: 8, C: 9}) == (7, 2, {}, [])


async def test_what_is_not_read_for_a_while_is_forgotten_and_named_again() -> None:
    told = Told()
    told.ask({A: 5, B: 6})
    assert told.ask({A: 5}) == (7, 1, {}, [B])
    assert told.ask({A: 5, B: 6}) == (7, 2, {B: 6}, [])


async def test_after_a_fetch_that_nobody_answered_everything_is_named_anew_and_the_old_session_ended() -> None:
    told = Told()
    told.ask({A: 5, B: 6})
    told.ask({A: 6, B: 6}, is_answered=False)
    told.session.begin_anew()
    assert told.ask({A: 6, B: 6}) == (7, 0, {A: 6, B: 6}, [])


@pytest.mark.parametrize(("version", "session_id"), [(11, 0), (6, 0), (4, 0)])
async def test_a_broker_that_keeps_no_session_is_told_everything_each_time(version: int, session_id: int) -> None:
    told = Told(version, session_id)
    for offset in (5, 6, 7):
        assert told.ask({A: offset, B: 1}) == (0, 0, {A: offset, B: 1}, [])


async def test_after_its_last_epoch_a_session_goes_on_with_the_first() -> None:
    told = Told()
    told.ask({A: 5})
    told.session.epoch = LAST_EPOCH
    assert told.ask({A: 6})[1] == LAST_EPOCH
    assert told.ask({A: 7})[1] == 1


@pytest.mark.parametrize("version", range(7, 12))
async def test_whatever_is_asked_the_broker_reads_just_that(version: int) -> None:
    chance, told = random.Random(version), Told(version)
    for _ in range(200):
        asked = {place: chance.randrange(3) for place in (A, B, C) if chance.random() < 0.7}
        told.ask(asked)
        if chance.random() < 0.1:
            told.session.begin_anew()
