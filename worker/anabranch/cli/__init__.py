"""The command line: `anabranch COMMAND`, one file a command, each loaded only when it is used.

Responsible for: which commands there are, and what a command's end means for the process (`frame.invoke`).
Must never: import a client of Kafka or of a model, or anything slow, before a command needs it.
Called by: the script `anabranch`, and `python -m anabranch.cli`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from anabranch.cli import frame

_COMMANDS = (
    frame.Lazy("dev", "dev:dev", "Broker, agents and tools in one process."),
    frame.Lazy("worker", "worker:worker", "Run one role: agent or tool."),
    frame.Lazy("topics", "topics:topics", "Compare the topics with what an App needs; create and alter."),
    frame.Lazy("run", "run:run", "Submit one run, watch its steps, print its answer."),
    frame.Lazy("enrich", "enrich:enrich", "One run for each record of a JSONL or CSV file."),
    frame.Lazy("runs", "runs:runs", "List, show, watch, cancel and replay runs."),
    frame.Lazy("usage", "usage:usage", "Tokens and dollars by agent, tenant or model."),
    frame.Lazy("agents", "registered:agents", "The agents that are registered."),
    frame.Lazy("tools", "registered:tools", "The tools that are registered."),
    frame.Lazy("workers", "registered:workers", "The workers, and whether they are alive."),
    frame.Lazy("dlq", "deadletters:dlq", "Look at dead letters, and replay them."),
    frame.Lazy("keys", "keys:keys", "The tenants' keys: list and make them, forget a tenant."),
    frame.Lazy("config", "config:config", "The settings in force, secrets masked."),
)


@click.group(cls=frame.Commands, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="anabranch", message="anabranch %(version)s")
def anabranch() -> None:
    """LLM agents on Kafka: every tool call of a turn in parallel, nothing lost.

    APP is module:attribute, or path.py (then its `app`). Settings come from ANABRANCH_* in the environment, or from
    a TOML file given by --config; `anabranch config` prints them.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line (`sys.argv` unless given) and end the process with its status."""
    _open_what_is_closed()
    frame.finish(frame.invoke(anabranch, arguments))


def _open_what_is_closed() -> None:
    """A process may be started without them, and Python has None there then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process lives
