"""Bugs of the two lanes, planted one at a time: each breaks a promise, and the checker has to notice.

Responsible for: the list of them; what a plant is stands in `planting.py`.
Must never: be imported by what it changes.
Called by: `tests/unit/test_simulation.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anabranch.agent import fold
from anabranch.agent.admission import Admission
from anabranch.agent.commit import Commit
from anabranch.agent.owner import Owner
from anabranch.agent.state import Nexts
from anabranch.kafka.seam import Committed
from tests.simulation.planting import Patch, plant


@plant("a cancel is heard", "crashes and rebalances")
def a_cancel_is_of_open_runs_alone(patch: Patch) -> None:
    hear = fold._fold_cancel

    def forgetful(state: Any, event: Any, offset: int, at: float) -> None:
        hear(state, event, offset, at)
        state.cancels.clear()

    patch.setattr(fold, "_fold_cancel", forgetful)


@plant("a fold from a commit agrees", "long lives")
def a_cancel_that_waits_does_not_hold_low(patch: Patch) -> None:
    low = Owner._low

    def heedless(self: Owner) -> Any:
        kept, self.state.cancels = self.state.cancels, {}
        try:
            return low(self)
        finally:
            self.state.cancels = kept

    patch.setattr(Owner, "_low", heedless)


@plant("a fold from a commit agrees", "orderly")
def the_commit_says_what_is_next_in_bulk_now(patch: Patch) -> None:
    patch.setattr(Commit, "write_bulk", lambda self: Committed(self.bulk_reached, f"1 {self.low} {self.bulk_reached}"))


@plant("a request is admitted once", "crashes and rebalances")
def a_lane_presumes_nothing_of_the_other(patch: Patch) -> None:
    link = fold._fold_link

    def narrow(state: Any, event: Any, offset: int, at: float) -> None:
        state.tell(Nexts(event.after, event.after_bulk))
        if event.lane == "bulk":
            event = replace(event, after=state.next_request)
        else:
            event = replace(event, after_bulk=state.next_bulk)
        link(state, event, offset, at)

    patch.setattr(fold, "_fold_link", narrow)


@plant("no lag is left", "crashes and rebalances")
def what_others_took_up_is_waited_for(patch: Patch) -> None:
    folded = Admission.folded

    def patient(self: Admission) -> None:
        read_again, self._read_again = self._read_again, lambda: None
        drop, self.drop = self.drop, lambda: None  # type: ignore[method-assign]
        try:
            folded(self)
        finally:
            self._read_again = read_again
            self.drop = drop  # type: ignore[method-assign]

    patch.setattr(Admission, "folded", patient)
