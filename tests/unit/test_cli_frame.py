"""What the commands share: lazy loading, exit statuses, options over settings, text that is safe to print.

Responsible for: `cli/frame.py` and the pure helpers of the commands beside it.
Must never: reach for a broker.
Called by: pytest.
"""

from __future__ import annotations

import errno
import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from rich.console import Console
from tests.support import builders as b
from tests.support.desk import Desk

from anabranch.cli import anabranch, figures, frame, output
from anabranch.cli.commands import deadletters, dev, runs
from anabranch.deadletters import KEPT
from anabranch.environment import sources
from anabranch.errors import AnabranchError, BrokerError, ConfigError
from anabranch.registry import is_alive
from anabranch.specs import WorkerInfo
from anabranch.topics import Namespace

HEAVY = "aiokafka", "anthropic", "pydantic", "rich", "aiohttp", "obstore"


def raising(error: BaseException) -> click.Command:
    def command() -> None:
        raise error

    return click.command()(command)


def test_help_loads_neither_a_client_nor_a_command() -> None:
    code = f"""
import sys
from anabranch.cli import anabranch, frame
assert frame.invoke(anabranch, ["--help"]) == 0
sys.exit(", ".join(name for name in {HEAVY!r} if name in sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == ""
    assert "dlq" in ended.stdout


def test_neither_a_coroutine_that_swallows_its_end_nor_a_thread_that_hangs_keeps_a_command_from_ending() -> None:
    code = """
import asyncio, threading
from anabranch.cli import frame

async def deaf():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def work():
    tasks = [asyncio.create_task(deaf()) for _ in range(2)]
    hung = asyncio.create_task(asyncio.to_thread(threading.Event().wait))
    await asyncio.sleep(0)
    return len(tasks)

frame.finish(frame.run_async(work()))
"""
    command = [sys.executable, "-X", "dev", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "")


@pytest.mark.parametrize("name", ["dev", "worker", "topics", "usage", "agents", "tools", "workers", "dlq", "config"])
def test_every_listed_command_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.invoke(anabranch, [name, "--help"]) == 0
    assert f"anabranch {name}" in capsys.readouterr().out


def test_an_error_of_ours_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("tasks", [BrokerError("no \x1b[31mKafka"), BrokerError("no \x1b[31mKafka")])
    assert frame.invoke(raising(group), []) == 1
    assert capsys.readouterr().err == "error: no ?[31mKafka\n"


def test_a_defect_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.invoke(raising(ExceptionGroup("tasks", [AnabranchError("x"), ZeroDivisionError("y")])), []) == 1
    assert "ZeroDivisionError: y" in capsys.readouterr().err


def test_a_disk_that_is_full_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.invoke(raising(OSError(errno.ENOSPC, "No space left on device")), []) == 1
    assert capsys.readouterr().err == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_command_may_be_started_without_its_output(closed: str) -> None:
    shell = f'"$0" -m anabranch.cli config --json {closed}'
    assert subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, check=False).returncode == 0


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], io.StringIO]:
    """What is printed on a terminal of that width."""

    def of_width(width: int) -> io.StringIO:
        file = io.StringIO()
        console = Console(file=file, width=width, force_terminal=True, color_system=None)
        monkeypatch.setattr(output, "stdout", lambda: console)
        return file

    return of_width


def test_what_names_a_row_is_kept_whole_if_that_leaves_room_to_the_rest(
    terminal: Callable[[int], io.StringIO],
) -> None:
    origin, reason = "shop.agent.requests.bulk/17/123456", "it cannot be read " * 9
    columns, row = ("origin", "time", ">size", "reason"), (origin, "2026-01-01 00:00:00Z", "123456 B", reason)
    for width, whole in ((60, False), (61, True), (80, True)):
        file = terminal(width)
        output.print_table(columns, [row])
        shown = file.getvalue()
        assert (origin in shown) is whole
        assert shown.count("read") == 9, "nothing is left out"
        assert max(map(len, shown.splitlines())) <= width


def test_where_no_column_has_room_each_cell_has_a_line(
    terminal: Callable[[int], io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    columns, rows = ("run", "status", ">took", ">turns"), [("r1", "ok\x1b[2J", "1 s", 2), ("r2", "failed", "2 s", 9)]
    file = terminal(35)
    output.print_table(columns, rows)
    lines = [line.split() for line in file.getvalue().splitlines()]
    one = [["run", "r1"], ["status", "ok?[2J"], ["took", "1", "s"], ["turns", "2"]]
    assert lines == [*one, [], ["run", "r2"], ["status", "failed"], ["took", "2", "s"], ["turns", "9"]]
    file = terminal(36)
    output.print_table(columns, rows)
    assert "─" in file.getvalue(), "there it is a table"
    terminal(20)
    output.print_table(columns, [], empty="none")
    assert capsys.readouterr().err == "none\n"


def test_lines_that_go_into_a_file_end_where_their_words_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("run", "why"), [("r1", "short"), ("r2", "long " * 50 + "x")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == lines
    assert len(lines) == 3


def test_a_list_says_that_there_is_more(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_left_out(0, "run")
    output.say_left_out(1, "run")
    output.say_left_out(5, "dead letter")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "(1 older run not shown: --limit N shows more)",
        "(5 older dead letters not shown: --limit N shows more)",
    ]


def test_ctrl_c_ends_with_130_and_says_nothing_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.invoke(raising(KeyboardInterrupt()), []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.invoke(anabranch, ["nonsense"]) == 2
    assert frame.invoke(anabranch, ["config", "--nonsense"]) == 2
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "a", "hello", "--deadline", "foo"], "'foo' is no duration"),
        (["run", "a", "hello", "--deadline", "0s"], "'0s' leaves no time at all"),
        (["enrich", "IN", "--agent", "a", "--out", "x", "--deadline", "soon"], "'soon' is no duration"),
        (["enrich", "IN", "--agent", "a", "--out", "x", "--template", "{"], "the template cannot be read"),
        (["enrich", "IN", "--agent", "a", "--out", "x", "--template", "{}"], "name a field of the record"),
        (["enrich", "IN", "--agent", "a", "--out", "-"], "--out is a file, not stdout"),
    ],
)
def test_an_option_that_cannot_be_one_is_wrong_usage(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    arguments = [str(tmp_path / "in.jsonl") if each == "IN" else each for each in arguments]
    assert frame.invoke(anabranch, [*arguments, "--namespace", "n", "--bootstrap", "127.0.0.1:1"]) == 2
    assert told in capsys.readouterr().err


def test_a_misspelt_setting_is_told_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_BOOTSTRP", "kafka:9092")
    assert frame.invoke(anabranch, ["config"]) == 0
    assert "ANABRANCH_BOOTSTRP is no setting and has no effect: did you mean ANABRANCH_BOOTSTRAP?" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_command_without_a_namespace_says_how_to_give_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ANABRANCH_NAMESPACE", raising=False)
    with pytest.raises(AnabranchError, match=r"--namespace NAME or --app APP, or set ANABRANCH_NAMESPACE"):
        frame.Frame().namespace()


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_NAMESPACE", "from-environment")
    monkeypatch.setenv("ANABRANCH_BOOTSTRAP", "elsewhere:1")
    common = frame.Frame(namespace_option="Shop", bootstrap="here:2")
    assert common.namespace() == Namespace("shop")
    assert common.settings.kafka.bootstrap == "here:2"
    assert sources()["kafka", "bootstrap"] == "ANABRANCH_BOOTSTRAP"


def test_a_command_that_only_opens_seals_needs_no_store_where_there_are_no_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever watches a run may have the settings of a worker, and not its disk."""
    (no_folder := tmp_path / "file").write_text("")
    monkeypatch.setenv("ANABRANCH_STORE", (no_folder / "store").as_uri())
    monkeypatch.delenv("ANABRANCH_KEYS", raising=False)
    common = frame.Frame(namespace_option="shop")
    assert not common.sealing().is_set
    with pytest.raises(ConfigError, match="ANABRANCH_STORE"):
        common.store()


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2 h"), (864_000, "10 d")]
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert figures.ago(seconds) == text


