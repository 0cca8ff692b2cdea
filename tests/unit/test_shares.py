"""The shares of a worker: what a gained home begins with, what a lost one leaves, and who may start meanwhile.

Responsible for: `tools/shares.py`, in virtual time; homes that are lost and come back within seconds are in
`test_shares_coming_back.py`. Must never: run a broker or wait for real time.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from tests.support.sharing import EPOCH, MINUTELY, PLACES, TENANTS, Worker, home_of
from tests.support.virtual import now, tick, virtually

from anabranch.homes import homes
from anabranch.limits import LATE_S, Pacer, ShareLost
from anabranch.specs import LimitSpec
from anabranch.tools.marks import ShareMark
from anabranch.tools.shares import PAUSE_MAX_S, UNNAMED


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch)


def test_a_home_that_nobody_has_left_starts_a_period_late() -> None:
    async def run() -> list[float]:
        worker = Worker(MINUTELY).gain(home_of(MINUTELY))
        await asyncio.gather(worker.call(MINUTELY), worker.call(MINUTELY, order=1))
        return worker.at

    assert virtually(run) == [60.0, 120.0]


def test_a_queue_that_nobody_had_starts_at_once_and_no_faster_than_it_may() -> None:
    limit = LimitSpec("crm", "q", 10.0)

    async def run() -> list[float]:
        worker = Worker(limit, MINUTELY)
        worker.shares.begin({})
        for home in {home_of(limit), home_of(MINUTELY)}:
            worker.gain(home)
        calls = [worker.call(limit, order=n) for n in range(20)]
        await asyncio.gather(worker.call(MINUTELY), worker.call(MINUTELY, order=1), *calls)
        return worker.at

    at = virtually(run)
    assert at[-1] == 60.0
    assert at[:2] == [0.0, 0.0], "the first one of each"
    assert at[2:-1] == pytest.approx([n / 10 for n in range(1, 20)], abs=0.01)


def test_a_home_that_was_left_goes_on_where_it_was() -> None:
    async def run() -> list[float]:
        home = home_of(MINUTELY)
        giver = Worker(MINUTELY).gain(home)
        await giver.call(MINUTELY)
        await asyncio.sleep(10.0)
        taker = Worker(MINUTELY).gain(home, giver.leave(home))
        await asyncio.gather(taker.call(MINUTELY), taker.call(MINUTELY, order=1))
        return giver.at + taker.at

    assert virtually(run) == [60.0, 120.0 + LATE_S, 180.0 + LATE_S]


def test_a_home_that_was_left_unused_is_used_at_once() -> None:
    async def run() -> list[float]:
        home = home_of(MINUTELY)
        giver = Worker(MINUTELY).gain(home)
        await asyncio.sleep(600.0)
        taker = Worker(MINUTELY).gain(home, giver.leave(home))
        await taker.call(MINUTELY)
        return taker.at

    assert virtually(run) == [600.0]


def test_nothing_starts_before_a_commit_of_ones_own_stands() -> None:
    async def run() -> list[float]:
        worker = Worker(PLACES)
        worker.shares.gain(home_of(PLACES), (ShareMark(UNNAMED, int(EPOCH * 1000) - 60_000),))
        task = asyncio.create_task(worker.call(PLACES))
        await asyncio.sleep(3.05)
        worker.shares.may_start(home_of(PLACES))
        await task
        return worker.at

    assert virtually(run) == [3.05]


def test_who_leaves_before_it_began_passes_on_what_it_was_told() -> None:
    async def run() -> None:
        home = home_of(MINUTELY)
        giver, between = Worker(MINUTELY).gain(home), Worker(MINUTELY)
        await giver.call(MINUTELY)
        told = giver.leave(home)
        between.shares.gain(home, told)
        passed_on = between.leave(home)
        assert replace(passed_on[0]) == told[0]

    virtually(run)


def test_what_stays_in_the_line_starts_here_and_the_rest_with_the_next_owner() -> None:
    async def run() -> tuple[list[float], list[float]]:
        limit = LimitSpec("crm", "q", 10.0)
        home = home_of(limit)
        giver = Worker(limit).gain(home)
        calls = [asyncio.create_task(giver.call(limit, order=n)) for n in range(40)]
        await asyncio.sleep(1.05)
        taker = Worker(limit)
        taker.gain(home, giver.leave(home, for_s=1.0))
        await asyncio.gather(*(taker.call(limit, order=n) for n in range(20, 30)))
        await asyncio.gather(*calls, return_exceptions=True)
        return giver.at, taker.at

    given, taken = virtually(run)
    assert given == [round(0.1 * n, 2) for n in range(1, 21)]
    assert taken == pytest.approx([0.1 * n + LATE_S for n in range(21, 31)], abs=0.02)


def test_a_home_whose_last_commit_is_not_known_to_stand_starts_nothing_more() -> None:
    async def run() -> list[float]:
        limit = LimitSpec("crm", "q", 10.0)
        giver = Worker(limit).gain(home_of(limit))
        calls = [asyncio.create_task(giver.call(limit, order=n)) for n in range(9)]
        await asyncio.sleep(0.15)
        giver.shares.close(5.0, lambda partition, offset, is_in: True)
        giver.shares.leave([])
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(one, ShareLost) for one in done) == 8
        return giver.at

    assert virtually(run) == [0.1]


def test_places_of_calls_that_go_on_are_not_the_next_owners() -> None:
    async def run() -> list[float]:
        home = home_of(PLACES)
        giver = Worker(PLACES).gain(home)
        calls = [asyncio.create_task(giver.call(PLACES, takes_s=50.0, order=n)) for n in range(3)]
        await asyncio.sleep(1.0)
        told = giver.leave(home)
        assert (told[0].places, told[0].until) == (3, int(EPOCH) + 61)
        taker = Worker(PLACES).gain(home, told)
        await asyncio.gather(*(taker.call(PLACES, takes_s=100.0, order=n) for n in range(2)), *calls)
        return taker.at

    first, second = virtually(run)
    assert (round(first), round(second)) == (1, 61)


def test_places_that_are_held_are_carried_on_by_each_owner() -> None:
    async def run() -> tuple[ShareMark, ...]:
        home = home_of(PLACES)
        held = ShareMark("ab", 0, 3, int(EPOCH) + 500)
        between = Worker(PLACES).gain(home, (held,))
        assert between.shares.told(home) == (held,), "also in each commit on the way"
        await asyncio.sleep(1.0)
        return between.leave(home)

    assert virtually(run)[0].places == 3


def test_a_home_that_comes_back_counts_its_own_calls_once() -> None:
    async def run() -> list[float]:
        home = home_of(PLACES)
        worker = Worker(PLACES).gain(home)
        calls = [asyncio.create_task(worker.call(PLACES, takes_s=5.0, order=n)) for n in range(3)]
        await asyncio.sleep(1.0)
        worker.gain(home, worker.leave(home))
        await asyncio.gather(*calls, worker.call(PLACES, order=9))
        return worker.at

    assert round(virtually(run)[-1]) == 1, "there was a fourth place"


def test_each_tenant_has_a_budget_of_its_own() -> None:
    async def run() -> list[float]:
        worker = Worker(TENANTS)
        for partition in range(8):
            worker.gain(partition)
        tenants = ("acme", "globex", None)
        await asyncio.gather(*(worker.call(TENANTS, tenant, order=n) for tenant in tenants for n in range(3)))
        return worker.at

    assert virtually(run) == [1.0] * 3 + [2.0] * 3 + [3.0] * 3


def test_a_pause_is_one_tenants() -> None:
    async def run() -> list[float]:
        worker = Worker(TENANTS)
        for partition in range(8):
            worker.gain(partition)
        await asyncio.gather(*(worker.call(TENANTS, tenant) for tenant in ("acme", "globex")))
        worker.shares.pause("api", "acme", 30.0)
        await asyncio.gather(*(worker.call(TENANTS, tenant) for tenant in ("acme", "globex")))
        return worker.at

    assert virtually(run) == [1.0, 1.0, 2.0, 31.0]


def test_a_pause_holds_for_homes_that_had_no_call_yet() -> None:
    async def run() -> list[float]:
        limit = LimitSpec("crm", "q", 20.0)
        worker = Worker(limit)
        for partition in homes(limit, None, 8):
            worker.gain(partition)
        await worker.call(limit)
        worker.shares.pause("crm", None, 30.0)
        pacer = worker.shares.pacer("crm", None, homes(limit, None, 8)[1])
        async with pacer.inside(pacer.join(0, 60.0, lambda: math.inf)) as turn:
            await turn.start()
            return [*worker.at, now()]

    assert virtually(run) == pytest.approx([0.1, 30.1])


def test_a_pause_for_ever_is_one_of_a_day_that_a_commit_can_name() -> None:
    async def run() -> float:
        home = home_of(MINUTELY)
        worker = Worker(MINUTELY).gain(home)
        await worker.call(MINUTELY)
        worker.shares.pause("mail", None, 1e306)
        return worker.leave(home)[0].due_ms / 1000 - EPOCH

    assert virtually(run) == pytest.approx(60.0 + PAUSE_MAX_S, abs=1.0)


def test_a_crowd_of_tenants_is_not_looked_through_for_each_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> int:
        worker, looked = Worker(TENANTS), 0

        def is_spent(_: Pacer) -> bool:
            nonlocal looked
            looked += 1
            return False

        monkeypatch.setattr(Pacer, "is_spent", property(is_spent))
        for partition in range(8):
            worker.gain(partition)
        for number in range(4000):
            worker.shares.pacer("api", f"tenant-{number}", home_of(TENANTS, f"tenant-{number}"))
        return looked

    assert virtually(run) < 2 * 4000


def test_tenants_that_are_quiet_cost_no_memory() -> None:
    async def run() -> int:
        worker = Worker(TENANTS)
        for partition in range(8):
            worker.gain(partition)
        for number in range(1000):
            await worker.call(TENANTS, f"tenant-{number}")
            await asyncio.sleep(1.0)
        return len(worker.shares._pacers)

    assert virtually(run) < 300


def test_a_commit_that_cannot_name_all_says_nothing_of_the_others() -> None:
    async def run() -> tuple[ShareMark, ...]:
        limit, worker = replace(TENANTS, concurrency=1), Worker(replace(TENANTS, concurrency=1))
        for partition in range(8):
            worker.gain(partition)
        tenants = [name for n in range(400) if home_of(limit, name := f"tenant-{n}") == 3]
        await asyncio.gather(*(worker.call(limit, tenant) for tenant in tenants))
        return worker.leave(3)

    told = virtually(run)
    assert 0 < len(told) <= 24
    assert UNNAMED not in {mark.budget for mark in told}


def test_a_home_that_is_anothers_takes_no_calls() -> None:
    async def run() -> None:
        with pytest.raises(ShareLost):
            await Worker(MINUTELY).call(MINUTELY)

    virtually(run)


def test_nothing_starts_when_the_session_may_be_lost() -> None:
    async def run() -> list[float]:
        worker = Worker(PLACES).gain(home_of(PLACES))
        worker.alive = False
        task = asyncio.create_task(worker.call(PLACES))
        await asyncio.sleep(5.0)
        worker.alive = True
        await task
        return worker.at

    assert virtually(run)[0] >= 5.0
