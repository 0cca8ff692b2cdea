"""`anabranch topics check`, `apply` and `acls`: are the topics what the App needs, and who must be allowed what there?

What a topic should be is in `topics.py`, what differs is judged in `kafka/comparison.py`, what a role needs is in
`access.py`; here it is shown.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from anabranch.cli import frame, output

if TYPE_CHECKING:
    from anabranch.kafka.seam import Lack
    from anabranch.topics import TopicSpec


@click.group(cls=frame.Commands)
def topics() -> None:
    """Compare the topics of a namespace with what an App needs; create and alter them; say who needs which access."""


@topics.command()
@click.argument("reference", metavar="APP")
@frame.options(listing=True)
def check(common: frame.Frame, reference: str) -> int:
    """Show what differs from what APP needs. Exits 1 if records could be lost, or a topic is missing."""
    specs = _specs(common, reference)
    lacks = frame.run_async(common.broker().lacks(specs))
    if common.as_json:
        output.print_json(lacks)
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
        output.print_json({"done": done, "lacks": lacks})
        return _status(lacks)
    for line in done:
        click.echo(line)
    if lacks:
        _show(lacks)
    elif not done:
        click.echo(f"all {len(specs)} topics are as they should be")
    return _status(lacks)


@topics.command()
@click.argument("reference", metavar="APP")
@click.option("--agent", metavar="PRINCIPAL", help="Who runs agent workers, such as User:agents.")
@click.option("--tool", metavar="PRINCIPAL", help="Who runs tool workers.")
@click.option("--client", metavar="PRINCIPAL", help="Who submits runs.")
@click.option("--reader", metavar="PRINCIPAL", help="Who looks at runs, registry and dead letters.")
@click.option("--operator", metavar="PRINCIPAL", help="Who also cancels runs and replays dead letters.")
@click.option("--admin", metavar="PRINCIPAL", help="Who creates and alters topics.")
@click.option("--queue", "queues", multiple=True, metavar="Q", help="Queues of --tool, unless it serves all of APP.")
@frame.options(listing=True)
def acls(common: frame.Frame, reference: str, queues: tuple[str, ...], **principals: str | None) -> int:
    """Print what each role must be allowed in Kafka, exactly, as commands of kafka-acls.

    Without principals it prints those of all roles, for users named after them. It changes nothing.
    """
    from anabranch.security.access import ROLES, command, grants

    app = common.app(reference)
    if unknown := set(queues) - set(app.queues()):
        raise click.BadParameter(f"APP has no queue {sorted(unknown)[0]!r}; it has {', '.join(app.queues())}")
    namespace, where = common.namespace(app), common.settings.kafka.bootstrap
    given = {role: who for role in ROLES if (who := principals[role])} or {role: f"User:{role}" for role in ROLES}
    needed = {role: grants(role, namespace, queues or app.queues()) for role in given}
    if common.as_json:
        rows = [{"role": role, "principal": given[role], **asdict(grant)} for role in needed for grant in needed[role]]
        output.print_json(rows)
        return 0
    for role, of_role in needed.items():
        click.echo(f"# {role}: {ROLES[role]}")
        for grant in of_role:
            click.echo(command(grant, given[role], where))
    return 0


def _specs(common: frame.Frame, reference: str) -> list[TopicSpec]:
    app = common.app(reference)
    return common.namespace(app).specs(app.queues(), common.settings.kafka.partitions)


def _show(lacks: list[Lack]) -> None:
    rows = [(lack.topic, "danger" if lack.dangerous else "note", lack.message) for lack in lacks]
    output.print_table(("topic", "", "what differs"), rows)


def _status(lacks: list[Lack]) -> int:
    return frame.FAILED if any(lack.dangerous for lack in lacks) else 0
