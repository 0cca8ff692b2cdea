"""Whoever listens to one model call while it speaks: those who watch the run.

Responsible for: telling the attempts of a call apart. Must never: fail the call, whatever happens to a listener.
`ModelCalls` makes one for a call that somebody listens to, and `Thinker` feeds it.
"""

from __future__ import annotations

import logging
from typing import Any

from anabranch.agent.listening import Listening
from anabranch.agent.plan import BatchContext
from anabranch.agent.speaking import Speech

log = logging.getLogger(__name__)


class Hearing:
    """See the module. All attempts of one call."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._attempt, self._listening = "", Listening()
        self._deaf = False

    def event(self, context: BatchContext, event: dict[str, Any]) -> None:
        """An event of the provider's stream."""
        if self._deaf:
            return
        try:
            if context.attempt != self._attempt:
                self._attempt, self._listening = context.attempt, Listening()
            for piece in self._listening.feed(event):
                self._speech.hear(context, piece)
        except Exception:  # noqa: BLE001 - the model call goes on, whatever it was
            self._give_up(context)

    def end(self, context: BatchContext, whole: bool) -> None:
        """The attempt is over."""
        try:
            self._speech.end(context, whole)
        except Exception:  # noqa: BLE001 - the model call goes on, whatever it was
            self._give_up(context)

    def _give_up(self, context: BatchContext) -> None:
        self._deaf = True
        log.exception("run %s: what its model says can no longer be followed", context.run_id)
