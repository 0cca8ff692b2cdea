"""A model's limits, on a real Kafka, against a server that enforces them: kept, reached, and no run fails of them.

Responsible for: what the server counted with one agent worker and with two, with declared limits and with none, while
workers come and go. Periods are shortened: what a minute is to the provider is a few seconds here.
Must never: decide by our own counters.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import PARTITIONS, Fleet, fleet, settings_for

from anabranch import App
from anabranch.agent.model.budget import BURST_S
from anabranch.config import ModelLimits
from anabranch.testing import Answer, RateLimits, Reply
from anabranch.testing.quota import Meter
from anabranch.topics import partition_of

app = App("limited")
app.agent("runner", model="scripted")

RUNS = 200
PERIOD_S = 4.0
CALLS = 80
"""What a period lets through, in calls: few enough for a machine that is busy with other things to make them."""
BUNCHED = 0.25
"""What a busy machine may hold up and then deliver at once, as a part of the limit."""
REACHED = 0.75
"""What it has to reach of the limit all the same: virtual time shows that nothing else holds it up."""
INPUT, OUTPUT = 100, 50
"""What each reply says that it has used, in tokens."""


def answer(request: dict[str, Any]) -> Answer:
    return Reply(content=["Done."], latency_s=0.1, usage={"input_tokens": INPUT, "output_tokens": OUTPUT})


def declared(limits: RateLimits) -> ModelLimits:
    """The server's limits, as a user declares them."""
    requests, input_tokens, output_tokens = (
        limit and limit * 60 / limits.period_s for limit in (limits.requests, limits.input_tokens, limits.output_tokens)
    )
    return ModelLimits(requests, input_tokens, output_tokens)


def balanced(count: int) -> list[str]:
    """Run ids, as many for each partition: a share is as large as the part of the work."""
    ids: dict[int, list[str]] = {partition: [] for partition in range(PARTITIONS)}
    number = 0
    while any(len(found) < count // PARTITIONS for found in ids.values()):
        ids[partition_of(f"run-{number}", PARTITIONS)].append(f"run-{number}")
        number += 1
    return [run_id for found in ids.values() for run_id in found[: count // PARTITIONS]]


async def all_answered(running: Fleet, count: int = RUNS) -> Counter[str]:
    answers = await asyncio.gather(
        *(running.ask("runner", within_s=90, run_id=run_id, deadline=80) for run_id in balanced(count))
    )
    return Counter(answer.status for answer in answers)


def counted_of(running: Fleet, kind: str) -> list[tuple[float, int]]:
    return [(entry.at, getattr(entry, kind)) for entry in running.model.metered]


def most_in_a_period(running: Fleet, kind: str) -> int:
    """The most that any window of a period holds of what the server counted."""
    counted = counted_of(running, kind)
    return max(sum(n for when, n in counted if begin <= when < begin + PERIOD_S) for begin, _ in counted)


def rate_of(running: Fleet, kind: str) -> float:
    """A second, while all have work: not before the workers know their share, nor when the first one has finished."""
    counted = [(at, n) for at, n in counted_of(running, kind) if n]
    steady = counted[len(counted) // 5 : -len(counted) // 10]
    return sum(n for _, n in steady[1:]) / (steady[-1][0] - steady[0][0])


LIMITS = {
    "requests": RateLimits(requests=CALLS, period_s=PERIOD_S),
    "output_tokens": RateLimits(requests=5 * CALLS, output_tokens=CALLS * OUTPUT, period_s=PERIOD_S),
    "input_tokens": RateLimits(requests=5 * CALLS, input_tokens=CALLS * INPUT, period_s=PERIOD_S),
}


@pytest.mark.parametrize(("kind", "agents"), [("requests", 2), ("output_tokens", 1), ("input_tokens", 2)])
async def test_a_declared_limit_is_kept_and_reached_and_provokes_no_refusal(
    kafka: str, namespace: str, kind: str, agents: int
) -> None:
    """Above it: what is kept for a quarter of a second, three calls a worker, and what arrives or ends bunched.

    `tests/unit/test_model_limits.py` is exact, for nothing there is late.
    """
    limits, limit = LIMITS[kind], getattr(LIMITS[kind], kind)
    settings = replace(settings_for(kafka, namespace), models={"scripted": declared(limits)})
    async with fleet(app, answer, settings, agents=agents, limits=limits) as running:
        assert await all_answered(running) == {"completed": RUNS}
        assert most_in_a_period(running, kind) <= limit * (1 + BURST_S / PERIOD_S + 3 * agents / CALLS + BUNCHED)
        assert rate_of(running, kind) >= REACHED * limit / PERIOD_S
        assert running.model.limited <= RUNS * BUNCHED / 10


async def test_without_a_declared_limit_the_providers_word_keeps_the_fleet_below_it(kafka: str, namespace: str) -> None:
    """The first calls are too many, for nobody knows better; no run fails of it, and most are accepted at once."""
    limits = RateLimits(requests=CALLS, period_s=PERIOD_S)
    async with fleet(app, answer, settings_for(kafka, namespace), agents=2, limits=limits) as running:
        assert await all_answered(running) == {"completed": RUNS}
        assert running.model.limited <= RUNS


async def test_refusals_that_name_no_limit_slow_the_fleet_down_and_fail_no_run(kafka: str, namespace: str) -> None:
    """A provider that says no more than 429 and how long to wait."""
    gate = RateLimits(requests=CALLS, period_s=PERIOD_S)
    meter, loop = Meter(gate, keep=1), asyncio.get_running_loop()

    def script(request: dict[str, Any]) -> Answer:
        if (refused := meter.refuses("scripted", 1, loop.time())) is not None:
            return Reply.error(429, retry_after=refused[1])
        meter.count("scripted", loop.time(), requests=1)
        return answer(request)

    async with fleet(app, script, settings_for(kafka, namespace), agents=1) as running:
        assert await all_answered(running) == {"completed": RUNS}
        assert meter.refused <= 2 * RUNS
