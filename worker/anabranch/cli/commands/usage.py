"""`anabranch usage`: what was used and paid for, by agent, tenant or model.

Responsible for the command line, its table and the reading; `spent.py` counts. It reads the log once, and
writes nothing. Memory is bounded, however long the log is.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from anabranch.cli import frame, output
from anabranch.wording import counted

if TYPE_CHECKING:
    from anabranch.cli.spent import By, Ledger, Row


@click.command()
@click.option("--by", type=click.Choice(("agent", "tenant", "model")), default="agent", show_default=True)
@click.option("--since", type=frame.Duration(), metavar="DURATION", help="Only what was used in the last 1d, 90m ...")
@frame.options(app=True, listing=True)
def usage(common: frame.Frame, by: str, since: str | None) -> None:
    """Add up tokens and dollars of all model calls, also of those that came to nothing.

    Reads the whole log of the namespace, which goes back 7 days unless its retention was changed.
    """
    from anabranch.units import duration

    begins = time.time() - duration(since) if since is not None else 0.0
    rows = frame.run_async(_counted(common, by, begins)).rows
    if common.as_json:
        output.print_json([{by: row.name, **_figures(row)} for row in rows])
        return
    columns = (by, ">runs", ">replies", ">tokens in", ">cached", ">out", ">thrown away", ">cost")
    when = f" in the last {since}" if since is not None else ""
    empty = f"nothing was used in namespace {common.namespace().name}{when}"
    output.print_table(columns, map(_cells, rows), empty=empty)


async def _counted(common: frame.Frame, by: str, since: float) -> Ledger:
    from anabranch.cli.reading import whole
    from anabranch.cli.spent import Ledger
    from anabranch.errors import WireError

    broker, namespace, signer = common.broker(), common.namespace(), common.verifier()
    ledger = Ledger(await _rows_by(common, by), since)
    async for record in whole(broker, namespace.log):
        try:
            signer.check(record)
        except WireError:
            continue  # nobody of ours has written it
        ledger.take(record)
    return ledger


async def _rows_by(common: frame.Frame, by: str) -> By:
    """The registry tells which model an agent's revision has, where the reply does not say that it was another."""
    from anabranch.cli.spent import UNKNOWN
    from anabranch.registry import snapshot

    if by == "agent":
        return lambda whose, used: whose.agent
    if by == "tenant":
        return lambda whose, used: whose.tenant
    registry = await snapshot(common.broker(), common.namespace())

    def model(whose: Any, used: dict[str, Any]) -> str:
        spec = registry.agent(whose.agent, whose.revision)
        return str(used.get("model") or (spec.model if spec is not None else UNKNOWN))

    return model


def _figures(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "name"}


def _cells(row: Row) -> tuple[object, ...]:
    from anabranch.cli.figures import dollars

    cached = f"{100 * row.cache_read_input_tokens / row.prompt:.0f} %" if row.prompt else "-"
    lost = f"{row.thrown_away:,} ({dollars(row.thrown_away_usd)})" if row.thrown_away else "-"
    cost = dollars(row.cost_usd)
    if row.unpriced and row.cost_usd is not None:
        cost += f" and {counted(row.unpriced, 'reply', 'replies')} without a price"
    return (
        row.name,
        f"{row.runs:,}",
        f"{row.replies:,}",
        f"{row.prompt:,}",
        cached,
        f"{row.output_tokens:,}",
        lost,
        cost,
    )
