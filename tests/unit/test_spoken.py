"""What somebody hears of a turn, whatever the stream loses, doubles or tells too late: in the end, exactly the reply.

Responsible for: `spoken.py`. Must never: reach for a broker.
Called by: pytest.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.reply.tokens import in_stream
from anabranch.agent.state import Partition
from anabranch.events import CallAsked, CallStarted, Discarded, RunEvent, Spoken, Text, Thinking
from anabranch.spoken import Turning

OPENS = b.opening(request=b.request(stream=True))
BLOCKS = [b.text("Let me look."), b.tool_use("tu0", "t", {"n": 1}), b.text("And there.")]
REPLY = b.calls(b.planned(0, tool_use_id="tu0"), body=b.message(BLOCKS, "tool_use"))


class Listener:
    """The log and the stream of one run, as they reach somebody, and what is heard of it."""

    def __init__(self, opens: e.Opening = OPENS) -> None:
        self.turning, self.state = Turning(), Partition(next_request=0)
        self.heard: list[Spoken] = []
        self.log(b.requested(opens=opens))

    def log(self, event: e.Event) -> None:
        b.folded(event, state=self.state)
        seen = RunEvent("", 1.0, self.state.position - 1, event, self.state.runs.get(b.RUN))
        before, after = self.turning.log(seen)
        self.heard += [*before, *after]

    def say(self, *deltas: m.StreamDelta) -> None:
        for delta in deltas:
            self.heard += self.turning.delta(delta)

    def take(self) -> list[Spoken]:
        taken, self.heard = self.heard, []
        return taken


def attempt(name: str, *pieces: tuple[str, int, str], turn: int = 1) -> list[m.StreamDelta]:
    """An attempt's records: texts, and calls with their tool_use ids."""
    made: list[m.StreamDelta] = []
    for number, (kind, index, value) in enumerate(pieces):
        of_call: dict[str, Any] = {"tool": "t", "tool_use_id": value} if kind.startswith("tool") else {"text": value}
        if kind == "tool_input":
            of_call["input"] = {"n": 1}
        made.append(m.StreamDelta(b.RUN, turn, in_stream(name), kind, number=number, index=index, **of_call))  # type: ignore[arg-type]
    return made


ALL = (
    ("text", 0, "Let me "), ("text", 0, "look."), ("tool_use", 1, "tu0"), ("tool_input", 1, "tu0"), ("text", 2, "And"),
    ("text", 2, " there."), ("end", 0, ""),
)  # fmt: skip


def counted(heard: list[Spoken]) -> list[Any]:
    """What is left after what was discarded, as blocks."""
    blocks: dict[int, Any] = {}
    for piece in heard:
        match piece:
            case Discarded():
                blocks.clear()
            case Text() | Thinking():
                blocks[piece.block] = blocks.get(piece.block, "") + piece.text
            case CallStarted():
                assert piece.block not in blocks, "a call is started once"
                blocks[piece.block] = [piece.tool_use_id]
            case CallAsked():
                assert len(blocks[piece.block]) == 1, "a call is asked once"
                blocks[piece.block].append(piece.input)
    return [blocks[index] for index in sorted(blocks)]


WHOLE = ["Let me look.", ["tu0", {"n": 1}], "And there."]


def test_what_is_said_is_heard_at_once_and_the_reply_adds_nothing() -> None:
    listener = Listener()
    listener.say(*attempt("att", *ALL))
    assert counted(listener.heard) == WHOLE
    assert len(listener.take()) == 6
    listener.log(REPLY)
    assert listener.take() == []


def test_a_reply_that_the_stream_said_nothing_of_is_heard_whole() -> None:
    listener = Listener()
    listener.log(REPLY)
    assert listener.take() == [
        Text(1, 0, "Let me look."), CallStarted(1, 1, "t", "tu0"), CallAsked(1, 1, "t", "tu0", {"n": 1}),
        Text(1, 2, "And there."),
    ]  # fmt: skip