def test_a_time_is_the_users_own_and_todays_has_no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-2")
        time.tzset()
        assert figures.moment(0.0) == figures.moment(0.0, brief=True) == "1970-01-01 02:00:00"
        now = time.time()
        assert figures.moment(now).endswith(f" {figures.moment(now, brief=True)}")
    time.tzset()


@pytest.mark.parametrize(
    ("bootstrap", "port"),
    [
        ("localhost:9092", 9092),
        ("127.0.0.1:1,other:2", 1),
        ("[::1]:9", 9),
        ("kafka.example.com:9092", None),
        ("localhost", None),
        ("localhost:99999", None),
    ],
)
def test_dev_takes_the_port_of_a_bootstrap_on_this_machine(bootstrap: str, port: int | None) -> None:
    assert dev.port_of(bootstrap) == port


def test_a_worker_is_dead_after_30_s_of_silence() -> None:
    worker = WorkerInfo("w", "tool", "1", started_at=0.0, seen_at=100.0)
    assert is_alive(worker, 130.0)
    assert not is_alive(worker, 130.1)


async def test_a_cancel_says_what_has_come_of_it() -> None:
    desk = Desk().begin().write(b.requested())
    run = desk.owner.state.runs["r"]
    assert runs.cancelled("r", None) == "run r was not admitted yet: it will be cancelled when it is"
    assert runs.cancelled("r", run) == "run r is cancelled"
    run.parked = "event type 'x' is not known"
    assert "r is parked (event type 'x' is not known): it will be cancelled" in runs.cancelled("r", run)


def letter(origin: str, value: bytes = b"{}") -> deadletters.Letter:
    return deadletters.Letter(origin, "reason", 0.0, b"key", value, (("x", b"y"),))


@pytest.mark.parametrize("topic", ["shop.agent.requests", "shop.tool.calls.io"])
def test_a_request_and_a_call_go_back_to_where_they_were(topic: str) -> None:
    record = deadletters.original(letter(f"{topic}/3/9"), Namespace("shop"))
    assert (record.topic, record.partition, record.key, record.value) == (topic, 3, b"key", b"{}")
    assert record.headers == (("x", b"y"),)


@pytest.mark.parametrize(
    ("dead", "why"),
    [
        (letter("shop.agent.log/3/9"), "only requests and tool calls"),
        (letter("other.agent.requests/3/9"), "only requests and tool calls of shop"),
        (letter("shop.agent.requests/3/9", b"z" * KEPT), "first 65536 bytes"),
    ],
)
def test_what_cannot_be_replayed_is_refused(dead: deadletters.Letter, why: str) -> None:
    with pytest.raises(AnabranchError, match=why):
        deadletters.original(dead, Namespace("shop"))
