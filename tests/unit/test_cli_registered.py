"""What `anabranch tools` says of the limits in force, and `anabranch workers` of those that are dead.

Responsible for: the rows of `cli/commands/registered.py`. Must never: need a broker. Called by: pytest.
"""

from __future__ import annotations

import json
import time

import pytest

from anabranch.cli import anabranch, frame
from anabranch.cli.commands import registered
from anabranch.cli.commands.registered import _tool
from anabranch.registry import Registry
from anabranch.specs import LimitSpec, ToolSpec, WorkerInfo

TOOL = ToolSpec("ask", "io", "Ask.", {}, limit="crm")


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (None, "crm"),
        (LimitSpec("crm", "io", 50.0), "crm 50/s"),
        (LimitSpec("crm", "io", 1 / 60, 3), "crm 1/min, 3 at once"),
        (LimitSpec("crm", "io", 1 / 86_400, per="tenant"), "crm 1/d, per tenant"),
    ],
)
def test_a_tool_is_listed_with_the_limit_in_force(limit: LimitSpec | None, shown: str) -> None:
    assert shown in _tool(TOOL, limit)


def listed(monkeypatch: pytest.MonkeyPatch, *options: str, **seen_s_ago: float) -> int:
    registry, now = Registry(), time.time()
    for name, ago_s in seen_s_ago.items():
        registry.workers[name] = WorkerInfo(name, "agent", "1", now - ago_s - 60, now - ago_s)
    monkeypatch.setattr(registered, "_read", lambda common: registry)
    return frame.invoke(anabranch, ["workers", "--namespace", "shop", *options])


def test_the_dead_stand_below_the_living_and_for_a_day(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(monkeypatch, a=100_000.0, b=3600.0, c=2.0, d=90_000.0) == 0
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == ["worker", "c", "b"]
    assert "(2 workers dead for more than a day not shown: --json names all)" in told.err
    assert listed(monkeypatch, "--json", a=100_000.0, c=2.0) == 0
    assert [(each["id"], each["alive"]) for each in json.loads(capsys.readouterr().out)] == [("c", True), ("a", False)]


def test_where_all_are_long_dead_none_is_said_to_live(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(monkeypatch, a=100_000.0) == 0
    told = capsys.readouterr()
    assert (told.out, "no living worker is registered in namespace shop" in told.err) == ("", True)
