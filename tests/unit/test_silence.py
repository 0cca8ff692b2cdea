"""Waiting for somebody who may fall silent, in virtual time.

Called by: pytest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from tests.support.virtual import now, virtually

from anabranch.tasks import Silence


def test_who_says_something_often_enough_is_waited_for() -> None:
    async def talk() -> float:
        async with Silence(10) as silence:
            for _ in range(5):
                await asyncio.sleep(9)
                silence.heard()
        return now()

    assert virtually(talk) == 45


@pytest.mark.parametrize("said_at", [0.0, 3.0, 9.0])
def test_who_falls_silent_is_left_so_many_seconds_after_the_last_word(said_at: float) -> None:
    async def talk() -> float:
        with suppress(TimeoutError):
            async with Silence(10) as silence:
                await asyncio.sleep(said_at)
                silence.heard()
                await asyncio.sleep(1000)
        return now()

    assert virtually(talk) == said_at + 10


def test_nobody_is_listened_to_who_is_to_be_ignored_or_has_ended() -> None:
    async def talk() -> float:
        async with Silence(10) as silence:
            silence.ignore()
            await asyncio.sleep(1000)
        async with Silence(10):
            await asyncio.sleep(1)
        await asyncio.sleep(1000)
        return now()

    assert virtually(talk) == 2001


def test_a_bound_of_somebody_elses_counts_as_well() -> None:
    async def talk() -> float:
        with suppress(TimeoutError):
            async with asyncio.timeout(5), Silence(10):
                await asyncio.sleep(1000)
        return now()

    assert virtually(talk) == 5


def test_a_block_that_is_to_end_soon_does_whatever_is_heard() -> None:
    async def talk() -> float:
        with suppress(TimeoutError):
            async with Silence(10) as silence:
                await asyncio.sleep(5)
                silence.within(2)
                for _ in range(100):
                    await asyncio.sleep(0.5)
                    silence.heard()
        return now()

    assert virtually(talk) == 7
