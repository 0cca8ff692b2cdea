"""How far a partition of a queue is done, against a model that remembers everything.

Responsible for: `tools/progress.py`.
Must never: run a call.
Called by: pytest.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from anabranch.tools.marks import Marks
from anabranch.tools.progress import Progress


class Naive:
    """The same, by looking at all there ever was."""

    def __init__(self, position: int) -> None:
        self.start = self.position = position
        self.open: set[int] = set()
        self.finished: set[int] = set()

    def take(self, offset: int) -> bool:
        self.position = max(self.position, offset + 1)
        if offset < self.start or offset in self.open or offset in self.finished:
            return False
        self.open.add(offset)
        return True

    def finish(self, offset: int) -> None:
        if offset in self.open:
            self.open.remove(offset)
            self.finished.add(offset)

    def give_back(self, offsets: Iterable[int]) -> None:
        for offset in offsets:
            self.open.discard(offset)
            self.position = min(self.position, offset)

    @property
    def low(self) -> int:
        return min({self.position, *self.open})


STEPS = st.lists(st.tuples(st.sampled_from(["next", "gap", "again", "finish", "give back", "low"]), st.integers(0, 9)))


def taken(progress: Progress | Naive, offset: int) -> bool:
    return progress.take(offset) in (True, "new")


def apply(progress: Progress | Naive, step: str, number: int) -> object:
    match step:
        case "next" | "gap":
            return taken(progress, progress.position + (number if step == "gap" else 0))
        case "again":
            return taken(progress, max(progress.low, progress.position - 1 - number))
        case "finish":
            return progress.finish(max(0, progress.position - 1 - number))
        case "low":
            return progress.low
        case _:
            offset = progress.position - 1 - number
            is_open = offset in (progress.open if isinstance(progress, Naive) else progress._open)
            return progress.give_back([offset]) if is_open else None


@given(STEPS, st.integers(0, 3))
def test_it_agrees_with_a_naive_model(steps: list[tuple[str, int]], start: int) -> None:
    progress, naive = Progress(start), Naive(start)
    low = start
    for step, number in steps:
        assert apply(progress, step, number) == apply(naive, step, number)
        assert (progress.low, progress.position, progress.open) == (naive.low, naive.position, len(naive.open))
        assert progress.low >= low, "what was committed is never taken back"
        low = progress.low


def test_what_is_finished_below_is_not_taken_again() -> None:
    progress = Progress(5)
    assert progress.take(5) == "new"
    progress.finish(5)
    assert progress.low == 6
    assert progress.take(5) == "known"
    assert progress.take(3) == "known"


def test_calls_may_finish_in_any_order() -> None:
    progress = Progress(0)
    for offset in (0, 1, 2):
        progress.take(offset)
    progress.finish(2)
    progress.finish(1)
    assert progress.low == 0
    progress.finish(0)
    assert progress.low == 3


def test_what_is_given_back_is_read_again_and_what_was_finished_behind_it_is_not() -> None:
    progress = Progress(0)
    for offset in (0, 1, 2):
        progress.take(offset)
    progress.finish(1)
    progress.give_back([0])
    assert (progress.position, progress.low) == (0, 0)
    assert progress.take(0) == "new"
    assert progress.take(1) == "known"
    assert progress.take(2) == "known"


def test_a_commit_is_a_set() -> None:
    progress = Progress(3, Marks(finished=frozenset({4, 7}), begun=frozenset({5})))
    assert [progress.take(offset) for offset in range(2, 9)] == [
        "known", "new", "known", "begun", "new", "known", "new"
    ]  # fmt: skip
    for offset in (3, 6):
        progress.finish(offset)
    assert (progress.low, progress.marks) == (5, Marks(frozenset({6, 7}), frozenset({5})))


def test_what_runs_here_is_not_taken_again_and_holds_the_commit_back() -> None:
    progress = Progress(3, Marks(begun=frozenset({4})), running=[4])
    assert [progress.take(offset) for offset in (3, 4)] == ["new", "known"]
    progress.finish(3)
    assert progress.low == 4
    progress.finish(4)
    assert (progress.low, progress.marks) == (5, Marks())


def test_what_was_handed_off_stays_finished_while_it_runs() -> None:
    progress = Progress(3, Marks(finished=frozenset({4})), running=[4])
    assert [progress.take(offset) for offset in (3, 4)] == ["new", "known"]
    progress.finish(3)
    assert progress.low == 5


def test_a_call_that_was_about_to_begin_and_is_given_back_has_not_begun() -> None:
    progress = Progress(0)
    progress.take(0)
    progress.begin(0)
    assert (progress.low, progress.marks) == (0, Marks(begun=frozenset({0})))
    progress.give_back([0])
    assert (progress.low, progress.marks) == (0, Marks())
    assert progress.take(0) == "new"
