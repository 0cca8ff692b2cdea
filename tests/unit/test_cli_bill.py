"""What a run has used is told by turn, on a terminal of any width.

Responsible for: `cli/picture/bill.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support import builders as b

from anabranch import messages as m
from anabranch.cli.picture.bill import by_turn, lines

USED = m.Usage(10, 2, 30, 4, 0.5)
RUN = (b.discarded(usage=USED), b.calls(usage=USED), b.returned(), b.replied(turn=2, usage=m.Usage(5, 6)))


def test_a_run_is_told_by_turn() -> None:
    run = b.run_after(*RUN)
    assert by_turn(run) == [("turn 1", USED), ("turn 2", m.Usage(5, 6)), ("thrown away", USED)]
    head, first, second, lost = (" ".join(line.plain.split()) for line in lines(run, 80))
    assert head == "tokens in cached out cost"
    assert (first, second) == ("turn 1 44 30 2 $0.5000", "turn 2 5 - 6 $0.0000")
    assert lost == "thrown away 44 30 2 $0.5000"


@pytest.mark.parametrize(("width", "head"), [(58, 58), (57, 46), (46, 46), (45, 38)])
def test_a_narrow_terminal_gets_narrow_columns_and_then_fewer(width: int, head: int) -> None:
    told = [line.plain for line in lines(b.run_after(*RUN), width)]
    assert {len(line) for line in told} == {head}
    assert ("cached" in told[0]) == (head >= 46)
    assert told[1].split() == ["turn", "1", "44", *(["30"] if head >= 46 else []), "2", "$0.5000"]


def test_nothing_is_said_of_nothing() -> None:
    assert list(lines(b.run_after(), 80)) == []
