"""What a model says on its way to `agent.stream`, for a run that asked for it.

Responsible for few records: one at once, then at most one piece of text every `EVERY_S`, and the next only when the
last is acknowledged; what comes meanwhile is merged into it. Must never hold up a model call, or take more memory than
`WAITING_BYTES` for it: what Kafka does not take in time is dropped, which the numbers show to whoever listens.
`hearing.py` says what is heard and when an attempt is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import orjson

from anabranch.agent.outbox import stream_record
from anabranch.agent.reply.pieces import Piece
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.tokens import in_stream
from anabranch.agent.state import Run
from anabranch.agent.station import Station
from anabranch.fields import SEALED
from anabranch.kafka.sent import Sent
from anabranch.messages import DeltaType, StreamDelta

if TYPE_CHECKING:
    from anabranch.security.seals import Sealer

log = logging.getLogger(__name__)

EVERY_S: Final = 0.05
"""How often somebody who watches hears more, at most: an eye sees no difference, and a token would cost a record."""
WAITING_BYTES: Final = 64 * 1024
"""Of one model call; a longer input is told without its arguments."""
HOLD_S: Final = 5.0
"""After a failure nothing is sent for so long."""
COMPLAIN_S: Final = 60.0


class Outlet:
    """The way out of one partition's speeches. Says, once a minute, that something was dropped."""

    def __init__(self, station: Station) -> None:
        self._station, self._steady = station, station.clockwork.steady
        self._held_until = self._complained_at = -float("inf")

    def send(self, run: Run, delta: StreamDelta) -> Sent | None:
        """On its way; None: it is dropped, for Kafka has failed just now."""
        if self._steady() < self._held_until:
            self.dropped("Kafka has just refused a record")
            return None
        return self._station.send(stream_record(self._station, run, delta))

    def failed(self, error: BaseException) -> None:
        self._held_until = self._steady() + HOLD_S
        self.dropped(str(error))

    def dropped(self, why: str) -> None:
        self._station.meters.stream_dropped.count()
        if self._steady() - self._complained_at >= COMPLAIN_S:
            self._complained_at = self._steady()
            log.warning("some of what models say is not told to those who watch: %s", why)


@dataclass(slots=True)
class Said:
    """What is to be told next: a piece, or how an attempt ended."""

    type: DeltaType
    index: int | None = None
    texts: list[str] = field(default_factory=list)
    tool: str | None = None
    tool_use_id: str | None = None
    input: str | None = None  # as JSON

    def delta(self, context: BatchContext, attempt: str, number: int) -> StreamDelta:
        text = "".join(self.texts) if self.texts else None
        told = StreamDelta(context.run_id, context.turn, attempt, self.type, text, self.tool, self.tool_use_id)
        told = replace(told, number=number, index=self.index)
        given = orjson.Fragment(self.input) if self.input is not None else None
        if context.sealer is None:
            return replace(told, input=given)
        return _sealed(told, self.input, context, context.sealer)


class Speech:
    """One model call, all of its attempts. Must be used in the loop's thread."""

    def __init__(self, run: Run, outlet: Outlet, steady: Callable[[], float]) -> None:
        self._run, self._outlet, self._steady = run, outlet, steady
        self._thinking = run.opening.request.stream_thinking is True
        self._of: str | None = None  # the attempt that is heard, as the log will call it; below, as the stream does
        self._attempt, self._number = "", 0
        self._context: BatchContext | None = None
        self._waiting: list[Said] = []
        self._bytes, self._full = 0, False
        self._under_way: Sent | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = -float("inf")

    def hear(self, context: BatchContext, piece: Piece) -> None:
        """The model has said this."""
        if piece.kind == "thinking" and not self._thinking:
            return
        if context.attempt != self._of:
            self._of, self._attempt = context.attempt, in_stream(context.attempt)
            self._context, self._number = context, 0
        self._add(piece)
        self._send_soon()

    def end(self, context: BatchContext, whole: bool) -> None:
        """The attempt is over: nothing more will come of it, and it counts only if it is `whole`."""
        if context.attempt != self._of:
            return  # nobody has heard anything of it
        self._waiting.append(Said("end" if whole else "discarded"))
        self._send()
        self._of = None

    def _add(self, piece: Piece) -> None:
        size = len(piece.text)
        if piece.kind == "tool_input" and size > WAITING_BYTES // 2:
            size = 0
        if self._full or self._bytes + size > WAITING_BYTES:
            self._drop()
            return
        self._bytes += size
        last = self._waiting[-1] if self._waiting else None
        if piece.kind in ("tool_use", "tool_input"):
            self._waiting.append(_of_call(piece, with_input=size > 0))
        elif last is not None and (last.type, last.index) == (piece.kind, piece.index):
            last.texts.append(piece.text)
        else:
            self._waiting.append(Said(piece.kind, piece.index, [piece.text]))

    def _drop(self) -> None:
        """From here on there is a gap, of one number, until what waits has been sent."""
        if not self._full:
            self._full = True
            self._outlet.dropped("Kafka does not take it as fast as they speak")

    def _send_soon(self) -> None:
        if self._timer is not None or self._under_way is not None or not self._waiting:
            return
        left = self._sent_at + EVERY_S - self._steady()
        if left <= 0:
            self._send()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._send)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        self._sent_at = self._steady()
        context = self._context
        assert context is not None, "something was said in some attempt"
        for each in waiting:
            sent = self._outlet.send(self._run, each.delta(context, self._attempt, self._number))
            self._number += 1
            if sent is not None:
                self._under_way = sent
        self._number += self._full
        self._full = False
        if waiting and self._under_way is not None:
            self._under_way.add_done_callback(self._acked)

    def _acked(self, sent: Sent) -> None:
        if sent is self._under_way:
            self._under_way = None
        if (error := sent.exception()) is not None:
            self._outlet.failed(error)
        if not sent.cancelled():
            self._send_soon()


def _sealed(told: StreamDelta, given: str | None, context: BatchContext, sealer: Sealer) -> StreamDelta:
    """The same, with what was said sealed; the tool's name is what the model says, unless it is one that there is."""
    seal = partial(sealer.seal, "stream")
    tool = told.tool if told.tool is None or told.tool in context.agent.tools else SEALED
    text_sealed = seal(orjson.dumps(told.text)) if told.text is not None else None
    input_sealed = seal(given.encode()) if given is not None else None
    return replace(told, tool=tool, text=None, text_sealed=text_sealed, input_sealed=input_sealed)


def _of_call(piece: Piece, with_input: bool) -> Said:
    block = piece.block
    waiting = Said(piece.kind, piece.index, tool=block.get("name"), tool_use_id=block.get("id"))
    if piece.kind == "tool_input" and with_input:
        with suppress(orjson.JSONDecodeError):  # its call will be rejected for it, and the log says so
            orjson.loads(piece.text)
            waiting.input = piece.text
    return waiting
