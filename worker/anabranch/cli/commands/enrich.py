"""`anabranch enrich`: one run for each record of a file.

Responsible for: the command line of it, opening what is read and written, and what is said at the end. The work is
done by `enriching/enrichment.py`. Must never read a whole file. Called by the command line, and `enrich_file` by the
demonstration.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import click
from rich.console import Console

from anabranch.cli import frame, output
from anabranch.cli.enriching import records as r
from anabranch.cli.enriching.enrichment import Enrichment, Order, Screen, Stop, Submitter, at_hand, waited_for
from anabranch.cli.enriching.outfile import OutFile
from anabranch.cli.enriching.progress import print_summary, screen_for
from anabranch.cli.enriching.tally import Tally, as_json
from anabranch.errors import AnabranchError
from anabranch.fields import LANES, Lane
from anabranch.wording import counted

HINT_S: Final = 15
"""After how many seconds without any answer the user is asked whether there are workers."""
Format = Literal["jsonl", "csv"]
STDIN = "-"
_BY_SUFFIX: Final[dict[str, Format]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


@dataclass(frozen=True, slots=True)
class Source:
    """What is read: a path, or "-" for stdin."""

    path: str
    format: Format

    @property
    def name(self) -> str:
        return "stdin" if self.path == STDIN else Path(self.path).name

    @contextmanager
    def records(self, recipe: r.Recipe) -> Iterator[Iterator[r.Record | r.BadLine]]:
        """The records while the file is open. Raises `AnabranchError` if it cannot be read, or cannot fit `recipe`."""
        with self._opened() as file:
            yield r.read_csv(file, recipe) if self.format == "csv" else r.read_jsonl(file)

    def count(self) -> int | None:
        """How many records there are, bad ones too; None if that is not known before they are read."""
        if self.path == STDIN or not Path(self.path).is_file():
            return None
        with self._opened() as file:
            if self.format == "csv":
                return sum(1 for _ in r.read_csv(file))
            return sum(1 for line in file if line.strip())

    def _opened(self) -> IO[bytes]:
        try:
            # A reader of our own for stdin: the one of `sys` must not be busy in a thread when Python ends.
            return open(0, "rb", closefd=False) if self.path == STDIN else open(self.path, "rb")
        except OSError as error:
            raise AnabranchError(f"cannot read {self.path}: {error.strerror}") from None


def source_of(path: str, kind: Format | None) -> Source:
    """The source with its format, by its suffix unless given. Raises `click.UsageError` if neither says it."""
    found = kind or ("jsonl" if path == STDIN else _BY_SUFFIX.get(Path(path).suffix.lower()))
    if found is None:
        raise click.UsageError(f"{path} ends in neither .jsonl nor .csv: give --format")
    return Source(path, found)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the counts, the seconds, and whether it was stopped with runs `abandoned`."""

    tally: Tally
    wall_s: float
    stopped: bool
    abandoned: int

    @property
    def status(self) -> int:
        if self.stopped:
            return frame.INTERRUPTED
        return 0 if self.tally.flawless else frame.FAILED


async def enrich_file(
    source: Source,
    recipe: r.Recipe,
    out_path: Path,
    order: Order,
    client: Submitter,
    console: Console,
    stop: Stop,
    quiet: bool = False,
) -> Outcome:
    """Enrich `source` into `out_path`, and show it on `console`. Raises `AnabranchError` for files and Kafka."""
    tally = Tally(total=source.count())
    screen = screen_for(console, source.name, quiet)
    with OutFile.opened(out_path, recipe.mark) as out, source.records(recipe) as records:
        jobs = r.jobs(records, recipe)
        enrichment = Enrichment(order, client, out, tally, screen, stop)
        stop.on_ask(lambda: screen.say(_stopping(stop, tally, order.drain_s)))
        started = time.monotonic()
        with screen.shown():
            ticking = asyncio.create_task(_tick(screen, tally), name="screen")
            try:
                await enrichment.run(waited_for(jobs) if source.path == STDIN else at_hand(jobs))
            finally:
                ticking.cancel()
                screen.update(tally)
        return Outcome(tally, time.monotonic() - started, stop.asked.is_set(), enrichment.abandoned)


async def _tick(screen: Screen, tally: Tally) -> None:
    """Keeps the screen moving while nothing happens, and wonders why nothing does."""
    for seconds in itertools.count():
        screen.update(tally)
        if seconds == HINT_S and tally.ran == 0 and tally.running:
            screen.say("nothing has come back yet: is an agent worker running? (anabranch workers)")
        await asyncio.sleep(1)


