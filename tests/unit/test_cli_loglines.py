"""What an operator reads on stderr: what each record is about, no secrets, and every message once.

Responsible for: `cli/loglines.py`. Must never: reach for a broker. Called by: pytest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.bench import ToolBench, call
from tests.support.told import SAMPLED, TRACE
from tests.support.wait import until

from anabranch import App, references
from anabranch.about import TOPIC, WORKER
from anabranch.cli.loglines import CHAIN, WINDOW_S, JsonLine, OneLine, Repeats, Shows
from anabranch.security.redaction import Redaction

COORDINATOR = "aiokafka.consumer.group_coordinator"


@dataclass
class Screen:
    """The lines that come through, with a clock of its own."""

    now: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._repeats, self._form = Repeats(lambda: self.now), OneLine(form="{logger}: {message}")

    def log(self, name: str, message: str, *arguments: object, level: int = logging.ERROR) -> None:
        record = logging.LogRecord(name, level, __file__, 1, message, arguments, None)
        if self._repeats.filter(record):
            self.lines.append(self._form.format(record))


def test_a_message_of_aiokafka_is_shown_once_in_ten_seconds_and_then_with_the_number_of_its_likes() -> None:
    screen = Screen()
    for tenth in range(105):
        screen.now = tenth / 10
        screen.log(COORDINATOR, "Heartbeat send request failed: %s. Will retry.", "NodeNotReadyError")
    said = f"{COORDINATOR}: Heartbeat send request failed: NodeNotReadyError. Will retry."
    assert screen.lines == [said, f"{said} (and 99 more like it in the meantime)"]


def test_messages_that_differ_in_numbers_alone_count_as_the_same() -> None:
    screen = Screen()
    for partition in range(24):
        screen.log(COORDINATOR, "OffsetCommit failed for group %s on partition %d", "shop.agents", partition)
    screen.log(COORDINATOR, "OffsetCommit failed for group %s on partition %d", "shop.tools.io", 0)
    assert len(screen.lines) == 2


def test_a_store_that_is_away_is_told_of_once_whatever_waits_for_it() -> None:
    screen = Screen()
    for number in range(200):
        reference = references.name_of(b"%d" % number)
        screen.log("anabranch.store", "%s; trying again", f"{reference} cannot be had: refused in {number}.5ms")
    assert len(screen.lines) == 1


def test_the_same_words_from_elsewhere_or_of_another_level_are_another_message() -> None:
    screen = Screen()
    screen.log("aiokafka", "no connection")
    screen.log("aiokafka.client", "no connection")
    screen.log("aiokafka", "no connection", level=logging.WARNING)
    assert len(screen.lines) == 3


def test_what_our_roles_say_is_never_held_back() -> None:
    screen = Screen()
    for _ in range(3):
        screen.log("anabranch.agent.owner", "run x is parked")
    assert len(screen.lines) == 3


def test_a_message_that_stopped_is_news_when_it_comes_again() -> None:
    screen = Screen()
    screen.log("aiokafka", "no connection")
    screen.now = 5 * WINDOW_S
    screen.log("aiokafka", "no connection")
    assert screen.lines == ["aiokafka: no connection"] * 2


# --- what a line says -----------------------------------------------------------------------------------------------


class Busy:
    """What a task is busy with."""

    def about(self) -> dict[str, object]:
        return {"run_id": "r-1", "call_id": "r-1/1.a/0", "partition": 3, "trace_id": "4bf9", "tenant": None}


@pytest.fixture
def busy() -> Iterator[None]:
    worker, topic = WORKER.set("tool-1"), TOPIC.set(Busy())
    yield
    WORKER.reset(worker)
    TOPIC.reset(topic)


def record_of(message: str, *arguments: object, error: BaseException | None = None, **extra: object) -> Any:
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("anabranch.x", logging.WARNING, __file__, 1, message, arguments, info)
    record.created, record.msecs = 0.5, 500.0
    vars(record).update(extra)
    return record


def raised(text: str) -> ValueError:
    try:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ValueError(text) from error
    except ValueError as error:
        return error


@pytest.mark.usefixtures("busy")
def test_a_readable_line_says_what_it_is_about_at_its_end() -> None:
    line = OneLine().format(record_of("no\nlimit %d", 5, partition=7))
    about = "run_id=r-1 call_id=r-1/1.a/0 partition=7 trace_id=4bf9"
    assert line == f"1970-01-01T00:00:00.500Z WARNING anabranch.x: no | limit 5 [{about}]"


@pytest.mark.usefixtures("busy")
def test_a_json_line_is_an_object_with_everything() -> None:
    line = JsonLine().format(record_of("no\nlimit %d", 5, partition=7, attempt=2, error=raised("x"), odd=object))
    assert "\n" not in line
    told = json.loads(line)
    exception = told.pop("exception")
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: x")
    assert told == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "anabranch.x",
        "message": "no\nlimit 5",
        "worker": "tool-1",
        "run_id": "r-1",
        "call_id": "r-1/1.a/0",
        "partition": 7,
        "trace_id": "4bf9",
        "attempt": 2,
        "odd": "<class 'object'>",
    }


@pytest.mark.parametrize("odd", [2**70, {"n": [2**70]}])
def test_a_json_line_is_one_whatever_a_tool_logs(odd: object) -> None:
    line = JsonLine().format(record_of("half a pair \ud800\nand more", odd=odd))
    assert "\n" not in line
    assert line.isascii()
    told = json.loads(line)
    assert (told["message"], told["level"]) == ("half a pair \ud800\nand more", "warning")


@pytest.mark.parametrize("form", [OneLine, JsonLine])
def test_what_was_said_is_shown_where_that_is_switched_on_alone(form: type[OneLine]) -> None:
    record = record_of("t failed: ValueError", error=raised("card 4111"), content="card 4111 is unknown")
    hidden, shown = form(Shows()).format(record), form(Shows(content=True)).format(record)
    assert "4111" not in hidden
    assert "test_cli_loglines.py" in hidden, "where it happened is no content"
    assert "KeyError: (" in hidden
    assert "card 4111 is unknown" in shown
    assert "ValueError: card 4111" in shown


def in_a_circle() -> ValueError:
    error = raised("card 4111")
    assert error.__cause__ is not None
    error.__cause__.__cause__ = error
    return error


def in_a_long_line() -> ValueError:
    error = ValueError("card 4111")
    for _ in range(5000):
        after = ValueError("card 4111")
        after.__context__ = error
        error = after
    return error


@pytest.mark.parametrize("error", [in_a_circle(), in_a_long_line()], ids=["a circle", "a long line"])
def test_errors_that_name_one_another_without_end_are_told_of_each_once(error: ValueError) -> None:
    line = OneLine().format(record_of("t failed: ValueError", error=error, content="card 4111 is unknown"))
    assert 2 <= line.count("Traceback") <= CHAIN
    assert line.endswith("ValueError: (what it says is shown with ANABRANCH_LOG_CONTENT)")
    assert "4111" not in line


@pytest.mark.parametrize("form", [OneLine, JsonLine])
def test_secrets_appear_nowhere_in_a_line(form: type[OneLine]) -> None:
    secret = 'pass"wörd'
    record = record_of("login with %r", {"password": secret}, error=raised(secret), content=secret, token=secret)
    line = form(Shows(Redaction([secret]), content=True)).format(record)
    assert "wörd" not in line
    assert "********" in line


class Unsayable:
    def __str__(self) -> str:
        raise KeyError("x")

    __repr__ = __str__


def circle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["itself"] = made
    return made


@pytest.mark.parametrize("form", [OneLine, JsonLine])
@pytest.mark.parametrize(
    "odd",
    [
        {"odd": circle()},
        {"odd": [Unsayable()]},
        {"run_id": Unsayable()},
        {"content": Unsayable()},
        {(1, 2): 2**70},
        {"odd": float("nan")},
    ],
    ids=["a circle", "what has no text", "a field without text", "content without text", "a name that is none", "nan"],
)
def test_a_record_is_told_whatever_is_given_with_it(form: type[OneLine], odd: dict[Any, Any]) -> None:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, "hello", (), None, extra=odd)
    line = form(Shows(content=True)).format(record)
    assert "hello" in line
    assert form is OneLine or isinstance(json.loads(line), dict)


@pytest.mark.parametrize("form", [OneLine, JsonLine])
def test_a_message_with_the_wrong_arguments_is_told(form: type[OneLine]) -> None:
    line = form().format(logging.makeLogRecord({"msg": "%d of %d", "args": ("x",), "name": "x"}))
    assert "%d of %d (its arguments do not go with it: TypeError)" in line


def test_a_library_that_logs_the_wrong_arguments_gets_no_error_for_it() -> None:
    """It repeats itself, so its messages are compared before they are shown; an error there would end its task."""
    screen = Screen()
    for _ in range(2):
        screen.log(COORDINATOR, "%d of %d", "x")
    assert screen.lines == [f"{COORDINATOR}: %d of %d (its arguments do not go with it: TypeError)"]


async def test_each_call_of_a_tool_says_in_the_log_which_it_is_of(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever logger it uses, in the loop and in threads; what it raises is content."""
    app, lines = App("t"), list[dict[str, Any]]()

    @app.tool(queue="q")
    async def looped() -> None:
        lines.append(json.loads(JsonLine().format(record_of("mine"))))

    @app.tool(queue="q")
    def threaded() -> None:
        lines.append(json.loads(JsonLine().format(record_of("mine"))))
        raise ValueError(f"card {4000 + 111}")

    bench = ToolBench(app)
    async with bench.running():
        await bench.assign()
        bench.deliver(call(0, "looped", run_id="one"), call(1, "threaded", run_id="two", trace=SAMPLED))
        await until(lambda: len(bench.sent.returned) == 2)
    for line in sorted(lines, key=lambda line: line["offset"]):
        assert line["call_id"].startswith(line["run_id"])
    assert {(line["run_id"], line["tool"], line["topic"], line.get("trace_id")) for line in lines} == {
        ("one", "looped", "t.tool.calls.q", None),
        ("two", "threaded", "t.tool.calls.q", TRACE),
    }
    [failed] = [record for record in caplog.records if record.name == "anabranch.tool"]
    assert "4111" not in JsonLine().format(failed)
    assert "card 4111" in JsonLine(Shows(content=True)).format(failed)
