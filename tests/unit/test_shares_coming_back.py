"""Homes that change hands again before all has started that stayed with a former owner.

Responsible for: `tools/shares.py` where rebalances follow each other within seconds, in virtual time. Must never: run a
broker or wait for real time. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from tests.support.sharing import EPOCH, MINUTELY, Worker, home_of
from tests.support.virtual import now, tick, virtually

from anabranch.homes import homes
from anabranch.limits import LATE_S, ShareLost
from anabranch.specs import LimitSpec
from anabranch.tools.marks import Marks, read, write

CRM = LimitSpec("crm", "q", 10.0)
HOME = home_of(CRM)


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch)


async def _handed_over(for_s: float) -> tuple[Worker, Worker, list[asyncio.Task[None]]]:
    """Who had thirty calls at home, and the one whose home it is when the first has started; and these calls."""
    first, second = Worker(CRM).gain(HOME), Worker(CRM)
    calls = [asyncio.create_task(first.call(CRM, order=n)) for n in range(30)]
    await asyncio.sleep(0.15)
    second.gain(HOME, first.leave(HOME, for_s=for_s))
    return first, second, calls


def test_who_gets_a_home_back_goes_on_with_what_had_stayed_and_begins_anew_after_the_other() -> None:
    """What stayed has its budget up to what was said; then comes what the other one had let stay, then our own."""

    async def run() -> list[float]:
        first, second, calls = await _handed_over(for_s=1.0)
        calls += [asyncio.create_task(second.call(CRM, order=n)) for n in range(30, 60)]
        await asyncio.sleep(0.3)
        first.gain(HOME, second.leave(HOME, for_s=1.5))
        calls += [asyncio.create_task(first.call(CRM, order=n)) for n in range(60, 80)]
        await asyncio.sleep(0.1)
        told = first.leave(HOME, for_s=3.0)
        assert told[0].due_ms > (EPOCH + 3.3) * 1000
        await asyncio.gather(*calls, return_exceptions=True)
        return sorted(first.at + second.at)

    at = virtually(run)
    assert len(at) > 25
    assert min(after - before for before, after in pairwise(at)) > 0.08, "at no time are there two who start calls"
    assert max(after - before for before, after in pairwise(at)) < 0.2, "and there is always one"


async def _come_back() -> tuple[Worker, list[asyncio.Task[None]]]:
    """Who has its home back, at 10/s, before all has started that had stayed there; and all calls."""
    first, second, calls = await _handed_over(for_s=2.0)
    calls.append(asyncio.create_task(second.call(CRM)))
    await asyncio.sleep(0)
    first.gain(HOME, second.leave(HOME))
    return first, calls


def test_what_stayed_starts_no_more_if_the_home_came_back_and_was_not_told_of_again() -> None:
    async def run() -> list[float]:
        first, calls = await _come_back()
        first.shares.close(0.0, lambda partition, offset, is_in: True)
        await asyncio.sleep(0.1)
        first.shares.leave([])
        await asyncio.gather(*calls, return_exceptions=True)
        return first.at

    assert virtually(run) == [0.1, 0.2]


def test_a_pause_is_one_of_what_stayed_too() -> None:
    async def run() -> list[float]:
        first, calls = await _come_back()
        first.shares.pause("crm", None, 30.0)
        await asyncio.gather(*calls, return_exceptions=True)
        return first.at

    assert virtually(run) == [0.1]


def test_who_is_killed_leaves_what_it_was_told_and_what_is_yet_to_come_of_it() -> None:
    """Calls of the one before still start: what a commit says of them outlives the next owner."""

    async def run() -> tuple[float, float]:
        last = [0.0, 0.0]
        for n, waits_s in enumerate([0.5, 6.0]):
            first = Worker(CRM).gain(HOME)
            calls = [asyncio.create_task(first.call(CRM, order=n)) for n in range(60)]
            await asyncio.sleep(0.15)
            killed = Worker(CRM).gain(HOME, first.leave(HOME, for_s=3.0))
            told = read(0, write(0, Marks(shares=killed.shares.told(HOME)))).shares
            await asyncio.sleep(waits_s)
            third, gained_at = Worker(CRM).gain(HOME, told), now()
            await third.call(CRM)
            await asyncio.gather(*calls, return_exceptions=True)
            last[n] = third.started[0][1] - max([gained_at, *first.at])
        return last[0], last[1]

    among, behind = virtually(run)
    assert among == pytest.approx(0.1 + LATE_S, abs=0.02), "after those who had stayed"
    assert behind == pytest.approx(0.1, abs=0.02), "a period late, as the one that is gone may have gone on"


def _that_moves(concurrency: int | None = None) -> tuple[LimitSpec, int, int]:
    """A limit whose home is a partition that is added when there are to be 64, where it is until then, and that one."""
    limits = (LimitSpec(f"crm-{n}", "q", 10.0, concurrency) for n in range(50))
    return next((limit, home_of(limit), new) for limit in limits if (new := homes(limit, None, 64)[0]) >= 8)


def test_a_home_on_a_partition_that_was_added_begins_when_what_stayed_at_the_old_one_is_over() -> None:
    limit, old, new = _that_moves()

    async def run() -> list[float]:
        worker = Worker(limit).gain(old)
        calls = [asyncio.create_task(worker.call(limit, order=n)) for n in range(40)]
        await asyncio.sleep(0.95)
        worker.leave(old, for_s=3.0)
        worker.shares.spread_over(64, 3.0)
        await worker.gain(new).call(limit, home=new)
        await asyncio.gather(*calls, return_exceptions=True)
        return worker.at

    at = virtually(run)
    assert at == sorted(at)
    assert at[-1] == pytest.approx(0.95 + 3.0 + 0.1, abs=0.02)


def test_while_all_is_given_up_nobody_gets_a_budget_that_was_not_in_use() -> None:
    async def run() -> None:
        worker = Worker(MINUTELY).gain(home_of(MINUTELY))
        worker.shares.close(5.0, lambda partition, offset, is_in: True)
        with pytest.raises(ShareLost):
            await worker.call(MINUTELY)

    virtually(run)


def test_a_home_on_a_partition_that_was_added_has_no_place_that_a_call_of_the_old_one_still_holds() -> None:
    limit, old, new = _that_moves(concurrency=1)

    async def run() -> float:
        worker = Worker(limit).gain(old)
        call = asyncio.create_task(worker.call(limit, takes_s=50.0))
        await asyncio.sleep(0.95)
        told = worker.leave(old)
        worker.shares.spread_over(64, 3.0)
        worker.shares.begin({old: told})
        await worker.gain(old, told).gain(new).call(limit, home=new)
        await call
        return worker.at[-1]

    assert virtually(run) > 50
