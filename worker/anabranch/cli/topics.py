"""`anabranch topics check APP` and `anabranch topics apply APP`: are the topics what the App needs?

What a topic should be is in `topics.py`, what differs is judged in `kafka/comparison.py`; here it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from anabranch.cli import frame

if TYPE_CHECKING:
    from anabranch.kafka.seam import Lack
    from anabranch.topics import TopicSpec


@click.group(cls=frame.Commands)
def topics() -> None:
    """Compare the topics of a namespace with what an App needs; create and alter them."""


@topics.command()
@click.argument("reference", metavar="APP")
@frame.options(listing=True)
def check(common: frame.Frame, reference: str) -> int:
    """Show what differs from what APP needs. Exits 1 if records could be lost, or a topic is missing."""
    specs = _specs(common, reference)
    lacks = frame.run_async(common.broker().lacks(specs))
    if common.as_json:
        frame.print_json(lacks)
    elif lacks:
        _show(lacks)
    else:
        click.echo(f"all {len(specs)} topics are as they should be")
    return _status(lacks)


@topics.command()
@click.argument("reference", metavar="APP")
@frame.options(listing=True)
def apply(common: frame.Frame, reference: str) -> int:
    """Create the topics that APP needs, and alter those that differ. It never deletes anything."""
    specs, broker = _specs(common, reference), common.broker()

    async def applied() -> tuple[list[str], list[Lack]]:
        return await broker.apply(specs), await broker.lacks(specs)

    done, lacks = frame.run_async(applied())
    if common.as_json:
        frame.print_json({"done": done, "lacks": lacks})
        return _status(lacks)
    for line in done:
        click.echo(line)
    if lacks:
        _show(lacks)
    elif not done:
        click.echo(f"all {len(specs)} topics are as they should be")
    return _status(lacks)


def _specs(common: frame.Frame, reference: str) -> list[TopicSpec]:
    app = common.app(reference)
    assert app is not None, "the argument is required"
    return common.namespace(app).specs(app.queues(), common.settings.kafka.partitions)


def _show(lacks: list[Lack]) -> None:
    rows = [(lack.topic, "danger" if lack.dangerous else "note", lack.message) for lack in lacks]
    frame.print_table(("topic", "", "what differs"), rows)


def _status(lacks: list[Lack]) -> int:
    return frame.FAILED if any(lack.dangerous for lack in lacks) else 0
