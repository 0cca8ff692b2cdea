"""The attempts of a run's model calls: of which model, how long, what they cost, and why they came to nothing. PURE.

Responsible for: putting together what events of the log say of attempts, beside the fold, which only adds up what they
cost; and showing it. What was told behind the end of a run is shown too, although the run does not count it. Called by
`logs.py`, which feeds it, and by `portrait.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.text import Text

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.state import Run
from anabranch.bodies import lean
from anabranch.cli.figures import cost, span, tokens
from anabranch.cli.terminal import printable

SURPLUS = "surplus"
"""Beside the failures of `Tried`: another reply of the turn came first."""


@dataclass(frozen=True, slots=True)
class Made:
    """An attempt, or `times` that are told as one. Its `at` is epoch seconds by the worker's clock, None if nobody said
    it; without a `failure` its reply counts. What `is_counted` is in the run's usage, as used or as discarded.
    """

    turn: int
    model: str
    at: float | None = None
    took_s: float | None = None
    failure: str | None = None
    reason: str | None = None
    times: int = 1
    usage: m.Usage | None = None
    is_counted: bool = True


@dataclass(slots=True)
class Attempts:
    """Those of one run, all of its lives, in the order in which the log tells of them."""

    _made: dict[tuple[str, str], list[Made]] = field(default_factory=dict)  # by life and attempt

    def take(self, event: e.Event, run: Run | None) -> None:
        """`run` is as the event left it."""
        match event:
            case e.ModelReplied():
                won = run is not None and any(turn.attempt == event.attempt for turn in run.turns)
                self._told(event, event.attempt, event.turn, event.usage, None if won else SURPLUS, won)
            case e.ModelDiscarded():
                counted = run is not None and run.life == event.life and event.attempt in run.discards
                self._told(event, event.attempt, event.turn, event.usage, "unknown", counted, event.reason)
            case e.RunExpired() if event.attempt is not None and run is not None:
                counted = event.attempt in run.discards
                self._told(event, event.attempt, run.turn, event.usage, "ended", counted, event.reason)
            case e.ModelFailed():
                why = event.error.message
                self._made[event.life, event.attempt] = [_made(event.turn, each, why) for each in event.tried]

    def of(self, run: Run) -> list[Made]:
        """Those of this life."""
        return [made for (life, _), several in self._made.items() if life == run.life for made in several]

    def _told(
        self, event: Any, attempt: str, turn: int, usage: m.Usage | None, failure: str | None, counted: bool,
        reason: str | None = None,
    ) -> None:  # fmt: skip
        known = self._made.get((event.life, attempt))
        if known is not None and (known[-1].is_counted or not counted):
            return  # it was told before, and nothing that counts is new
        *others, own = event.tried or [e.Tried(_model_of(event), 0.0, 0.0, failure, reason)]
        at, took_s = (own.at, own.took_s) if event.tried else (None, None)
        why = failure if failure in (None, SURPLUS) else own.failure or failure
        last = Made(turn, own.model, at, took_s, why, own.reason or reason, own.times, usage, counted)
        self._made[event.life, attempt] = [*(_made(turn, each) for each in others), last]


def _made(turn: int, tried: e.Tried, reason: str | None = None) -> Made:
    return Made(turn, tried.model, tried.at, tried.took_s, tried.failure, tried.reason or reason, tried.times)


def _model_of(event: Any) -> str:
    """Which model was asked; what its reply says if that was the agent's own."""
    if event.model is not None:
        return str(event.model)
    try:
        return str(orjson.loads(event.body)["model"])
    except (AttributeError, orjson.JSONDecodeError, KeyError, TypeError):
        return ""


# --- shown ------------------------------------------------------------------------------------------------------


def worth_telling(attempts: Sequence[Made]) -> list[Made]:
    """All of a turn that took more than one; the picture of the others says it already."""
    turns = {made.turn for made in attempts if made.failure is not None}
    return [made for made in attempts if made.turn in turns]


def lines(attempts: Sequence[Made]) -> Iterator[Text]:
    """A line for each that is worth telling."""
    told = worth_telling(attempts)
    width = max((len(made.model) for made in told), default=0)
    for made in told:
        text = Text(f"  turn {made.turn}  ").append(printable(made.model).ljust(width), "dim")
        text.append(f"  {'' if made.took_s is None else span(made.took_s):>8}  ")
        text.append(_words(made), "green" if made.failure is None else "red")
        yield text.append(_bill(made), "dim")


def _words(made: Made) -> str:
    if made.failure is None:
        return "replied"
    if made.failure == SURPLUS:
        return "thrown away: another reply of the turn came first"
    several = f" ×{made.times}" if made.times > 1 else ""
    return printable(f"{made.failure}{several}" + (f": {made.reason}" if made.reason else ""))


def _bill(made: Made) -> str:
    used = made.usage
    if used is None or used == m.Usage():
        return ""
    late = "" if made.is_counted else ", told when the run was over: not in its usage"
    return f"  ({tokens(used)}, {cost(used)}{late})"


def as_json(attempts: Sequence[Made], zero: float) -> list[dict[str, Any]]:
    """All attempts for scripts; `start_s` counts from `zero`, as the rows of the waterfall do."""
    return [_as_json(made, zero) for made in attempts]


def _as_json(made: Made, zero: float) -> dict[str, Any]:
    return {
        "turn": made.turn,
        "model": made.model or None,
        "outcome": made.failure or "replied",
        "reason": made.reason,
        "times": made.times,
        "start_s": None if made.at is None else round(made.at - zero, 6),
        "took_s": made.took_s,
        "usage": None if made.usage is None else {"cost_usd": None, **lean(made.usage)},
        "counted": made.is_counted,
    }
