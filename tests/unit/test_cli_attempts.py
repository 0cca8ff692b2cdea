"""The attempts of a run's model calls as `runs show` tells of them, from events made by hand."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console
from tests.unit.test_cli_waterfall import T0, Log, spans

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.cli.picture import portrait
from anabranch.cli.picture.attempts import Attempts, Made
from anabranch.cli.picture.steps import facts, told
from anabranch.cli.picture.waterfall import draw, waterfall

BUSY = e.Tried("sonnet", T0 + 0.5, 0.1, "overload", "529: Overloaded")
CUT = e.Tried("sonnet", T0 + 1.0, 2.0, "broken", "the stream ended in the middle of the reply")
SPOKE = e.Tried("haiku", T0 + 4.0, 1.0)
PAID, USED = m.Usage(1000, 20, cost_usd=0.0033), m.Usage(1200, 50, cost_usd=0.0015)


class Told(Log):
    """Collects attempts as a run's log does."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = Attempts()

    def add(self, event: e.Event, at: float) -> Log:
        super().add(event, at)
        self.attempts.take(event, self.state.runs.get("r"))
        return self

    @property
    def made(self) -> list[Made]:
        return self.attempts.of(self.run)

    def discarded(self, at: float, attempt: str = "x", *tried: e.Tried, usage: m.Usage = PAID, turn: int = 1) -> Told:
        reason = tried[-1].reason or "" if tried else "it broke off"
        self.add(e.ModelDiscarded("r", "0", turn, attempt, usage, reason, None, tried), at)
        return self

    def answered(self, at: float, *tried: e.Tried, attempt: str = "a", turn: int = 1, outcome: Any = "final") -> Told:
        body = json.dumps({"model": "sonnet-20250101", "content": [], "stop_reason": "end_turn"}).encode()
        model = tried[-1].model if tried else None
        self.add(e.ModelReplied("r", "0", turn, attempt, outcome, (), USED, body, model=model, tried=tried), at)
        return self


def opened() -> Told:
    log = Told()
    log.opened()
    return log


def fell_back() -> Told:
    return opened().discarded(3.0, "x", BUSY, CUT).answered(5.0, BUSY, SPOKE)


def test_each_attempt_is_named_with_what_it_used() -> None:
    found = [(made.model, made.failure, made.took_s, made.usage) for made in fell_back().made]
    assert found == [
        ("sonnet", "overload", 0.1, None), ("sonnet", "broken", 2.0, PAID),
        ("sonnet", "overload", 0.1, None), ("haiku", None, 1.0, USED),
    ]  # fmt: skip


def test_each_attempt_has_a_bar_in_the_waterfall_below_its_turn() -> None:
    log = fell_back()
    rows = waterfall(log.run, T0 + 9, log.made).rows
    assert [row.label for row in rows] == ["admission", "turn 1", "sonnet", "sonnet", "sonnet", "haiku"]
    assert [row.note for row in rows[2:]] == ["overload", "broken", "overload", ""]
    assert spans(rows[3]) == {"model": (1.0, 3.0)}
    assert [row.outcome for row in rows[2:]] == ["error", "error", "error", "ok"]
    for width in (20, 50, 100):
        assert all(len(line.plain) <= max(50, width) + 4 for line in draw(waterfall(log.run, T0 + 9, log.made), width))


def test_a_workers_clock_that_is_wrong_moves_no_bar_out_of_its_turn() -> None:
    log = opened().discarded(3.0, "x", e.Tried("m", T0 + 5000, 1.0, "broken", "x")).answered(5.0)
    row = waterfall(log.run, T0 + 9, log.made).rows[2]
    assert spans(row) == {"model": (4.0, 5.0)}


def test_the_picture_says_model_time_tokens_cost_and_reason_of_each() -> None:
    log = fell_back()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(portrait.whole(log.run, T0 + 9, 140, log.made))
    text = console.export_text()
    assert "broken: the stream ended in the middle of the reply  (1,000 tokens in, 20 out, $0.0033)" in text
    assert "overload: 529: Overloaded" in text
    assert "replied  (1,200 tokens in, 50 out, $0.0015)" in text
    assert "1,000 in, 20 out thrown away · $0.0048" in text


