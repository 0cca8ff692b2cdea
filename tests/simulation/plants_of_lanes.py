"""Bugs of the two lanes, planted one at a time: each breaks a promise, and the checker has to notice.

Responsible for: the list of them; what a plant is stands in `planting.py`.
Must never: be imported by what it changes.
Called by: `tests/unit/test_simulation.py`.
"""

from __future__ import annotations

from typing import Any

from anabranch.agent import fold
from anabranch.agent.commit import Commit
from anabranch.agent.reach import Reach
from anabranch.kafka.seam import Committed
from tests.simulation.planting import Patch, plant


@plant("a cancel is heard", "crashes and rebalances", start=11)
def a_cancel_is_of_open_runs_alone(patch: Patch) -> None:
    hear = fold._fold_cancel

    def forgetful(state: Any, event: Any, offset: int, at: float) -> None:
        hear(state, event, offset, at)
        state.cancels.clear()

    patch.setattr(fold, "_fold_cancel", forgetful)


@plant("a fold from a commit agrees", "long lives", start=53)
def a_cancel_that_waits_does_not_hold_low(patch: Patch) -> None:
    low = Reach.low

    def heedless(self: Reach) -> Any:
        kept, self._state.cancels = self._state.cancels, {}
        try:
            return low(self)
        finally:
            self._state.cancels = kept

    patch.setattr(Reach, "low", heedless)


@plant("a fold from a commit agrees", "orderly", start=59)
def the_commit_says_what_is_next_in_bulk_now(patch: Patch) -> None:
    patch.setattr(Commit, "write_bulk", lambda self: Committed(self.bulk_reached, f"1 {self.low} {self.bulk_reached}"))