def test_two_attempts_are_never_heard_as_one() -> None:
    """Neither if the first one told that it broke off, nor if its worker was killed and cannot."""
    for told in (True, False):
        listener = Listener()
        listener.say(*attempt("dead", ("text", 0, "Let us "), *([("discarded", 0, "")] if told else [])))
        listener.say(*attempt("att", ("text", 0, "Let me ")))
        assert listener.take() == [Text(1, 0, "Let us "), Discarded(1), Text(1, 0, "Let me ")]
        listener.say(m.StreamDelta(b.RUN, 1, in_stream("dead"), "text", "zombie", number=1, index=0))
        assert listener.take() == []


def test_of_two_that_speak_at_once_the_one_counts_whose_reply_is_in_the_log() -> None:
    listener = Listener()
    listener.say(*attempt("att", *ALL[:2]), *attempt("zombie", ("text", 0, "Let them ")))
    listener.log(REPLY)
    assert listener.heard[2:4] == [Discarded(1), Text(1, 0, "Let them ")]
    assert listener.heard[4] == Discarded(1)
    assert counted(listener.heard) == WHOLE


def test_what_comes_behind_a_gap_is_not_heard_until_the_log_has_it() -> None:
    listener = Listener()
    deltas = attempt("att", *ALL)
    listener.say(deltas[0], *deltas[2:])
    assert listener.take() == [Text(1, 0, "Let me ")]
    listener.log(REPLY)
    assert listener.take()[0] == Text(1, 0, "look.")


def test_who_comes_late_and_missed_the_beginning_hears_the_turn_when_it_is_over() -> None:
    listener = Listener()
    listener.say(*attempt("att", *ALL)[2:])
    assert listener.heard == []
    listener.log(REPLY)
    assert counted(listener.heard) == WHOLE


def test_the_next_turn_is_not_heard_before_the_log_has_come_to_it() -> None:
    listener = Listener()
    listener.say(*attempt("next", ("text", 0, "Done"), turn=2))
    assert listener.take() == []
    listener.log(REPLY)
    listener.take()
    listener.log(b.returned(0))
    assert listener.take() == [Text(2, 0, "Done")]
    listener.say(*attempt("att", *ALL))
    assert listener.take() == []


def test_a_run_that_ends_in_mid_turn_takes_back_what_was_said_of_it() -> None:
    listener = Listener()
    listener.say(*attempt("att", *ALL[:2]))
    listener.take()
    listener.log(b.cancelled())
    assert listener.take() == [Discarded(1)]


def test_thinking_is_brought_in_only_for_those_who_asked() -> None:
    thought = b.message([{"type": "thinking", "thinking": "hm", "signature": "s"}, b.text("Yes")], "end_turn")
    for asked, first in ((None, Text(1, 1, "Yes")), (True, Thinking(1, 0, "hm"))):
        listener = Listener(b.opening(request=b.request(stream=True, stream_thinking=asked)))
        listener.log(b.replied(body=thought))
        assert listener.take()[0] == first


@given(st.data())
def test_whatever_the_stream_does_what_counts_in_the_end_is_the_reply(data: st.DataObject) -> None:
    """Loss, copies, attempts that break off with and without a word, zombies in between, and a late log."""
    others = data.draw(st.lists(st.sampled_from(["a", "b"]), unique=True))
    lines = [[*attempt(name, ("text", 0, "Let us"), ("tool_use", 1, "tuX"), ("text", 2, "x"))] for name in others]
    for line in lines:
        if data.draw(st.booleans()):
            line.append(m.StreamDelta(b.RUN, 1, line[0].attempt, "discarded", number=3))
    lines.append(attempt("att", *ALL))
    listener = Listener()
    while any(lines):
        line = data.draw(st.sampled_from([line for line in lines if line]))
        delta = line.pop(0)
        for _ in range(data.draw(st.sampled_from([0, 1, 1, 1, 2]))):
            listener.say(delta)
        if data.draw(st.integers(0, 9)) == 0:
            break
    listener.log(REPLY)
    assert counted(listener.heard) == WHOLE
    listener.say(*[delta for line in lines for delta in line])
    assert counted(listener.heard) == WHOLE
