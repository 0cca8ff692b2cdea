"""What is said of a turn while its model speaks, held against what the log says of it in the end. PURE.

Responsible for the promise of `events.py`: no text of two attempts is ever shown as one, none is shown twice, and when
the log has a turn's reply, what is left of it is told. So what the stream loses, or tells too late, only comes later.
The stream numbers the records of each attempt. Where one is missing, nothing more of that attempt is believed: what it
said stands in the log, or nowhere. Called by: the client and the commands, for runs that asked to be streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.reply.tokens import in_stream
from anabranch.agent.state import Run
from anabranch.events import CallAsked, CallStarted, Discarded, RunEvent, Spoken, Text, Thinking, blocks_of

HELD: Final = 20_000
"""How many records of turns that the log has not come to yet are kept."""


@dataclass(slots=True)
class Block:
    """What was told of a block of the reply: its text so far, or a call. `asked`: and its arguments."""

    kind: str
    text: str = ""
    tool: str = ""
    tool_use_id: str = ""
    input: Any = None
    asked: bool = False


class Turning:
    """One run. Feed it `delta` for each record of the stream, and `log` for each event of the log."""

    def __init__(self) -> None:
        self.turn = 0
        self.blocks: dict[int, Block] = {}  # of the attempt that is shown
        self._life: str | None = None
        self._owed: int | None = None
        self._replied = 0
        self._attempt: str | None = None
        self._next, self._whole = 0, True
        self._dead: set[str] = set()
        self._held: list[m.StreamDelta] = []

    def join(self, run: Run) -> None:
        """Its log has been read up to here."""
        self._life = run.life
        self._stands(run)

    # --- the stream -------------------------------------------------------------------------------------------------

    def delta(self, delta: m.StreamDelta) -> list[Spoken]:
        """What is new by a record of the stream."""
        if delta.turn <= self._replied or delta.attempt in self._dead:
            return []
        if delta.turn != self._owed:
            if len(self._held) < HELD:  # else there is a gap
                self._held.append(delta)
            return []
        news: list[Spoken] = []
        if delta.attempt != self._attempt:
            news = self._switch(delta)
        if delta.number > self._next:
            self._whole = False
        if delta.number < self._next or not self._whole:
            return news
        self._next = delta.number + 1
        return [*news, *self._told(delta)]

    def _switch(self, delta: m.StreamDelta) -> list[Spoken]:
        """Another attempt speaks: the one that began last is the one that is shown."""
        news = self._discard()
        self._attempt, self._next, self._whole, self.turn = delta.attempt, 0, True, delta.turn
        return news

    def _discard(self) -> list[Spoken]:
        if self._attempt is not None:
            self._dead.add(self._attempt)
            self._attempt = None
        shown, self.blocks = self.blocks, {}
        return [Discarded(self.turn)] if shown else []

    def _told(self, delta: m.StreamDelta) -> list[Spoken]:
        index = delta.index if delta.index is not None else -1
        match delta.type:
            case "discarded":
                return self._discard()
            case "text" | "thinking":
                return self._says(index, delta.type, delta.text or "")
            case "tool_use" | "tool_input":
                news = self._starts(index, delta.tool or "", delta.tool_use_id or "")
                return news + (self._asks(index, delta.input) if delta.type == "tool_input" else [])
        return []

    def _says(self, index: int, kind: str, text: str) -> list[Spoken]:
        if not text:
            return []
        self.blocks.setdefault(index, Block(kind)).text += text
        return [Text(self.turn, index, text) if kind == "text" else Thinking(self.turn, index, text)]

    def _starts(self, index: int, tool: str, tool_use_id: str) -> list[Spoken]:
        if index in self.blocks:
            return []
        self.blocks[index] = Block("tool_use", tool=tool, tool_use_id=tool_use_id)
        return [CallStarted(self.turn, index, tool, tool_use_id)]

    def _asks(self, index: int, given: Any) -> list[Spoken]:
        block = self.blocks[index]
        if block.asked:
            return []
        block.asked, block.input = True, given
        return [CallAsked(self.turn, index, block.tool, block.tool_use_id, given)]

    # --- the log ----------------------------------------------------------------------------------------------------

    def log(self, event: RunEvent, opened: list[dict[str, Any]] | None = None) -> tuple[list[Spoken], list[Spoken]]:
        """What is to be told before and after an event of the log; `opened` are the blocks of a sealed reply."""
        run = event.run
        if run is None:
            return [], []
        before: list[Spoken] = []
        if run.life != self._life:
            before = self._begin(run)
        elif (reply := _that_counts(event, run)) is not None and reply.turn > self._replied:
            before = self._settle(reply, opened, run.opening.request.stream_thinking is True)
        elif not run.open:
            before = self._discard()
        self._stands(run)
        return before, list(self._take_held())

    def _stands(self, run: Run) -> None:
        self._replied = max(self._replied, run.turns[-1].number if run.turns else 0)
        self._owed = run.turn if run.owed and run.open else None

    def _begin(self, run: Run) -> list[Spoken]:
        news = self._discard()
        self._life, self._replied = run.life, 0
        return news

    def _take_held(self) -> Iterator[Spoken]:
        if self._held and self._owed is not None:
            held, self._held = self._held, []
            for delta in held:
                yield from self.delta(delta)

    def _settle(self, reply: e.ModelReplied, opened: list[dict[str, Any]] | None, thinking: bool) -> list[Spoken]:
        """The turn's reply: what of it was not told yet, after what was told wrong is taken back."""
        news: list[Spoken] = []
        blocks = opened or blocks_of(reply.body)
        if self._attempt != in_stream(reply.attempt) or (blocks is not None and not self._agrees(blocks)):
            news = self._discard()
        self.turn = reply.turn
        for index, block in enumerate(blocks or []):
            news += self._rest(index, block, thinking)
        self._attempt, self.blocks = None, {}
        self._dead.clear()
        return news

    def _agrees(self, blocks: Sequence[dict[str, Any]]) -> bool:
        """Whether all that was told stands in the reply."""
        return all(index < len(blocks) and _stands_in(blocks[index], told) for index, told in self.blocks.items())

    def _rest(self, index: int, block: dict[str, Any], thinking: bool) -> list[Spoken]:
        kind = block.get("type")
        if kind == "text" or (kind == "thinking" and thinking):
            told = self.blocks.get(index)
            return self._says(index, kind, str(block.get(kind) or "")[len(told.text) if told is not None else 0 :])
        if kind == "tool_use":
            news = self._starts(index, str(block.get("name")), str(block.get("id")))
            return news + self._asks(index, block.get("input"))
        return []


def _stands_in(block: dict[str, Any], told: Block) -> bool:
    if told.kind == "tool_use":
        return bool(block.get("id") == told.tool_use_id)
    return str(block.get(told.kind) or "").startswith(told.text)


def _that_counts(event: RunEvent, run: Run) -> e.ModelReplied | None:
    """The reply, if the event is one and the fold has taken it."""
    reply = event.event
    if isinstance(reply, e.ModelReplied) and run.turns and run.turns[-1].attempt == reply.attempt:
        return reply
    return None
