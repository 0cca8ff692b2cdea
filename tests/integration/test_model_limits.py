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
from anabranch.agent.budget import BURST_S
from anabranch.config import ModelLimits
from anabranch.testing import Answer, RateLimits, Reply
from anabranch.topics import partition_of

app = App("limited")
app.agent("runner", model="scripted")

RUNS = 200
PERIOD_S = 2.0
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
    """A second, from the first call to the last."""
    counted = [(at, n) for at, n in counted_of(running, kind) if n]
    return sum(n for _, n in counted[1:]) / (counted[-1][0] - counted[0][0])


LIMITS = {
    "requests": RateLimits(requests=80, period_s=PERIOD_S),
    "output_tokens": RateLimits(requests=400, output_tokens=80 * OUTPUT, period_s=PERIOD_S),
    "input_tokens": RateLimits(requests=400, input_tokens=80 * INPUT, period_s=PERIOD_S),
}


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize("kind", LIMITS)
async def test_a_declared_limit_is_kept_and_reached_and_provokes_no_refusal(
    kafka: str, namespace: str, kind: str, agents: int
) -> None:
    """More than the limit in a period: what a fleet keeps for a quarter of a second, and two calls a worker."""
    limits, limit = LIMITS[kind], getattr(LIMITS[kind], kind)
    settings = replace(settings_for(kafka, namespace), models={"scripted": declared(limits)})
    async with fleet(app, answer, settings, agents=agents, limits=limits) as running:
        assert await all_answered(running) == {"completed": RUNS}
        call = limit / 80
        assert most_in_a_period(running, kind) <= limit * (1 + BURST_S / PERIOD_S) + 2 * agents * call
        assert rate_of(running, kind) >= 0.9 * limit / PERIOD_S
        assert running.model.limited == 0
        assert running.model.calls == RUNS
