"""What the summary of an enrichment says of its runs: what is not known is never told as nothing.

Responsible for: `cli/enriching/tally.py`.
Must never: run an enrichment.
Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.cli.enriching.tally import Tally, facts
from anabranch.messages import RunError, RunResponse, TotalUsage, Usage


def told(*costs: float | None, discarded: float | None = 0.0) -> dict[str, str]:
    """The summary of completed runs that cost so much each, in dollars; None: nobody knows."""
    tally = Tally()
    for cost in costs:
        usage = TotalUsage(10, 10, cost_usd=cost, discarded=Usage(cost_usd=discarded))
        tally.add(RunResponse("r", "analyst", "rev", "completed", usage=usage, turns=1))
    return dict(facts(tally, 1.0))


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ((0.25, 0.5), "$0.7500"),
        ((None, None), "unknown"),
        ((None, 0.0), "unknown"),
        ((0.25, None, None), "$0.2500, and of 2 runs it is not known"),
    ],
)
def test_a_sum_is_told_of_what_is_known_alone(costs: tuple[float | None, ...], said: str) -> None:
    assert told(*costs)["cost"] == said


def test_what_was_thrown_away_without_a_price_makes_the_sum_a_part() -> None:
    assert told(0.25, discarded=None)["cost"] == "$0.2500, and of 1 run it is not known"


def test_of_runs_that_asked_no_model_only_their_end_is_told() -> None:
    tally = Tally()
    tally.add(RunResponse("r", None, None, "failed", error=RunError("unknown_agent", "there is no agent 'x'")))
    assert dict(facts(tally, 1.0)) == {"completed": "0", "failed": "1 (unknown_agent: 1)", "skipped": "0"}


def test_runs_that_cost_nothing_are_told_without_a_cost() -> None:
    assert "cost" not in told(0.0, 0.0)


@pytest.mark.parametrize(
    ("sequential_s", "said"),
    [(0.2, "0.20 s"), (1.4, "1.40 s"), (1.6, "1.60 s, 2 times as long"), (90.0, "90.0 s, 90 times as long")],
)
def test_one_run_after_another_is_compared_where_that_would_have_taken_longer(sequential_s: float, said: str) -> None:
    assert dict(facts(Tally(completed=1, turns=1, sequential_s=sequential_s), 1.0))["one after another"] == said
