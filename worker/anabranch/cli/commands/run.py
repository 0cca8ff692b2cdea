"""`anabranch run AGENT INPUT`: submits one run, shows its steps as they happen, prints its answer.

Responsible for the order: the log is open before the request is sent, so that no step is missed. The answer goes to
stdout, all else to stderr.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from anabranch.cli import frame, output
from anabranch.errors import AnabranchError
from anabranch.fields import LANES, Lane
from anabranch.messages import RunResponse

if TYPE_CHECKING:
    from anabranch.cli.picture.logs import RunLog
    from anabranch.cli.picture.watching import Watch
    from anabranch.kafka.seam import Start

LINGER_S: Final = 2.0
"""How long the last events of the log may come after the answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for; `deadline` as in `Client.submit`. `known`: the id was given, so the run may exist already."""

    agent: str
    text: str
    run_id: str
    known: bool
    tenant: str | None
    deadline: str | None
    max_turns: int | None
    lane: Lane
    stream: bool
    thinking: bool


@click.command("run")
@click.argument("agent", type=frame.Name())
@click.argument("text", metavar="INPUT")
@click.option(
    "--run-id",
    type=frame.Name(),
    metavar="ID",
    help="Of your choice: an open run of this id is joined, one that has ended answers again.",
)
@click.option("--tenant", type=frame.Name(), metavar="NAME", help="On whose behalf, for fairness and limits.")
@click.option("--deadline", type=frame.Duration(), metavar="DURATION", help="Such as 90s or 10m.")
@click.option("--max-turns", type=click.IntRange(1), metavar="N", help="Fewer than the agent may take.")
@click.option("--lane", type=click.Choice(LANES), default="interactive", show_default=True, help="bulk gives way.")
@click.option(
    "--stream/--no-stream", default=None, help="Show what the model says as it speaks. Default: on a terminal."
)
@click.option("--thinking", is_flag=True, help="With what it thinks, if it does.")
@click.option("--quiet", is_flag=True, help="Print the answer, and no steps.")
@frame.options(app=True, listing=True)
def run(
    common: frame.Frame,
    agent: str,
    text: str,
    run_id: str | None,
    tenant: str | None,
    deadline: str | None,
    max_turns: int | None,
    lane: Lane,
    stream: bool | None,
    thinking: bool,
    quiet: bool,
) -> int:
    """Run AGENT once on INPUT (- is stdin), and print its answer.

    Shows each turn and each call with its time on stderr. Exits 1 unless the run completed. --json prints the whole
    response. Ctrl-C stops watching; the run goes on.
    """
    if text == "-":
        text = _stdin()
    chosen = run_id or f"run-{secrets.token_hex(10)}"
    stream = not quiet and (output.stderr().is_terminal or thinking if stream is None else stream)
    asked = Asked(agent, text, chosen, run_id is not None, tenant, deadline, max_turns, lane, stream, thinking)
    response = frame.run_async(_run(common, asked, quiet))
    _print(common, response)
    return 0 if response.status == "completed" else frame.FAILED


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise AnabranchError(f"stdin is not UTF-8: {error}") from None


async def _run(common: frame.Frame, asked: Asked, quiet: bool) -> RunResponse:
    from anabranch.cli.picture.logs import RunLog
    from anabranch.cli.picture.sealed import seals
    from anabranch.cli.picture.watching import Watch

    broker, namespace, console = common.broker(), common.namespace(), output.stderr()
    start: Start = "begin" if asked.known else "end"
    async with (
        common.client() as client,
        RunLog.opened(broker, namespace, asked.run_id, start, common.verifier(), seals(common)) as log,
    ):
        submitted = await client.submit(
            asked.agent,
            asked.text,
            run_id=asked.run_id,
            tenant=asked.tenant,
            deadline=asked.deadline,
            max_turns=asked.max_turns,
            lane=asked.lane,
            stream=asked.stream or None,
            stream_thinking=(asked.stream and asked.thinking) or None,
        )
        watch = Watch(log, console, quiet)
        try:
            await watch.until(lambda: submitted.done)
            response = await submitted
        except asyncio.CancelledError:
            output.say(f"The run goes on: anabranch runs watch {asked.run_id}")
            raise
        await _see_the_end(log, watch)
        watch.finish(answer=False)
        return response


async def _see_the_end(log: RunLog, watch: Watch) -> None:
    """The answer may overtake the last events; a rejected request has none."""
    loop = asyncio.get_running_loop()
    until = loop.time() + (LINGER_S if log.run is not None else 0.0)
    await watch.until(lambda: loop.time() > until)


def _print(common: frame.Frame, response: RunResponse) -> None:
    if common.as_json:
        output.print_json(response)
        return
    if response.status == "completed":
        output.print_answer(response.output or "")
        return
    from anabranch.cli.picture.portrait import error_text

    output.stderr().print(error_text(response))
    for block in response.content or []:
        if block.get("type") == "text":
            output.print_answer(block.get("text") or "")
