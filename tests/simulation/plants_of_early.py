"""Bugs of calls that begin while their model speaks, to be planted into our own code.

Responsible for: slips in `agent/early.py`, in the ids of calls, and in what tool workers make of an early one.
Must never: be more than a slip that somebody could make.
Called by: tests of the simulation.
"""

from __future__ import annotations

from typing import Any

from anabranch.agent.early import Early
from anabranch.agent.effects import CallDue
from anabranch.agent.reply import plan
from anabranch.agent.reply.reply import RequestedCall
from anabranch.agent.reply.tokens import derived
from anabranch.kafka.sent import Sent
from anabranch.messages import ToolCall
from anabranch.tools.serving import Service
from tests.simulation.planting import Patch, plant


@plant("an early result is of a call of the reply", "orderly", start=43)
def the_id_of_an_early_call_does_not_say_what_is_asked(patch: Patch) -> None:
    def token(index: int, call: RequestedCall, context: plan.BatchContext) -> str:
        return derived(context.attempt, index)

    patch.setattr(plan, "_token", token)


@plant("every request is answered", "orderly", start=11)
def a_result_before_its_reply_is_taken_for_one_behind_it(patch: Patch) -> None:
    def claim(self: Early, due: CallDue) -> Sent | None:
        begun = self._begun(due.run_id, due.life, due.call_id)
        return begun.sent if begun is not None else None

    patch.setattr(Early, "claim", claim)


@plant("every request is answered", "orderly")
def an_early_call_counts_as_one_that_was_answered(patch: Patch) -> None:
    def is_idle(self: Service, call: ToolCall) -> bool:
        return self._bench.now() >= call.deadline or self._seen.get(call.call_id, 0) >= call.dispatch

    patch.setattr(Service, "is_idle", is_idle)


@plant("a call is published once", "orderly")
def every_call_may_begin_early(patch: Patch) -> None:
    def may_begin(spec: Any) -> bool:
        return True

    patch.setattr("anabranch.agent.early.may_begin", may_begin)
