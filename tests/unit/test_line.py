"""Whose turn it is: tenants take turns, each tenant's calls keep their order, and begun ones go first.

Responsible for: `agent/model/line.py`.
Must never: start anything.
Called by: pytest.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anabranch.agent.model.line import Line


def drained(line: Line[str]) -> list[str]:
    return [call for _ in range(len(line)) if (call := line.take()) is not None]


def test_tenants_take_turns_and_keep_their_order() -> None:
    line: Line[str] = Line()
    for call in ("a1", "a2", "a3", "b1", "c1", "b2"):
        line.add(call[0], call)
    assert drained(line) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert line.take() is None


def test_what_has_begun_goes_before_what_has_not_but_waits_for_its_tenants_turn() -> None:
    line: Line[str] = Line()
    for call in ("a1", "a2", "b1"):
        line.add(call[0], call)
    line.add_begun("b", "b0")
    assert drained(line) == ["a1", "b0", "a2", "b1"]


def test_only_what_has_begun_can_be_asked_for() -> None:
    line: Line[str] = Line()
    line.add("a", "a1")
    assert line.take(only_begun=True) is None
    line.add_begun("b", "b0")
    assert (line.take(only_begun=True), line.take(only_begun=True), len(line)) == ("b0", None, 1)


def test_a_probe_is_one_that_has_not_begun_if_there_is_any() -> None:
    line: Line[str] = Line()
    line.add_begun("a", "a0")
    line.add("b", "b2", "bulk")
    line.add("a", "a1")
    assert [line.take_probe() for _ in range(4)] == ["a1", "b2", "a0", None]


def test_what_has_not_begun_can_be_dropped() -> None:
    line: Line[str] = Line()
    line.add("a", "a1")
    line.add("b", "b1")
    line.add_begun("b", "b0")
    line.drop_fresh()
    assert (len(line), drained(line)) == (1, ["b0"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from(["add", "remove", "take"]))))
def test_nothing_is_lost_or_given_twice(steps: list[tuple[str, bool, str]]) -> None:
    line: Line[int] = Line()
    waiting: dict[int, str] = {}
    for number, (tenant, begun, step) in enumerate(steps):
        if step == "add":
            (line.add_begun if begun else line.add)(tenant, number)
            waiting[number] = tenant
        elif step == "remove":
            gone = next((call for call, owner in waiting.items() if owner == tenant), -1)
            line.remove(tenant, gone)
            waiting.pop(gone, None)
        elif (call := line.take()) is not None:
            waiting.pop(call)
        assert len(line) == len(waiting)
    assert {line.take() for _ in range(len(waiting))} == set(waiting)


def test_the_lanes_take_turns_by_weight_and_each_has_all_of_them_alone() -> None:
    line: Line[str] = Line(weight=2)
    for number in range(3):
        line.add("loud", f"b{number}", "bulk")
    for number in range(5):
        line.add("", f"i{number}")
    assert drained(line) == ["i0", "i1", "b0", "i2", "i3", "b1", "i4", "b2"]
    line.add("loud", "b3", "bulk")
    line.add_begun("loud", "b4", "bulk")
    assert (line.begun, drained(line)) == (1, ["b4", "b3"])


def test_a_call_is_removed_from_its_own_lane() -> None:
    line: Line[str] = Line()
    line.add("t", "x", "bulk")
    line.remove("t", "x")
    assert len(line) == 1
    line.remove("t", "x", "bulk")
    assert (len(line), line.take()) == (0, None)
