"""Whoever listens to one model call while it speaks: those who watch the run, and its calls that may begin.

Responsible for: telling the attempts of a call apart; of all but the first nothing begins early, so that a model that
breaks off again and again has its calls executed for nothing once. Must never: fail the call, whatever happens to a
listener. `ModelCalls` makes one for a call that somebody listens to, and `Thinker` feeds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from anabranch.agent.reply.pieces import Piece, Pieces
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.speaking import Speech

log = logging.getLogger(__name__)


Begin = Callable[[BatchContext, Piece], None]
"""Is told of a call that is complete."""


class Hearing:
    """See the module. All attempts of one call."""

    def __init__(self, speech: Speech | None, begin: Begin | None) -> None:
        self._speech, self._begin = speech, begin
        self._attempt, self._pieces = "", Pieces()
        self._deaf = self._has_begun = False

    def event(self, context: BatchContext, event: dict[str, Any]) -> None:
        """An event of the provider's stream."""
        if self._deaf:
            return
        try:
            if context.attempt != self._attempt:
                self._attempt, self._pieces = context.attempt, Pieces()
            for piece in self._pieces.feed(event):
                if self._speech is not None:
                    self._speech.hear(context, piece)
                if piece.kind == "tool_input" and self._begin is not None:
                    self._has_begun = True
                    self._begin(context, piece)
        except Exception:  # noqa: BLE001 - the model call goes on, whatever it was
            self._give_up(context)

    def end(self, context: BatchContext, whole: bool) -> None:
        """The attempt is over."""
        if self._has_begun:
            self._begin = None
        try:
            if self._speech is not None:
                self._speech.end(context, whole)
        except Exception:  # noqa: BLE001 - the model call goes on, whatever it was
            self._give_up(context)

    def _give_up(self, context: BatchContext) -> None:
        self._deaf = True
        log.exception("run %s: what its model says can no longer be followed", context.run_id)