def _stopping(stop: Stop, tally: Tally, drain_s: float) -> str:
    if stop.hurry.is_set():
        return "Stopping at once."
    return f"Stopping: waiting up to {drain_s:.0f} s for {counted(tally.running, 'run')}. Once more to stop at once."


def print_outcome(console: Console, outcome: Outcome, source: Source, out_path: Path, again: str) -> None:
    """The summary; and how to go on with `again` if there is something left to do."""
    tally = outcome.tally
    if outcome.stopped:
        word = "Stopped"
    else:
        word = "Enriched" if tally.ran or not tally.there else "Nothing left to do"
    print_summary(console, f"{word}: {source.name} -> {out_path}", tally, outcome.wall_s)
    if outcome.abandoned:
        abandoned = counted(outcome.abandoned, "run was", "runs were")
        console.print(f"{abandoned} not waited for: each goes on, and its answer is picked up.")
    if outcome.stopped:
        console.print(f"To go on: {again}")
    elif tally.failed:
        console.print(f"To try those again that failed: {again}")


_HELP = """Run an agent once for each record of IN, a JSONL or CSV file (- is stdin).

OUT gets a line for each record: {"record", "output", "run_id", "status", "usage"}, and "error" if it failed.
Output that is JSON is parsed.

The same command goes on where it stopped: records that are completed in OUT are not run again, records that failed
are run again, under new run ids, and their lines in OUT are replaced at the end. Ctrl-C waits for what runs; a second
one does not.

The template is the prompt, with fields of the record in braces: {name}, {address.city}, {tags[0]}; {{ and }} are
braces. Without one, the prompt is the record as JSON. Lines that are no records, or that lack a field of the template,
are reported and skipped.

A run's id derives from the namespace, the agent, the template, the record, and its line. With --id-field it is the
value of that field instead of the line, so that lines can be added or moved."""


@click.command("enrich", help=_HELP)
@click.argument("source", metavar="IN")
@click.option("--agent", type=frame.Name(), required=True, metavar="NAME", help="The agent that is run.")
@click.option("--out", "out_path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL file.")
@click.option("--template", metavar="TEXT", help="The prompt, with {fields} of the record.")
@click.option(
    "--template-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same, in a file."
)
@click.option("--concurrency", type=click.IntRange(1, 100_000), default=200, show_default=True, metavar="N",
              help="How many runs are out at once.")  # fmt: skip
@click.option("--ordered", is_flag=True, help="Keep the order of IN in OUT.")
@click.option("--id-field", metavar="FIELD", help="The field that names a record, instead of its line.")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), help="Of IN, if its name does not say it.")
@click.option("--tenant", type=frame.Name(), metavar="NAME", help="On whose behalf, for fairness and limits.")
@click.option("--deadline", type=frame.Duration(), metavar="DURATION", help="Of each run, such as 90s or 10m.")
@click.option("--lane", type=click.Choice(LANES), default="bulk", show_default=True, help="bulk gives way to others.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
@frame.options(app=True, listing=True)
def enrich(
    common: frame.Frame,
    source: str,
    agent: str,
    out_path: Path,
    template: str | None,
    template_file: Path | None,
    concurrency: int,
    ordered: bool,
    id_field: str | None,
    kind: Format | None,
    tenant: str | None,
    deadline: str | None,
    lane: Lane,
    quiet: bool,
) -> int:
    if str(out_path) == STDIN:
        raise click.UsageError("--out is a file, not stdout: what stands in it is not run again")
    recipe = r.Recipe(common.namespace().name, agent, _template(template, template_file), id_field)
    order = Order(agent, concurrency, ordered, tenant, deadline, common.settings.worker.drain_s, lane)
    wanted = source_of(source, kind)
    outcome = frame.run_async(_enrich(common, wanted, recipe, out_path, order, quiet))
    if common.as_json:
        output.print_json(as_json(outcome.tally, outcome.wall_s))
    elif not quiet:
        print_outcome(output.stderr(), outcome, wanted, out_path, "the same command")
    return outcome.status


async def _enrich(
    common: frame.Frame, source: Source, recipe: r.Recipe, out_path: Path, order: Order, quiet: bool
) -> Outcome:
    client: Any = common.client()
    async with client, Stop().on_signals() as stop:
        return await enrich_file(source, recipe, out_path, order, client, output.stderr(), stop, quiet)


def _template(text: str | None, file: Path | None) -> r.Template:
    if text is not None and file is not None:
        raise click.UsageError("give --template or --template-file, not both")
    try:
        return r.Template(file.read_text(encoding="utf-8") if file is not None else text)
    except (OSError, UnicodeDecodeError) as error:
        raise AnabranchError(f"cannot read the template {file}: {error}") from None
    except AnabranchError as error:
        raise click.UsageError(str(error)) from None
