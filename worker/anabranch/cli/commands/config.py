"""`anabranch config`: the settings in force, secrets masked, and where each comes from."""

from __future__ import annotations

import click

from anabranch.cli import frame, output


@click.command()
@frame.options(listing=True)
def config(common: frame.Frame) -> None:
    """Print the settings in force, secrets masked.

    Each can be set in the environment, or in the file of --config; the environment wins, and options win over both.
    """
    from anabranch.environment import shown

    values = shown(common.settings)
    if common.as_json:
        output.print_json(values)
        return
    origins = _origins(common)
    rows = [
        (f"{section}.{name}", _text(value), origins.get((section, name), "default"))
        for section, table in values.items()
        for name, value in table.items()
    ]
    output.print_table(("setting", "value", "from"), rows)


def _origins(common: frame.Frame) -> dict[tuple[str, str], str]:
    from anabranch.environment import sources

    found = sources(common.config)
    if common.bootstrap is not None:
        found["kafka", "bootstrap"] = "--bootstrap"
    if common.namespace_option is not None:
        found["worker", "namespace"] = "--namespace"
    return found


def _text(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
