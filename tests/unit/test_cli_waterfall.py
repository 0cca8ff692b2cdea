"""A run as bars and as words, from events made by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import fold
from anabranch.agent.answer import response
from anabranch.agent.reply.referring import referring
from anabranch.agent.state import Partition, Run
from anabranch.cli.picture import portrait
from anabranch.cli.picture.steps import changes, facts, named, told
from anabranch.cli.picture.waterfall import Bar, Row, Waterfall, clamped, draw, legend, waterfall

T0 = 1_000_000.0


class Log:
    """Folds events of run `r`; times are seconds after T0."""

    def __init__(self) -> None:
        self.state, self.offset = Partition(), 0

    @property
    def run(self) -> Run:
        return self.state.runs["r"]

    def add(self, event: e.Event, at: float) -> Log:
        fold.apply(self.state, event, self.offset, T0 + at)
        self.offset += 1
        return self

    def opened(self, at: float = 0.5, requested: float = 0.0) -> Log:
        request = m.RunRequest(run_id="r", agent="analyst", input="hi")
        opening = e.Opening(request, "rev", T0 + 600, e.RunLimits(9), T0 + requested)
        return self.add(e.RunRequested("r", "0", 0, 0, opening), at)

    def replied(self, at: float, *plan: e.PlannedCall, turn: int = 1, outcome: Any = "calls") -> Log:
        body = json.dumps({"content": [{"type": "text", "text": "the answer"}], "stop_reason": "end_turn"}).encode()
        usage = m.Usage(100, 10)
        return self.add(e.ModelReplied("r", "0", turn, "a", outcome, plan, usage, body), at)

    def returned(self, name: str, at: float, started: float, finished: float, outcome: Any = "ok") -> Log:
        result = {"content": "no\nway", "started_at": T0 + started, "finished_at": T0 + finished, "tries": 2}
        return self.add(e.ToolReturned("r", "0", call_id(name), outcome, json.dumps(result).encode()), at)


def call_id(name: str) -> str:
    return f"r/1.a/{name}"


def call(name: str, **more: Any) -> e.PlannedCall:
    return e.PlannedCall(call_id(name), f"toolu_{name}", f"get_{name}", "io", **more)


def spans(row: Row) -> dict[str, tuple[float, float]]:
    return {bar.phase: (round(bar.start, 3), round(bar.end, 3)) for bar in row.bars}


def done() -> Log:
    log = Log().opened().replied(1.0, call("a"), call("b"))
    log.returned("a", 2.0, 1.2, 1.9).returned("b", 3.0, 1.1, 2.9, "error")
    return log.replied(4.0, turn=2, outcome="final")


def test_a_run_is_its_admission_its_turns_and_their_calls_in_order() -> None:
    picture = waterfall(done().run, T0 + 99)
    assert [row.label for row in picture.rows] == ["admission", "turn 1", "get_a", "get_b", "turn 2"]
    assert [row.outcome for row in picture.rows] == ["ok", "ok", "ok", "error", "ok"]
    admission, first, a, b, last = picture.rows
    assert spans(admission) == {"admission": (0.0, 0.5)}
    assert spans(first) == {"model": (0.5, 1.0)}
    assert spans(a) == {"wait": (1.0, 1.2), "run": (1.2, 1.9), "return": (1.9, 2.0)}
    assert spans(b) == {"wait": (1.0, 1.1), "run": (1.1, 2.9), "return": (2.9, 3.0)}
    assert spans(last) == {"model": (3.0, 4.0)}
    assert picture.length == pytest.approx(4.0)


def test_a_call_that_began_while_its_model_spoke_is_shown_where_it_ran() -> None:
    """Its result counts a moment after the reply: it cannot have run in between."""
    log = Log().opened().replied(3.0, call("a"), call("b"), call("c"))
    log.returned("a", 3.01, 1.0, 1.4).returned("b", 3.2, 2.5, 3.1).returned("c", 3.01, -70.0, -69.0)
    a, b, c = waterfall(log.run, T0 + 4).rows[2:5]
    assert spans(a) == {"wait": (1.0, 1.0), "run": (1.0, 1.4), "return": (1.4, 3.01)}
    assert spans(b)["run"] == (2.5, 3.1)
    assert spans(c)["run"] == (0.5, 1.5)  # by a clock that is behind, but not before the model was asked


def test_what_is_not_over_goes_on_until_now() -> None:
    log = Log().opened().replied(1.0, call("a"), call("b")).returned("a", 2.0, 1.2, 1.9)
    *_, b = waterfall(log.run, T0 + 5).rows
    assert (b.outcome, spans(b)) == ("open", {"out": (1.0, 5.0)})
    [_, thinking] = waterfall(Log().opened().run, T0 + 3).rows
    assert (thinking.label, thinking.outcome, spans(thinking)) == ("turn 1", "open", {"model": (0.5, 3.0)})


def test_the_legend_explains_a_call_that_is_not_over_where_there_is_one() -> None:
    is_open = Log().opened().replied(1.0, call("a"))
    assert "▒▒ waits or runs" in legend(waterfall(is_open.run, T0 + 2)).plain
    assert "▒" not in legend(waterfall(done().run, T0 + 99)).plain


def test_a_cancelled_run_says_so_once() -> None:
    log = Log().opened().add(e.RunCancelled("r", None, "enough"), 2.0)
    assert portrait.error_text(response(log.run)).plain == "cancelled: enough"


def test_a_run_that_failed_at_the_model_shows_that_call() -> None:
    log = Log().opened().add(e.ModelFailed("r", "0", 1, "a", m.RunError("model_unavailable", "no")), 2.0)
    *_, row = waterfall(log.run, T0 + 9).rows
    assert (row.label, row.outcome, spans(row)) == ("turn 1", "error", {"model": (0.5, 2.0)})


def test_a_cancelled_run_shows_its_unfinished_calls_up_to_its_end() -> None:
    log = Log().opened().replied(1.0, call("a")).add(e.RunCancelled("r", None, "enough"), 2.0)
    *_, row = waterfall(log.run, T0 + 9).rows
    assert (row.outcome, spans(row)) == ("unknown", {"out": (1.0, 2.0)})


def test_calls_that_never_ran_say_so() -> None:
    first, second = call("a", rejected="there is no tool"), call("b", after=[call_id("a")])
    log = Log().opened().replied(1.0, first, second)
    rows = waterfall(log.run, T0 + 2).rows
    assert [(row.label, row.outcome, row.note) for row in rows[2:4]] == [
        ("get_a", "error", "rejected"),
        ("get_b", "error", "not run"),
    ]


@pytest.mark.parametrize(
    ("started", "finished", "expected"),
    [
        (2.0, 3.0, (2.0, 3.0)),  # clocks agree
        (-50.0, -49.0, (1.0, 2.0)),  # the worker's is behind: moved, its length kept
        (70.0, 71.0, (4.0, 5.0)),  # ahead
        (0.0, 100.0, (1.0, 5.0)),  # longer than the broker saw
        (3.0, 2.0, (3.0, 3.0)),  # backwards
    ],
)
def test_a_workers_clock_is_moved_to_where_the_broker_saw_it(
    started: float, finished: float, expected: tuple[float, float]
) -> None:
    assert clamped(started, finished, 1.0, 5.0) == expected


@pytest.mark.parametrize("width", [20, 37, 40, 49, 50, 80, 100, 300])
@pytest.mark.parametrize("length", [10.0, 36_000.0])
def test_every_line_fits_and_what_ran_is_seen_however_short_it_was(width: int, length: float) -> None:
    rows = (
        Row("turn 1", "ok", (Bar("model", 0.0, 0.0001),)),
        Row(
            "a_tool_with_a_very_long_name_indeed",
            "timeout",
            (Bar("wait", 0.0, length), Bar("run", length, length)),
            "",
            "c",
        ),
    )
    lines = [line.plain for line in draw(Waterfall(rows, length), width)]
    assert all(len(line) <= max(width, 37) for line in lines)
    assert "▓" in lines[1]
    assert "░█" in lines[2]
    marks = lines[0].split()
    assert (marks[0], marks[-2:]) == ("0.00", [f"{length:.2f}", "seconds"]), "no mark stands in another one"


def test_the_picture_says_how_it_ended_and_cannot_be_used_to_send_escape_sequences() -> None:
    run = Log().opened().add(e.RunCancelled("r", None, "enough \x1b[2J"), 2.0).run
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(portrait.whole(run, T0 + 3, 100))
    text = console.export_text()
    assert "cancelled: enough ?[2J" in text


def test_what_lies_in_the_store_is_shown_by_its_reference() -> None:
    """Times and outcomes need no look into it."""
    log, lies = Log().opened(), f"sha256:{'a' * 64};900000"
    log.add(e.ModelReplied("r", "0", 1, "a", "calls", (call("a"),), m.Usage(), b"{}"), 1.0)
    result = json.dumps({"content_ref": lies, "started_at": T0 + 1.25, "finished_at": T0 + 1.75}).encode()
    returned = e.ToolReturned("r", "0", call_id("a"), "error", result)
    assert told(returned, facts(log.run), T0 + 2).endswith(f"error in 0.50 s: (in the store: {lies})")
    log.add(returned, 2.0)
    reply = referring(b'{"stop_reason":"end_turn","content":[]}', lies, {})
    run = log.add(e.ModelReplied("r", "0", 2, "a", "final", (), m.Usage(), reply), 3.0).run
    data = portrait.as_json(run, T0 + 9)
    assert data["response"]["content_ref"] == lies
    assert [row["run_s"] for row in data["rows"] if row["kind"] == "call"] == [pytest.approx(0.5)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(portrait.whole(run, T0 + 9, 120))
    assert f"(in the store: {lies})" in console.export_text()


def test_the_json_has_the_times_of_each_call_and_the_response() -> None:
    data = portrait.as_json(done().run, T0 + 9)
    assert (data["status"], data["turns"], data["response"]["output"]) == ("completed", 2, "the answer")
    [a, _] = [row for row in data["rows"] if row["kind"] == "call"]
    assert (a["name"], a["queue_s"], a["run_s"]) == ("get_a", pytest.approx(0.2), pytest.approx(0.7))


def test_each_event_is_told_with_what_it_changed() -> None:
    log, lines = Log(), []

    def step(event: e.Event, at: float) -> None:
        before = facts(log.state.runs.get("r"))
        log.add(event, at)
        found = changes(before, facts(log.state.runs.get("r")))
        lines.append((named(told(event, before, T0 + at), log.run), [named(change, log.run) for change in found]))

    request = m.RunRequest(run_id="r", agent="analyst", input="hi")
    step(e.RunRequested("r", "0", 0, 0, e.Opening(request, "rev", T0 + 600, e.RunLimits(9), T0)), 0.5)
    step(e.ModelReplied("r", "0", 1, "a", "calls", (call("a"), call("b")), m.Usage(5, 6), b"{}"), 1.0)
    step(e.CallDispatched("r", "0", call_id("a"), "token"), 1.1)
    result = json.dumps({"content": "no\nway", "started_at": T0, "finished_at": T0 + 2, "tries": 2}).encode()
    step(e.ToolReturned("r", "0", call_id("b"), "error", result), 2.0)
    step(e.ToolReturned("r", "0", call_id("b"), "ok", result), 2.0)
    step(e.RunCancelled("r", None, "enough"), 3.0)
    assert lines == [
        ("admitted after 0.50 s: agent analyst", ["the run opens (life 0)", "turn 1 owes a model call"]),
        (
            "turn 1: the model replied after 0.50 s: 2 calls: get_a, get_b",
            ["turn 1 has its reply", "a batch of 2 opens: 2 to be published", "usage +5 in, +6 out"],
        ),
        ("get_a is claimed for publication", ["get_a is claimed by who is to publish it"]),
        ("get_b: error in 2.00 s, 2 tries: no way", ["get_b has its result", "1 of 2 to come"]),
        ("get_b: ok in 2.00 s, 2 tries", []),
        ("enough", ["the run is cancelled"]),
    ]
