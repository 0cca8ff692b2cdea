"""Which old results a model call leaves out, so that the conversation fits into the model's context. PURE.

An agent may choose that (`context="drop_tool_results"`). It follows from the run and its agent alone, turn by turn, so
whoever takes the run over sends the same bytes. A result that is left out stays left out, and they are left out in
big steps: each step begins the provider's cache anew. The model sees what is missing; the log keeps everything.

Newer models void what they thought after an earlier result was changed, and refuse a request that sends it back. So a
step leaves out, too, what was thought until then; what is thought later builds on the conversation as it then is.
https://docs.claude.com/en/docs/build-with-claude/preserved-thinking
"""

from __future__ import annotations

from typing import Final, NamedTuple

from anabranch.agent.prompt.estimate import Size, counted, size_of
from anabranch.agent.results import result_elsewhere
from anabranch.agent.state import Call, Result, Run, Turn
from anabranch.security.sealing import size_of as size_behind
from anabranch.specs import AgentSpec

FULL: Final = 0.75
"""The part of the context from which on results are left out ..."""
ENOUGH: Final = 0.4
"""... until no more than this is used ..."""
STEP: Final = 0.1
"""... if it frees at least so much: less is not worth reading everything anew."""
SMALL: Final = 400
"""Bytes of a result that is not worth it."""


class Dropped(NamedTuple):
    """Of how many turns, from the first on, the results are left out, and what was thought. `now`: since this call."""

    results: int = 0
    thoughts: int = 0
    now: bool = False


NOTHING: Final = Dropped()


def dropped(run: Run, agent: AgentSpec) -> Dropped:
    """For the call that `run` owes."""
    window = agent.context_window
    if agent.context != "drop_tool_results" or window is None:
        return NOTHING
    state, sizes = NOTHING, [_results_of(turn) for turn in run.turns]
    for number in range(1, len(run.turns) + 1):
        state = _step(state._replace(now=False), run.turns[:number], sizes[:number], window)
    return state if not _thinks_by_hand(agent) else state._replace(thoughts=0)


def _step(state: Dropped, turns: list[Turn], sizes: list[int], window: int) -> Dropped:
    """What the call after these turns leaves out. The last results are never left out: nobody has read them."""
    used = _used(state, turns, sizes)
    if used <= FULL * window:
        return state
    until, freed = state.results, 0
    while until < len(turns) - 1 and used - freed > ENOUGH * window:
        freed += sizes[until]
        until += 1
    return Dropped(until, len(turns), now=True) if freed >= STEP * window else state


def _used(state: Dropped, turns: list[Turn], sizes: list[int]) -> int:
    """Tokens of a conversation: counted by the provider, but for what came since, or was written before it was kept."""
    if known := counted(turns[-1]).tokens:
        return known + sizes[-1]
    return sum(sizes[state.results :]) + sum(size_of(turn.body).usual for turn in turns)


def _results_of(turn: Turn) -> int:
    """Tokens, about, of the results that can be left out."""
    sizes = [_size_of(call.result) for call in turn.calls.values() if call.result is not None]
    return sum(size.usual for size in sizes if not _is_small(size))


def _size_of(result: Result) -> Size:
    """Of what a tool said, wherever that lies; what the fold says in its stead is nothing."""
    if result.body is None:
        return Size(0)
    told = result_elsewhere(result.body)
    return size_of(result.body) if told is None else Size(size_behind(told.content_ref or told.content_sealed or ""))


def _is_small(size: Size) -> bool:
    return size.text + size.media <= SMALL


def is_small(result: Result) -> bool:
    """Whether a result stays although its turn's are left out."""
    return _is_small(_size_of(result))


def words_for(call: Call) -> str:
    """What the model is told instead of a result."""
    size = _size_of(call.result).text if call.result is not None else 0
    return f"[the result of {call.planned.tool}, about {size:,} bytes, was dropped to make room in the context]"


def _thinks_by_hand(agent: AgentSpec) -> bool:
    """Models whose thinking is turned on by a budget void nothing, and want their last thoughts back."""
    thinking = agent.options.get("thinking")
    return isinstance(thinking, dict) and thinking.get("type") == "enabled"
