"""Shows a run while it goes on: a picture that moves on a terminal, a line for each step elsewhere. And what its model
says while it speaks, if the run asked for that: below the picture, or line by line.

Responsible for stderr until the run has ended; it decides nothing about the run. Called by `run` and `runs watch`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text as Line

from anabranch.agent.answer import response
from anabranch.cli.picture import portrait
from anabranch.cli.picture.logs import RunLog
from anabranch.cli.picture.sealed import Told
from anabranch.cli.picture.steps import changes, facts, named, told
from anabranch.cli.terminal import printable
from anabranch.events import CallStarted, Discarded, Event, RunEvent, Spoken, Text
from anabranch.spoken import Block

FRAME_S: Final = 0.1
HINT_S: Final = 10.0
_HINT: Final = "nobody has taken the request yet: is an agent worker running? (anabranch workers)"


class Watch:
    """One watched run. `quiet` shows nothing."""

    def __init__(self, log: RunLog, console: Console, quiet: bool = False) -> None:
        self._log, self._console = log, console
        self._moving, self._quiet = console.is_terminal and not quiet, quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if self._moving else None
        self._started, self._hinted = time.time(), False
        self._before = facts(log.run)
        self._rest = ""  # of a line that is being said

    async def catch_up(self) -> None:
        """Go through what has happened already."""
        async for event in self._log.to_end():
            self._tell(event)

    async def until(self, over: Callable[[], bool]) -> None:
        """Show what happens until the run has ended, or `over()` says so."""
        self._log.listen()
        with self._live or nullcontext():
            while not over() and not self._ended():
                self._draw()
                async for event in self._log.hear(FRAME_S):
                    self._hear(event)

    def finish(self, answer: bool, told: Told | None = None) -> None:
        """The whole picture, once more and for good; `answer`: with what the run said, or why it failed, as it was
        `told`.
        """
        run = self._log.run
        if run is None or self._quiet:
            return
        if self._moving:
            now = max(time.time(), self._log.last_at)
            made = self._log.made
            self._console.print(portrait.whole(run, now, self._console.width, made, answer=answer, told=told))
        elif answer and run.ending is not None:
            told = told or Told(response(run))
            error = portrait.error_text(told.response) if told.response.error else None
            self._console.print(error or printable(portrait.words_in(told) or ""))

    def _ended(self) -> bool:
        run = self._log.run
        return run is not None and not run.open

    def _draw(self) -> None:
        run, now = self._log.run, max(time.time(), self._log.last_at)
        if run is None and not self._quiet and not self._hinted and now - self._started > HINT_S:
            self._hinted = True
            self._console.print(Line(_HINT, "yellow"))
        if self._live is None:
            return
        width, height = self._console.size
        if run is None:
            waiting = Line(f"{printable(self._log.run_id)}  waits to be admitted  {now - self._started:.1f} s", "dim")
            self._live.update(waiting, refresh=True)
        else:
            said = words(self._log.saying, self._console, width, height // 2)
            picture = portrait.moving(run, now, width, height - len(said) - 1, self._log.made)
            self._live.update(Group(picture, *([Line(), *said] if said else [])), refresh=True)

    def _hear(self, event: Event) -> None:
        if isinstance(event, RunEvent):
            self._tell(event)
        elif not self._quiet and not self._moving:
            self._say(event)

    def _say(self, piece: Spoken) -> None:
        """Where nothing moves, the words come line by line."""
        match piece:
            case Text():
                *lines, self._rest = (self._rest + piece.text).split("\n")
                for line in lines:
                    self._print_said(line)
            case CallStarted():
                self._flush()
                self._print_said(f"→ {piece.tool}")
            case Discarded():
                self._rest = ""
                self._print_said(f"(turn {piece.turn} breaks off, and is made again: what it said does not count)")

    def _flush(self) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._print_said(rest)

    def _print_said(self, line: str) -> None:
        self._console.print(Line(f"{'':>10}  │ {printable(line)}", "dim"))

    def _tell(self, event: RunEvent) -> None:
        """A line for each step, but not for what changed nothing."""
        before, self._before = self._before, facts(self._log.run)
        if self._quiet or self._moving or not changes(before, self._before):
            return
        self._flush()
        text = named(told(event.event, before, event.at), self._log.run)
        since = event.at - (self._log.run.opened_at if self._log.run is not None else event.at)
        self._console.print(Line(f"{since:8.3f} s  {printable(text)}"))


TAIL: Final = 8000
"""How many characters of what is being said are looked at for each picture."""


def words(saying: Sequence[Block], console: Console, width: int, height: int) -> list[Line]:
    """The end of what the model says now, as lines that fit."""
    text = Line()
    for block in saying:
        if text:
            text.append("\n")
        if block.kind == "tool_use":
            given = json.dumps(block.input, ensure_ascii=False) if block.asked else "…"
            text.append(f"→ {printable(block.tool)} ", "cyan").append(printable(given)[: 2 * width], "dim")
        else:
            text.append(printable(block.text[-TAIL:]), "dim italic" if block.kind == "thinking" else "")
    return list(text.wrap(console, width)[-height:]) if text else []
