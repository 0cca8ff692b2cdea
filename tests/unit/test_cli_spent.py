"""What was used adds up to what was paid for: once each, whoever it is of, in bounded memory.

Responsible for: `cli/spent.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.cli.spent import UNKNOWN, By, Ledger, Row

USED = m.Usage(10, 2, 30, 4, 0.5)


def by_agent(whose: Any, used: dict[str, Any]) -> str:
    return str(whose.agent)


def by_tenant(whose: Any, used: dict[str, Any]) -> str:
    return str(whose.tenant)


def opened(run_id: str, agent: str = "a", tenant: str | None = "acme", number: int = 0) -> e.RunRequested:
    opens = b.opening(request=b.request(run_id=run_id, agent=agent, tenant=tenant))
    return b.requested(run_id, opens=opens, offset=number)


def counted(*events: e.Event, by: By = by_agent, at: float = 100.0, **settings: Any) -> list[Row]:
    ledger = Ledger(by, **settings)
    for offset, event in enumerate(events):
        ledger.take(b.record(event, offset, at))
    return ledger.rows


def test_all_replies_count_and_what_was_thrown_away_apart() -> None:
    (row,) = counted(
        opened("r"), b.discarded(usage=USED), b.calls(usage=USED), b.returned(), b.replied(turn=2, usage=USED)
    )
    assert (row.name, row.runs, row.replies, row.prompt, row.output_tokens) == ("a", 1, 3, 132, 6)
    assert (row.cost_usd, row.thrown_away, row.thrown_away_usd) == (1.5, 1, 0.5)


def test_attempts_that_cost_nothing_are_no_replies() -> None:
    names = replace(b.discarded(), usage=m.Usage())
    (row,) = counted(opened("r"), names, b.replied(usage=replace(USED, cost_usd=None)))
    assert (row.runs, row.replies, row.thrown_away, row.cost_usd) == (1, 1, 0, None)


def test_a_copy_counts_once_and_another_attempt_for_itself() -> None:
    """A reply that came second was paid for, although the fold has no use for it."""
    reply = b.replied(usage=USED)
    (row,) = counted(opened("r"), opened("r"), reply, reply, replace(reply, attempt="another"))
    assert (row.runs, row.replies, row.cost_usd) == (1, 2, 1.0)


def test_tenants_are_told_apart_the_dearest_first() -> None:
    events: list[e.Event] = [
        opened("r1", tenant="one"),
        opened("r2", tenant="two", number=1),
        opened("r3", tenant=None, number=2),
    ]
    events += [b.replied(run_id=f"r{n}", life=str(n - 1), usage=replace(USED, cost_usd=float(n))) for n in (1, 2, 3)]
    assert [(row.name, row.cost_usd) for row in counted(*events, by=by_tenant)] == [
        ("(none)", 3.0),
        ("two", 2.0),
        ("one", 1.0),
    ]


def test_of_a_run_that_was_opened_before_the_log_begins_nobody_knows_whose_it_is() -> None:
    (row,) = counted(b.replied(usage=USED))
    assert (row.name, row.runs, row.replies) == (UNKNOWN, 0, 1)


def test_only_what_is_young_enough_counts_but_whose_it_is_is_known() -> None:
    ledger = Ledger(by_agent, since=50.0)
    ledger.take(b.record(opened("r"), 0, at=10.0))
    ledger.take(b.record(b.calls(usage=USED), 1, at=20.0))
    ledger.take(b.record(b.replied(turn=2, usage=USED), 2, at=60.0))
    (row,) = ledger.rows
    assert (row.name, row.runs, row.replies) == ("a", 0, 1)


@pytest.mark.parametrize(("costs", "sum_of"), [([None], None), ([None, 1.0], 1.0), ([1.0, None], 1.0)])
def test_a_cost_that_nobody_knows_is_told_apart(costs: list[Any], sum_of: Any) -> None:
    events = [replace(b.replied(usage=replace(USED, cost_usd=cost)), attempt=f"a{n}") for n, cost in enumerate(costs)]
    (row,) = counted(opened("r"), *events)
    assert (row.cost_usd, row.unpriced) == (sum_of, 1)


def test_memory_is_bounded_and_runs_that_are_over_are_forgotten_first() -> None:
    ledger = Ledger(by_agent, keep=10)
    ledger.take(b.record(opened("open"), 0))
    for number in range(1, 100):
        ledger.take(b.record(opened(f"r{number}", number=number), number))
        ledger.take(b.record(b.replied(run_id=f"r{number}", life=str(number), usage=USED), number))
    assert len(ledger._runs) == 10
    ledger.take(b.record(b.replied(run_id="open", usage=USED), 100))
    assert [(row.name, row.replies) for row in ledger.rows] == [("a", 100)]


def test_what_cannot_be_read_is_nobodys() -> None:
    broken = replace(b.record(opened("r"), 0), value=b"rubbish")
    ledger = Ledger(by_agent)
    ledger.take(broken)
    ledger.take(b.record(b.replied(usage=USED), 1))
    assert [row.name for row in ledger.rows] == [UNKNOWN]
