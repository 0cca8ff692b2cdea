"""What `python -m tests.chaos` prints: counts of faults, of repeats by cause, and what is wrong.

Responsible for: the words and tables. Must never: judge. Called by: `__main__.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tests.chaos.explain import Repeat, executions, model_repeats, tool_repeats, turns, unknowns
from tests.chaos.ledger import Fault, Ledger
from tests.chaos.serial import by_key, overlaps

SHOWN = 10


def show(console: Console, ledger: Ledger, violations: dict[str, list[str]]) -> None:
    """All of it; the seed in the first line and again beside what is wrong."""
    console.print(_faults(ledger))
    console.print(_work(ledger))
    for invariant, found in violations.items():
        console.print(f"[red]broken[/] {invariant.replace('_', ' ')}: {len(found)}")
        for text in found[:SHOWN]:
            console.print(f"    {text}", markup=False, soft_wrap=True)
    if violations:
        console.print(f"seed {ledger.seed}: {len(violations)} promises broken")
    else:
        console.print(f"seed {ledger.seed}: every promise was kept")


def _faults(ledger: Ledger) -> Table:
    table = Table("fault", "count", title=f"faults (seed {ledger.seed})", title_justify="left")
    for what, count in sorted(Counter(map(_what, ledger.faults)).items()):
        table.add_row(what, str(count))
    table.add_row("all", str(len(ledger.faults)))
    return table


def _work(ledger: Ledger) -> Table:
    table = Table("done", "count", "again", "by cause", title="work", title_justify="left")
    runs, answers = len(ledger.submitted), len(ledger.answers)
    table.add_row("runs answered", f"{len({a.run for a in ledger.answers})} of {runs}", str(max(0, answers - runs)), "")
    calls, tools, lost = model_repeats(ledger), tool_repeats(ledger), unknowns(ledger)
    table.add_row("model calls", str(len(turns(ledger))), str(len(calls)), _causes(calls))
    table.add_row("tool calls", str(len(executions(ledger))), str(len(tools)), _causes(tools))
    table.add_row("in order", *_in_order(ledger))
    table.add_row("told as unknown", str(len(lost)), "", _causes(lost))
    table.add_row("worker processes", str(len(ledger.lives)), "", "")
    return table


def _what(fault: Fault) -> str:
    """Its kind, and the role of the worker that it hit."""
    return f"{fault.kind} ({fault.worker.partition('-')[0]})" if fault.worker is not None else fault.kind


def _in_order(ledger: Ledger) -> tuple[str, str, str]:
    """Of the calls with a serial key: how many there were, and the overlaps that nobody can prevent."""
    calls = {done.call_id for each in by_key(ledger).values() for done in each}
    found = Counter(overlap.cause or "NONE" for overlap in overlaps(ledger))
    return str(len(calls)), "", ", ".join(f"overlap by {cause} {count}" for cause, count in found.most_common())


def _causes(repeats: Iterable[Repeat]) -> str:
    found = Counter(repeat.cause or "NONE" for repeat in repeats)
    return ", ".join(f"{cause} {count}" for cause, count in found.most_common())
