"""Which run is the oldest, and what was not published, as looking at all of them would say.

Responsible for: `agent/needed.py`. Must never: fold. Called by: pytest.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.agent import needed as module
from anabranch.agent.effects import CallDue
from anabranch.agent.needed import Needed
from anabranch.agent.state import Run

STEPS = st.lists(st.tuples(st.sampled_from(["fold", "end", "drop", "publish"]), st.integers(0, 5), st.integers(0, 20)))


@pytest.fixture(autouse=True, scope="module")
def _one_call_each() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "effects", SimpleNamespace(wanted=lambda run: [due_of(run)]))
        yield


def due_of(run: Run) -> CallDue:
    return CallDue(run.run_id, run.life, "call", 1, run.stirred, False)


@given(STEPS)
def test_it_agrees_with_a_look_at_every_run(steps: list[tuple[str, int, int]]) -> None:
    needed, runs, settled = Needed(), dict[int, Run](), set[CallDue]()
    for step, number, offset in steps:
        run = runs.get(number)
        if step == "fold":
            made = SimpleNamespace(run_id=str(number), life="0", first=offset, open=True, stirred=offset)
            run = runs[number] = run or cast(Run, made)
            run.first, run.stirred = offset, offset
            needed.folded(run)
        elif step == "end" and run is not None:
            cast(Any, run).open = False
        elif step == "drop" and run is not None:
            needed.drop((run.run_id, run.life))
            del runs[number]
        elif step == "publish" and run is not None:
            settled.add(due_of(run))
        open_ones = [run.first for run in runs.values() if run.open]
        oldest = needed.oldest(lambda run: run.open)
        assert (oldest.first if oldest is not None else None) == min(open_ones, default=None)
        causes = [run.stirred for run in runs.values() if due_of(run) not in settled]
        assert needed.first_unsettled(lambda due: due in settled) == min(causes, default=None)