def test_the_json_has_every_attempt() -> None:
    log = fell_back()
    attempts = portrait.as_json(log.run, T0 + 9, log.made)["attempts"]
    assert attempts[1] == {
        "turn": 1, "model": "sonnet", "outcome": "broken", "reason": CUT.reason, "times": 1,
        "start_s": 1.0, "took_s": 2.0,
        "usage": {"input_tokens": 1000, "output_tokens": 20, "cache_read_input_tokens": 0,
                  "cache_creation_input_tokens": 0, "cost_usd": 0.0033},
        "counted": True,
    }  # fmt: skip
    assert [each["outcome"] for each in attempts] == ["overload", "broken", "overload", "replied"]
    assert attempts[0]["usage"] is None


def test_what_the_json_says_of_attempts_adds_up_to_the_usage() -> None:
    log = fell_back()
    data = portrait.as_json(log.run, T0 + 9, log.made)
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        paid = sum(each["usage"][name] for each in data["attempts"] if each["usage"] and each["counted"])
        assert round(paid, 9) == round(data["usage"][name] + data["usage"]["discarded"][name], 9)


def test_turns_that_took_one_attempt_are_not_told_again() -> None:
    log = opened().answered(2.0)
    assert [(made.model, made.failure, made.at) for made in log.made] == [("sonnet-20250101", None, None)]
    assert [row.label for row in waterfall(log.run, T0 + 9, log.made).rows] == ["admission", "turn 1"]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(portrait.whole(log.run, T0 + 9, 140, log.made))
    assert "attempts of the model" not in console.export_text()


def test_attempts_that_go_on_are_seen_while_they_do() -> None:
    log = opened().discarded(61.0, "x", BUSY, BUSY, usage=m.Usage())
    assert [row.label for row in waterfall(log.run, T0 + 70, log.made).rows][2:] == ["sonnet", "sonnet"]
    for tried, said in ((BUSY, BUSY), "2 times"), ((BUSY,), "1 time"):
        event = e.ModelDiscarded("r", "0", 1, "x", m.Usage(), "529", None, tried)
        assert told(event, facts(log.run), T0) == f"turn 1: the model has failed {said}, and is asked again: 529"


def test_the_end_of_a_run_tells_why_its_last_attempts_failed() -> None:
    log = opened()
    refused = e.Tried("sonnet", T0 + 1, 0.5, "rejected")
    log.add(e.ModelFailed("r", "0", 1, "z", m.RunError("model_rejected", "400: no"), (BUSY, refused)), 2.0)
    assert [(made.failure, made.reason) for made in log.made] == [
        ("overload", "529: Overloaded"), ("rejected", "400: no"),
    ]  # fmt: skip


def test_the_reply_that_came_second_is_thrown_away_and_told_once() -> None:
    log = opened().answered(2.0, outcome="pause").answered(2.5, attempt="late")
    (_, second) = log.made
    assert (second.failure, second.is_counted) == ("surplus", False)
    log.discarded(2.6, "late", usage=USED)
    (_, second) = log.made
    assert (second.is_counted, second.usage) == (True, USED)


def test_what_is_told_behind_the_end_is_shown_and_not_counted() -> None:
    log = opened()
    log.add(e.RunCancelled("r", None, "enough"), 2.0)
    log.discarded(2.1, "x", e.Tried("sonnet", T0 + 1, 1.0, "ended", "the run has ended"))
    (made,) = log.made
    assert not made.is_counted
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(portrait.whole(log.run, T0 + 9, 160, log.made))
    assert "told when the run was over: not in its usage" in console.export_text()


def test_a_deadline_that_cut_a_call_short_tells_of_it_once() -> None:
    log = opened()
    ended = e.Tried("sonnet", T0 + 1, 599.0, "ended", "the run's deadline has passed")
    log.add(e.RunExpired("r", "0", "late", "x", PAID, None, (ended,)), 601.0)
    log.discarded(601.1, "x", ended)
    (made,) = log.made
    assert (made.usage, made.is_counted, made.failure) == (PAID, True, "ended")


def test_a_life_before_shows_nothing_of_its_own() -> None:
    log = opened().answered(2.0)
    opening = e.Opening(m.RunRequest(run_id="r", agent="analyst", input="hi"), "rev", T0 + 600, e.RunLimits(9), T0)
    log.add(e.RunRequested("r", "1", 1, 1, opening), 3.0)
    assert log.made == []
