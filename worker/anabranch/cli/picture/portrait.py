"""A run as `run` and `runs show|watch` picture it: its head, its waterfall, how it ended. PURE.

Responsible for what is said of one run, as lines of `rich` and as JSON. Called by `run` and `runs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from anabranch.agent.answer import response
from anabranch.agent.state import Run
from anabranch.bodies import lean
from anabranch.cli.figures import cost, span, tokens
from anabranch.cli.picture import bill
from anabranch.cli.picture.attempts import Made
from anabranch.cli.picture.attempts import as_json as attempts_json
from anabranch.cli.picture.attempts import lines as lines_of
from anabranch.cli.picture.sealed import Told
from anabranch.cli.picture.waterfall import Row, draw, legend, waterfall
from anabranch.cli.terminal import printable
from anabranch.fields import lane_of
from anabranch.messages import RunResponse
from anabranch.wording import counted

STATUS_STYLES = {"completed": "bold green", "failed": "bold red", "expired": "bold red", "cancelled": "bold yellow"}
_OPEN_STYLE = "bold cyan"
ROOM = 6
"""Lines of the screen that a live picture leaves for the rest."""


def status_of(run: Run) -> str:
    """How it ended; or that it is parked, or running."""
    if run.ending is not None:
        return run.ending.status
    return "parked" if run.parked else "running"


def status_text(status: str) -> Text:
    return Text(printable(status), STATUS_STYLES.get(status, "bold yellow" if status == "parked" else _OPEN_STYLE))


def head(run: Run) -> Text:
    """Its id, agent and state."""
    text = (
        Text().append(printable(run.run_id), "bold").append(f"  {printable(run.opening.request.agent or '')}  ", "dim")
    )
    return text.append_text(status_text(status_of(run)))


def moving(run: Run, now: float, width: int, height: int, attempts: Sequence[Made] = ()) -> Group:
    """The picture while the run goes on: the last rows that fit on the screen."""
    axis, *rows = draw(waterfall(run, now, attempts), width)
    room = max(3, height - ROOM)
    hidden = len(rows) - room
    more = [Text(f"  ({hidden} more above)", "dim")] if hidden > 0 else []
    return Group(head(run), axis, *more, *rows[-room:])


def whole(
    run: Run, now: float, width: int, attempts: Sequence[Made] = (), *, answer: bool = True, told: Told | None = None
) -> Group:
    """The whole picture, with the attempts that came to nothing, and how it ended; `answer`: and what it said. `told`
    is that, as far as it can be opened.
    """
    picture = waterfall(run, now, attempts)
    used = list(bill.lines(run, width))
    lines = [head(run), Text(), *draw(picture, width), Text(), legend(picture)]
    lines += [Text(), *used, Text(), *_facts(run, now)] if used else _facts(run, now)
    if made := list(lines_of(attempts)):
        lines += [Text(), Text("attempts of the model", "bold"), *made]
    if run.parked:
        lines.append(Text(f"parked: {printable(run.parked)}", "bold yellow"))
    told = told or (Told(response(run)) if run.ending is not None else None)
    if told is not None and told.response.error is not None:
        lines += [Text(), error_text(told.response)]
    if answer and told is not None and (words := words_in(told)) is not None:
        lines += [Text(), Text(printable(words))]
    return Group(*lines)


def words_in(told: Told) -> str | None:
    """What the run said last, or where that lies."""
    found = told.response
    if told.hidden is not None:
        return f"({told.hidden})"
    if found.content_sealed is not None:
        return "(sealed)"
    if found.output is None and found.content_ref is not None:
        return f"(in the store: {found.content_ref})"
    return found.output


def error_text(told: RunResponse) -> Text:
    code, message = (told.error.code, told.error.message) if told.error else (told.status, "")
    ends = told.status if code == told.status else f"{told.status}: {code}"
    return Text().append(printable(f"{ends}: "), "bold red").append(printable(message))


def _facts(run: Run, now: float) -> Iterator[Text]:
    calls = [call for turn in run.turns for call in turn.calls.values()]
    failed = sum(call.failed for call in calls)
    wall = (run.ending.at if run.ending is not None else now) - run.opened_at
    parts = [counted(len(run.turns), "turn"), counted(len(calls), "call")]
    parts += [f"{failed} failed"] if failed else []
    parts += [tokens(run.usage)]
    lost, both = run.discarded, run.usage + run.discarded
    if lost.prompt_tokens or lost.output_tokens:
        parts += [f"{lost.prompt_tokens:,} in, {lost.output_tokens:,} out thrown away"]
    parts += [cost(both)] if both.cost_usd != 0 else []
    parts += [f"{span(max(0.0, wall))} in all"]
    parts += ["bulk lane"] if lane_of(run.life) == "bulk" else []
    if run.ending is not None and calls:
        timing = response(run).timing
        parts += [f"{span(timing.model_s + timing.tools_sequential_s)} one after another"]
    yield Text(" · ".join(parts))


def as_json(run: Run, now: float, attempts: Sequence[Made] = (), told: Told | None = None) -> dict[str, Any]:
    """The run for scripts: `rows` as the waterfall has them, `attempts` at its model calls with what each has used,
    `response` (null while it runs) as it was sent, or as it was `told` to who has the keys.
    """
    picture = waterfall(run, now)
    zero = min(run.opening.requested_at or run.opened_at, run.opened_at)
    return {
        "run_id": run.run_id,
        "agent": run.opening.request.agent,
        "lane": lane_of(run.life),
        "status": status_of(run),
        "opened_at": run.opened_at,
        "ended_at": run.ending.at if run.ending is not None else None,
        "parked": run.parked,
        "turns": len(run.turns),
        "rows": [_row_json(row) for row in picture.rows],
        "attempts": attempts_json(attempts, zero),
        "usage": {**lean(run.usage), "discarded": lean(run.discarded)},
        "response": lean(told.response if told is not None else response(run)) if run.ending is not None else None,
        "usage_by_turn": [{"name": name, **asdict(used)} for name, used in bill.by_turn(run)],
    }


def _row_json(row: Row) -> dict[str, Any]:
    kind = "call" if row.call_id is not None else "admission" if row.label == "admission" else "model"
    start = min(bar.start for bar in row.bars)
    out: dict[str, Any] = {"kind": kind, "name": row.label, "outcome": row.outcome, "start_s": round(start, 6)}
    if kind == "call":
        out |= {"call_id": row.call_id, "queue_s": round(row.seconds("wait"), 6), "run_s": round(row.seconds("run"), 6)}
    else:
        out["took_s"] = round(row.took, 6)
    return out
