"""Shows a run while it goes on: a picture that moves on a terminal, a line for each step elsewhere.

Responsible for stderr until the run has ended; it decides nothing about the run. Called by `run` and `runs watch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from anabranch.agent.answer import response
from anabranch.cli import portrait
from anabranch.cli.frame import printable
from anabranch.cli.logs import RunLog
from anabranch.cli.sealed import Told
from anabranch.cli.steps import changes, facts, named, told
from anabranch.view import RunEvent

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

    async def catch_up(self) -> None:
        """Go through what has happened already."""
        async for event in self._log.to_end():
            self._tell(event)

    async def until(self, over: Callable[[], bool]) -> None:
        """Show what happens until the run has ended, or `over()` says so."""
        with self._live or nullcontext():
            while not over() and not self._ended():
                self._draw()
                async for event in self._log.read(FRAME_S):
                    self._tell(event)

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
            self._console.print(Text(_HINT, "yellow"))
        if self._live is None:
            return
        width, height = self._console.size
        if run is None:
            waiting = Text(f"{printable(self._log.run_id)}  waits to be admitted  {now - self._started:.1f} s", "dim")
            self._live.update(waiting, refresh=True)
        else:
            self._live.update(portrait.moving(run, now, width, height, self._log.made), refresh=True)

    def _tell(self, event: RunEvent) -> None:
        """A line for each step, but not for what changed nothing."""
        before, self._before = self._before, facts(self._log.run)
        if self._quiet or self._moving or not changes(before, self._before):
            return
        text = named(told(event.event, before, event.at), self._log.run)
        since = event.at - (self._log.run.opened_at if self._log.run is not None else event.at)
        self._console.print(Text(f"{since:8.3f} s  {printable(text)}"))
