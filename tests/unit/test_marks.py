"""The metadata of a commit: what is written is read, in little room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import WireError
from anabranch.tools.marks import FULL, Marks, ShareMark, lying_below, read, shares_in, write

OFFSETS = st.frozensets(st.integers(0, 3000))


@given(st.integers(0, 2**40), OFFSETS, OFFSETS)
def test_what_is_written_is_read(low: int, finished: frozenset[int], begun: frozenset[int]) -> None:
    marks = Marks(frozenset(low + n for n in finished), frozenset(low + n for n in begun))
    assert read(low, write(low, marks)) == marks


def test_what_the_commit_says_itself_is_left_out() -> None:
    assert read(10, write(10, Marks(frozenset({3, 9, 12})))) == Marks(frozenset({12}))


def test_held_keys_are_told_with_their_times() -> None:
    marks = Marks(held=(("a1b2", 1_800_000_000), ("ff", 1)))
    assert read(3, write(3, marks)) == marks


def test_shares_of_limits_are_told_behind_all_else() -> None:
    shares = (ShareMark("*", 1_800_000_000_000), ShareMark("0a1b2c3d4e", 1_800_000_060_123, 4, 1_800_000_011))
    marks = Marks(frozenset({4}), held=(("ff", 1),), shares=shares)
    assert read(3, write(3, marks)) == marks
    assert read(3, write(3, Marks(shares=shares))) == Marks(shares=shares)
    assert shares_in(write(3, marks)) == shares
    assert shares_in(write(3, Marks(frozenset({4})))) == shares_in("") == shares_in("2    ab=1.2.3") == ()


def test_of_a_queue_that_is_shorter_the_calls_to_come_have_no_marks_and_those_that_run_keep_theirs() -> None:
    held, shares = (("ff", 1),), (ShareMark("*", 1_800_000_000_000),)
    marks = Marks(frozenset({4, 7, 8}), frozenset({5, 9}), held, shares)
    assert lying_below(7, marks) == Marks(frozenset({4}), frozenset({5}), held, shares)
    assert lying_below(10, marks) is marks


def test_no_marks_need_no_metadata() -> None:
    assert write(7, Marks()) == ""
    assert read(7, "") == Marks()


def test_four_thousand_calls_in_flight_fit() -> None:
    every_other = frozenset(range(0, 8000, 2))
    assert len(write(0, Marks(every_other))) < FULL


def test_one_long_run_takes_a_few_bytes() -> None:
    assert len(write(0, Marks(frozenset(range(1, 100_000))))) < 20


@pytest.mark.parametrize(
    "metadata",
    ["2 r0.1  ", "1 r0.1", "nonsense", "1 r0  ", "1 m!  ", "1 rz.zzzzzz  ", "1   k", "1    ab", "1    ab=1.2"],
)
def test_metadata_of_another_version_is_refused(metadata: str) -> None:
    with pytest.raises(WireError, match="commit metadata"):
        read(0, metadata)
