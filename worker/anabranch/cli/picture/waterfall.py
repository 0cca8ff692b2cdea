"""A run as bars on a time axis. PURE.

Responsible for: when the model was asked, when each call waited and ran, from the fold of a run; and drawing that in
a given width. Clocks differ: the log's time is the broker's, a call's own times are its worker's, so that what a
worker says is moved to where the broker saw it. Must never read a clock: `now` is given.
Called by `run` and `runs show|watch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.text import Text

from anabranch.agent.results import result_of
from anabranch.agent.state import Call, Run, Turn
from anabranch.cli.picture.attempts import Made, worth_telling
from anabranch.cli.terminal import printable
from anabranch.wording import counted

# "out": published and not back yet; only its result will tell how much of that it waited.
Phase = Literal["admission", "model", "out", "wait", "run", "return"]
GLYPHS: Final[dict[Phase, str]] = {"admission": "┄", "model": "▓", "out": "▒", "wait": "░", "run": "█", "return": "·"}
_STYLES: Final[dict[Phase, str]] = {
    "admission": "dim",
    "model": "magenta",
    "out": "cyan",
    "wait": "yellow",
    "return": "dim",
}
_RUN_STYLES: Final = {"ok": "green", "error": "red", "timeout": "bright_red", "unknown": "red", "open": "cyan"}
MARKS: Final = {"ok": "✓", "error": "✗", "timeout": "✗", "unknown": "?", "open": "…"}


@dataclass(frozen=True, slots=True)
class Bar:
    """Seconds since the run was asked for, `start` <= `end`."""

    phase: Phase
    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a model call, one of the attempts at it, or (`call_id`) a tool call. `outcome` is `open` until there is
    a result.
    """

    label: str
    outcome: str
    bars: tuple[Bar, ...]
    note: str = ""
    call_id: str | None = None
    is_attempt: bool = False

    def seconds(self, phase: Phase) -> float:
        return sum(bar.length for bar in self.bars if bar.phase == phase)

    @property
    def took(self) -> float:
        """What the row is about: execution of a call, or the model's time; from end to end if it never ran."""
        main = [bar for bar in self.bars if bar.phase in ("run", "model")]
        return sum(bar.length for bar in main or self.bars)


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All rows of a run, and how long the axis is, in seconds."""

    rows: tuple[Row, ...]
    length: float


# --- from a run to bars -------------------------------------------------------------------------------------------


def waterfall(run: Run, now: float, attempts: Sequence[Made] = ()) -> Waterfall:
    """The rows of `run`; what is not over yet goes on until `now` (epoch seconds). Of `attempts` each has a row if its
    turn took more than one.
    """
    told = worth_telling(attempts)
    opened = run.opened_at
    zero = min(run.opening.requested_at or opened, opened)
    now = run.ending.at if run.ending is not None else max(now, opened)
    rows: list[Row] = []
    if opened - zero >= 0.001:
        rows.append(Row("admission", "ok", (Bar("admission", 0.0, opened - zero),)))
    owed_at = opened
    for turn in run.turns:
        rows.append(_model_row(turn, owed_at - zero, turn.replied_at - zero))
        rows += _attempt_rows(told, turn.number, owed_at, turn.replied_at, zero)
        rows += [_call_row(run, turn, call, zero, now) for call in turn.calls.values()]
        owed_at = turn.finished_at if turn.finished_at is not None else turn.replied_at
    if run.owed or _failed_at_the_model(run):
        outcome = "open" if run.owed else "error"
        rows.append(Row(f"turn {run.turn}", outcome, (_bar("model", owed_at - zero, now - zero),)))
        rows += _attempt_rows(told, run.turn, owed_at, now, zero)
    ends = [bar.end for row in rows for bar in row.bars]
    return Waterfall(tuple(rows), max([now - zero, *ends, 0.001]))


def _failed_at_the_model(run: Run) -> bool:
    """Whether the run ended while a reply was owed: every turn before it has its reply and its results."""
    return run.ending is not None and len(run.turns) < run.turn


def _model_row(turn: Turn, start: float, end: float) -> Row:
    count = len(turn.calls)
    note = counted(count, "call") if count else {"final": "answers"}.get(turn.outcome, turn.outcome)
    return Row(f"turn {turn.number}", "ok", (_bar("model", start, end),), note)


def _attempt_rows(attempts: Sequence[Made], turn: int, begin: float, end: float, zero: float) -> list[Row]:
    """Those of one turn that say when they were made."""
    rows = []
    for made in attempts:
        if made.turn == turn and made.at is not None and made.took_s is not None:
            start, over = clamped(made.at, made.at + made.took_s, begin, max(begin, end))
            note = made.failure or ""
            note = f"{note} ×{made.times}" if made.times > 1 else note
            bars = (_bar("model", start - zero, over - zero),)
            rows.append(Row(made.model, "error" if made.failure else "ok", bars, note, is_attempt=True))
    return rows


def _call_row(run: Run, turn: Turn, call: Call, zero: float, now: float) -> Row:
    label, planned = call.planned.tool, call.planned
    result = call.result
    published = call.due is not None
    begin = call.due_at if published else turn.replied_at
    end = max(begin, result.at if result is not None else now)
    body = result_of(result.body) if result is not None and result.body is not None else None
    if body is None or body.started_at is None:
        phase: Phase = "return" if not published else "wait" if result is not None else "out"
        outcome = result.outcome if result is not None else "open" if run.open else "unknown"
        note = "" if published or result is None else "not run" if planned.rejected is None else "rejected"
        return Row(label, outcome, (_bar(phase, begin - zero, end - zero),), note, planned.call_id)
    ran_s = (body.finished_at or body.started_at) - body.started_at
    if ran_s > end - begin:  # it began while the model spoke
        begin = max(_owed_at(run, turn), min(body.started_at, end - ran_s))
    started, finished = clamped(body.started_at, body.started_at + ran_s, begin, end)
    bars = (
        _bar("wait", begin - zero, started - zero),
        _bar("run", started - zero, finished - zero),
        _bar("return", finished - zero, end - zero),
    )
    note = f"{body.tries} tries" if body.tries > 1 else ""
    return Row(label, result.outcome if result is not None else "open", bars, note, planned.call_id)


def _owed_at(run: Run, turn: Turn) -> float:
    """When its model call became due."""
    place = next(number for number, each in enumerate(run.turns) if each is turn)
    before = run.turns[place - 1] if place else None
    return run.opened_at if before is None else before.finished_at or before.replied_at


def _bar(phase: Phase, start: float, end: float) -> Bar:
    start = max(0.0, start)
    return Bar(phase, start, max(start, end))


def clamped(started: float, finished: float, begin: float, end: float) -> tuple[float, float]:
    """What a worker's clock says, moved into `begin`..`end` of the broker's; its length is kept if it fits."""
    length = min(max(0.0, finished - started), end - begin)
    started = min(max(started, begin), end - length)
    return started, started + length


# --- from bars to text ----------------------------------------------------------------------------------------------

LABELS: Final = (12, 30)
"""The least and the most columns that names take."""
NARROW: Final = 50
"""Below so many columns there is no room for notes."""
_TIME_WIDTH, _NOTE_WIDTH = 9, 10
_LEAST_CELLS: Final = 13


def draw(picture: Waterfall, width: int) -> list[Text]:
    """One line for each row, below an axis, `width` columns wide (at least 37)."""
    longest = max((len(row.label) + 4 for row in picture.rows), default=0)
    labels = min(max(longest, LABELS[0]), LABELS[1], max(LABELS[0], width // 3))
    times = max(_TIME_WIDTH, len(f"{picture.length:.2f}") + 3)
    notes = _NOTE_WIDTH + 1 if width >= NARROW else 0
    cells = max(_LEAST_CELLS, width - labels - times - notes - 1)
    lines = [_axis(picture.length, labels, cells)]
    for row in picture.rows:
        line = _label(row, labels).append(" ")
        line.append_text(_cells(row, picture.length, cells))
        line.append(f"{row.took:>{times - 2}.2f} s", "bold" if _is_turn(row) else "")
        if notes:
            line.append(f" {printable(row.note)}", "red" if row.note in ("rejected", "not run") else "dim")
        lines.append(line)
    return lines


def legend(picture: Waterfall) -> Text:
    """What the glyphs mean."""
    text = Text()
    names: Sequence[tuple[Phase, str]] = (("model", "model"), ("wait", "waits in its queue"), ("run", "runs"))
    for phase, name in names:
        text.append(f"{GLYPHS[phase] * 2} ", _STYLES.get(phase, "green")).append(f"{name}   ", "dim")
    text.append(f"{GLYPHS['return'] * 2} result on its way", "dim")
    if any(bar.phase == "out" for row in picture.rows for bar in row.bars):
        text.append(f"   {GLYPHS['out'] * 2} ", _STYLES["out"]).append("waits or runs", "dim")
    return text


def _axis(length: float, labels: int, cells: int) -> Text:
    ticks = [" "] * (cells + 8)
    count = max(1, cells // 16)
    for tick in range(count + 1):
        place, name = round(tick * (cells - 1) / count), f"{tick * length / count:.2f}"
        begin = min(place, cells - len(name)) if tick else 0
        ticks[begin : begin + len(name)] = name
    return Text(" " * (labels + 1) + "".join(ticks[:cells]) + " seconds", "dim")


def _label(row: Row, width: int) -> Text:
    if _is_turn(row):
        return Text().append(row.label[:width].ljust(width), "bold")
    text = Text("  ").append(MARKS.get(row.outcome, "?"), _RUN_STYLES.get(row.outcome, ""))
    label = " ".join(printable(row.label).split())
    name = label if len(label) <= width - 4 else label[: width - 5] + "…"
    return text.append(f" {name}".ljust(width - 3))


def _is_turn(row: Row) -> bool:
    return row.call_id is None and not row.is_attempt


def _cells(row: Row, length: float, cells: int) -> Text:
    """Each cell shows what took most of its time; and what was shorter than a cell but ran still gets one."""
    filled: list[Phase | None] = [None] * cells
    order: Sequence[Phase] = ("return", "admission", "out", "wait", "model", "run")
    for phase in order:
        for bar in row.bars:
            if bar.phase == phase:
                _fill(filled, bar, length)
    text = Text()
    for cell in filled:
        if cell is None:
            text.append(" ")
        else:
            text.append(GLYPHS[cell], _style(cell, row))
    return text


def _fill(filled: list[Any], bar: Bar, length: float) -> None:
    cells = len(filled)
    first = min(cells - 1, int(bar.start / length * cells + 0.5))
    last = min(cells, int(bar.end / length * cells + 0.5))
    if last <= first and bar.phase in ("run", "model"):
        last = first + 1
    filled[first:last] = [bar.phase] * (last - first)


def _style(phase: Phase, row: Row) -> str:
    if phase == "run":
        return _RUN_STYLES.get(row.outcome, "")
    return "red" if phase == "model" and row.outcome == "error" else _STYLES[phase]
