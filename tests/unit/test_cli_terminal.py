"""Nothing that others have said makes a terminal do anything, whichever command shows it.

Responsible for: `cli/terminal.py`, and that the commands print through it. Called by: pytest.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from tests.support import builders as b

from anabranch import messages as m
from anabranch.agent.state import Run
from anabranch.cli import output
from anabranch.cli.loglines import JsonLine, OneLine
from anabranch.cli.picture import portrait, steps
from anabranch.cli.terminal import printable, printable_json
from anabranch.events import RunEvent

EVIL = "\x1b]0;evil\x07\x9b2J\x7f\u202eabc"
HARMLESS = "a\u00a0b\tc\n👩\u200d👧 می\u200cخواهم"


def is_harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\x7f\u202e")


def test_what_a_terminal_obeys_is_shown_as_question_marks_and_all_else_as_it_is() -> None:
    assert printable(EVIL) == "?]0;evil??2J??abc"
    assert printable(HARMLESS) == HARMLESS
    assert printable("half \ud800") == "half ?"


def test_json_says_the_same_with_escapes() -> None:
    written = printable_json(json.dumps({"x": EVIL}, ensure_ascii=False))
    assert is_harmless(written)
    assert json.loads(written) == {"x": EVIL}


def run_of(*events: Any) -> Run:
    return b.folded(b.requested(), *events).runs["r"]


def drawn(run: Run) -> str:
    file = io.StringIO()
    Console(file=file, width=200, color_system=None).print(portrait.whole(run, 10.0, 100))
    return file.getvalue()


@pytest.mark.parametrize(
    "event",
    [
        b.calls(b.planned(0, tool=EVIL)),
        replace(b.cancelled(), reason=EVIL),
        replace(b.failed(), error=m.RunError(EVIL, EVIL)),
        replace(b.unknown(), type=EVIL, reason=EVIL),
        b.replied("final", body=b.message([b.text(EVIL)])),
    ],
)
def test_a_run_is_shown_and_replayed_without_obeying_it(event: Any) -> None:
    run = run_of(event)
    assert is_harmless(drawn(run))
    seen = RunEvent(getattr(event, "type", "x"), 1.0, 1, event, run)
    lines = steps.replayed(seen, None, steps.facts(run), run, 0.0)
    assert is_harmless("".join(line.plain for line in lines))


def test_messages_and_tables_and_json_obey_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.print_table(("name",), [(EVIL,)])
    output.print_json({"x": EVIL})
    told = capsys.readouterr()
    assert is_harmless(told.out + told.err)
    assert "abc" in told.err


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_made_printable_on_a_terminal_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    file.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", file)
    output.print_answer("a\x9bb\u200dc")
    assert file.getvalue() == ("a?b\u200dc\n" if terminal else "a\x9bb\u200dc\n")


@pytest.mark.parametrize("form", [OneLine, JsonLine])
def test_a_line_of_the_log_obeys_nobody(form: type[OneLine]) -> None:
    record = logging.makeLogRecord({"msg": "no %s", "args": (EVIL,), "run_id": EVIL, "name": "x"})
    assert is_harmless(form().format(record))
