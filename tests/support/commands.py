"""Our commands as documents and services write them, parsed by the command line itself, and not run.

Responsible for: that a command which somebody will copy exists, with the options that it is given. Must never: run it.
Called by: tests of the documents and of compose.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from anabranch.cli import anabranch


def command(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` begin with, and the words after it. Raises `LookupError`."""
    found: click.Command = anabranch
    rest = list(words)
    while isinstance(found, click.Group):
        inner = found.get_command(click.Context(found), rest[0]) if rest else None
        if inner is None:
            raise LookupError(f"there is no `anabranch {' '.join(words)}`")
        found, rest = inner, rest[1:]
    return found, rest


def parsed(words: Sequence[str]) -> click.Context:
    """All of it, options too. Raises click's own errors, and `LookupError`."""
    found, rest = command(words)
    return found.make_context(found.name, rest)
