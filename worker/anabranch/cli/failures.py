"""What is said on stderr of a command that failed: a line for what the user can mend, a traceback for a defect.

Must never: print a secret, or import anything slow: `anabranch --help` comes through here. Called by: `frame.py`.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator

import click

from anabranch.cli.terminal import printable
from anabranch.errors import AnabranchError


def explain(error: Exception, redact: Callable[[str], str]) -> None:
    """Say what went wrong."""
    said = [_said(leaf) for leaf in _leaves(error)]
    if None in said:
        click.echo(printable(redact("".join(traceback.format_exception(error)))), err=True, nl=False)
        return
    for message in dict.fromkeys(filter(None, said)):
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(printable(redact(message)), err=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What went wrong, without the groups that tasks wrap around it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _said(error: BaseException) -> str | None:
    """What the user is to know of it; None of a defect."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {error.filename or 'the output'}: {error.strerror}"
    return str(error) if isinstance(error, AnabranchError) else None
