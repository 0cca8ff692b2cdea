"""`anabranch runs list|show|watch|cancel|replay`: what the log says of runs.

Responsible for the command lines and their tables; what they show is of `picture/`: reading is `logs.py`, the picture
`portrait.py`, words are `steps.py`. Only `cancel` writes, through the client.
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import click

from anabranch.cli import figures, frame, output
from anabranch.errors import AnabranchError

if TYPE_CHECKING:
    from anabranch.agent.state import Run
    from anabranch.cli.picture.attempts import Made
    from anabranch.cli.picture.logs import RunLog, Summary
    from anabranch.cli.picture.sealed import Told
    from anabranch.client_seals import ClientSeals

STATUSES = ("running", "parked", "completed", "failed", "cancelled", "expired")


@click.group(cls=frame.Commands)
def runs() -> None:
    """List, show, watch, cancel and replay runs."""


# --- list -------------------------------------------------------------------------------------------------------


@runs.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that are in this state.")
@click.option("--agent", metavar="NAME", help="Only those of this agent.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Only the newest.")
@frame.options(app=True, listing=True)
def list_runs(common: frame.Frame, status: str | None, agent: str | None, limit: int) -> None:
    """List runs, the newest first. Reads the whole log of the namespace."""
    found, left_out = frame.run_async(_newest(common, status, agent, limit))
    if common.as_json:
        output.print_json(found)
    else:
        columns = ("run", "agent", "status", "admitted", ">took", ">turns", ">calls")
        which = " like that" if status or agent else ""
        output.print_table(columns, map(_cells, found), empty=f"no runs{which} in namespace {common.namespace().name}")
    output.say_left_out(left_out, "run")


async def _newest(common: frame.Frame, status: str | None, agent: str | None, limit: int) -> tuple[list[Summary], int]:
    """The newest, and how many more there are."""
    from anabranch.cli.picture.logs import Summary, fold_all, summary_of
    from anabranch.cli.picture.portrait import status_of
    from anabranch.cli.reading import Newest

    newest = Newest[Summary](limit)
    async for run in fold_all(common.broker(), common.namespace(), common.verifier()):
        is_in = status_of(run)
        if status in (None, is_in) and agent in (None, run.opening.request.agent):
            newest.take(run.opened_at, summary_of(run, is_in), f"{run.run_id} {run.life}")
    return newest.first_to_last()[::-1], newest.left_out


def _cells(run: Summary) -> tuple[object, ...]:
    from anabranch.cli.figures import span
    from anabranch.cli.picture.portrait import status_text

    took = span((run.ended_at if run.ended_at is not None else max(time.time(), run.opened_at)) - run.opened_at)
    calls = f"{run.calls} ({run.failed_calls} failed)" if run.failed_calls else run.calls
    return (
        run.run_id,
        run.agent,
        status_text(run.status),
        figures.moment(run.opened_at, brief=True),
        took,
        run.turns,
        calls,
    )


# --- show, watch ------------------------------------------------------------------------------------------------


@runs.command()
@click.argument("run_id", metavar="ID")
@frame.options(app=True, listing=True)
def show(common: frame.Frame, run_id: str) -> None:
    """Draw a run as a waterfall: the model's time, and each call's wait and execution.

    Where the model was asked more than once, each attempt: which model, how long, what it cost, why it came to nothing.
    """
    from anabranch.cli.picture import portrait

    (run, made, told), now = frame.run_async(_read(common, run_id)), time.time()
    if common.as_json:
        output.print_json(portrait.as_json(run, now, made, told))
        if told is not None and told.hidden is not None:
            output.say(f"the response is not all there: {told.hidden}")
        return
    console = output.stdout()
    width = console.width if console.is_terminal else PLAIN_WIDTH
    console.print(portrait.whole(run, now, width, made, told=told))


PLAIN_WIDTH = 100
"""Columns of a waterfall that goes into a file."""


async def _read(common: frame.Frame, run_id: str) -> tuple[Run, list[Made], Told | None]:
    """The run, the attempts of its model calls, and what it was told, if it has ended and is sealed."""
    from anabranch.cli.picture.logs import not_found
    from anabranch.cli.picture.sealed import told

    async with _log_of(common, run_id) as log:
        run = await log.catch_up()
        if run is None:
            if await _waits(common, log):
                raise AnabranchError(
                    f"run {run_id!r} waits to be admitted: `anabranch runs watch {run_id}` waits for it"
                )
            raise not_found(common.namespace(), log)
    return run, log.made, await told(common, run)


def _log_of(common: frame.Frame, run_id: str, seals: ClientSeals | None = None) -> AbstractAsyncContextManager[RunLog]:
    from anabranch.cli.picture.logs import RunLog

    return RunLog.opened(common.broker(), common.namespace(), run_id, "begin", common.verifier(), seals)


async def _waits(common: frame.Frame, log: RunLog) -> bool:
    from anabranch.cli.picture.logs import is_waiting

    return await is_waiting(common.broker(), common.namespace(), log)


@runs.command()
@click.argument("run_id", metavar="ID")
@frame.options(app=True)
def watch(common: frame.Frame, run_id: str) -> int:
    """Show a run's steps as they happen, until it ends. Exits 1 unless it completed."""
    status = frame.run_async(_watch(common, run_id))
    return 0 if status == "completed" else frame.FAILED


async def _watch(common: frame.Frame, run_id: str) -> str:
    from anabranch.cli.picture.logs import not_found
    from anabranch.cli.picture.portrait import status_of
    from anabranch.cli.picture.sealed import seals, told
    from anabranch.cli.picture.watching import Watch

    async with _log_of(common, run_id, seals(common)) as log:
        console = output.stdout()
        watch = Watch(log, console)
        await watch.catch_up()
        if log.run is None and not await _waits(common, log):
            raise not_found(common.namespace(), log)
        await watch.until(lambda: log.note is not None)
        watch.finish(answer=True, told=await told(common, log.run) if log.run is not None else None)
        if log.run is None:
            raise not_found(common.namespace(), log)
        return status_of(log.run)


# --- cancel -----------------------------------------------------------------------------------------------------


@runs.command()
@click.argument("run_id", metavar="ID")
@click.option("--reason", default="cancelled by an operator", show_default=True, help="What its answer will say.")
@frame.options(app=True)
def cancel(common: frame.Frame, run_id: str, reason: str) -> None:
    """End a run: one that is open, or one that still waits to be admitted."""
    frame.run_async(_cancel(common, run_id, reason))


async def _cancel(common: frame.Frame, run_id: str, reason: str) -> None:
    from anabranch.cli.picture.logs import not_found

    async with _log_of(common, run_id) as log:
        run = await log.catch_up()
        if run is None and not await _waits(common, log):
            raise not_found(common.namespace(), log)
        if run is not None:
            _refuse_ended(run)
        async with common.client() as client:
            await client.cancel(run_id, reason)
        run = await log.catch_up()
        if run is not None and run.ending is not None and run.ending.status != "cancelled":
            _refuse_ended(run)
        output.say(cancelled(run_id, run))


def cancelled(run_id: str, run: Run | None) -> str:
    """What has come of a cancel that is in the log."""
    if run is None:
        return f"run {run_id} was not admitted yet: it will be cancelled when it is"
    if run.ending is None and run.parked:
        return f"run {run_id} is parked ({run.parked}): it will be cancelled by agent workers that know this"
    return f"run {run_id} is cancelled"


def _refuse_ended(run: Run) -> None:
    if run.ending is not None:
        ago = figures.ago(time.time() - run.ending.at)
        raise AnabranchError(f"run {run.run_id!r} has ended already: {run.ending.status}, {ago} ago")


# --- replay -----------------------------------------------------------------------------------------------------


@runs.command()
@click.argument("run_id", metavar="ID")
@frame.options(app=True)
def replay(common: frame.Frame, run_id: str) -> None:
    """Fold a run's events again, one by one, and print what each changed. Writes nothing."""
    frame.run_async(_replay(common, run_id))


async def _replay(common: frame.Frame, run_id: str) -> None:
    from anabranch.cli.picture import portrait
    from anabranch.cli.picture.logs import not_found
    from anabranch.cli.picture.steps import concerns, facts, replayed

    console = output.stdout()
    async with _log_of(common, run_id) as log:
        before, zero = None, 0.0
        async for event in log.to_end():
            if not concerns(event.event, run_id):
                continue
            if not zero:
                zero = event.at
                console.print(f"{log.place.topic}, partition {log.place.partition}, from {figures.moment(zero)}")
            after = facts(log.run)
            for line in replayed(event, before, after, log.run, zero):
                console.print(line)
            before = after
        if log.run is None:
            raise not_found(common.namespace(), log)
        console.print()
        width = console.width if console.is_terminal else PLAIN_WIDTH
        console.print(portrait.whole(log.run, time.time(), width, log.made))
