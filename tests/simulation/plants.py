"""Bugs to be planted into our own code, one for each promise at least: the checker must notice every one of them.

Responsible for: naming each bug, and the promise that it breaks.
Must never: be more than a slip that somebody could make.
Called by: tests of the simulation. Those of snapshots are in `plants_of_cleaning.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace
from typing import Any

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.admission.admission import Admission
from anabranch.agent.answer import answer
from anabranch.agent.model.calling import ModelCalls
from anabranch.agent.owner import Owner
from anabranch.agent.prompt import conversation
from anabranch.agent.publishing import Publisher
from anabranch.agent.reach import Reach
from anabranch.agent.state import Nexts
from anabranch.kafka.membership import Membership
from anabranch.log_events import CallDispatched
from anabranch.tools.calls import Calls
from anabranch.tools.commits import Commits
from anabranch.tools.handing_off import HandOffs
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Job, Service
from anabranch.tools.worker import ToolWorker
from tests.simulation.planting import Patch, plant


@plant("no worker dies", "crashes")
def a_dispatch_of_another_is_not_expected(patch: Patch) -> None:
    def read_back(self: Publisher, event: CallDispatched) -> None:
        self._dispatching.remove(event.call_id)

    patch.setattr(Publisher, "read_back", read_back)


@plant("every request is answered", "orderly", start=12)
def one_result_is_dropped(patch: Patch) -> None:
    deliver = Service.deliver

    async def dropping(self: Service, job: Job, execution: Any) -> None:
        if not job.call.call_id.endswith("/1"):
            await deliver(self, job, execution)

    patch.setattr(Service, "deliver", dropping)


@plant("every request is answered", "crashes", start=11)
def a_call_is_marked_before_its_result_is_appended(patch: Patch) -> None:
    execute = Service.execute

    async def marking(self: Service, job: Job) -> Any:
        self._hold_until.__self__._finish(job)  # type: ignore[attr-defined]
        return await execute(self, job)

    patch.setattr(Service, "execute", marking)


@plant("a run ends as asked", "orderly")
def the_fold_has_a_defect(patch: Patch) -> None:
    owe = fold._owe

    def broken(run: Any, offset: int, at: float) -> None:
        if run.turn == 2:
            raise KeyError(run.turn)
        owe(run, offset, at)

    patch.setattr(fold, "_owe", broken)


@plant("answers of one life are identical", "crashes and rebalances", start=37)
def an_answer_depends_on_who_gives_it(patch: Patch) -> None:
    count = itertools.count()
    made = "anabranch.agent.publishing.answer"
    patch.setattr(made, lambda run: answer(run) + b" " * next(count))


@plant("a request is admitted once", "crashes and rebalances")
def a_new_owner_begins_with_the_first_request(patch: Patch) -> None:
    begin, link = Owner.begin, fold._fold_link

    def forgetful(self: Owner, *args: Any) -> int:
        at = begin(self, *args)
        self.state.next_request = self.state.next_bulk = 0
        return at

    def trusting(state: Any, event: Any, offset: int, at: float) -> None:
        link(state, replace(event, after=state.next_request or 0, after_bulk=state.next_bulk), offset, at)

    patch.setattr(Owner, "begin", forgetful)
    patch.setattr(fold, "_fold_link", trusting)


@plant("results are exactly those of the calls", "orderly")
def the_results_message_lacks_one(patch: Patch) -> None:
    results = conversation._results
    patch.setattr(conversation, "_results", lambda *args: results(*args)[1:])


@plant("results are exactly those of the calls", "orderly")
def the_results_are_in_the_order_of_their_arrival(patch: Patch) -> None:
    results = conversation._results
    patch.setattr(conversation, "_results", lambda *args: results(*args)[::-1])


@plant("a repeated model call asks the same", "crashes")
def a_request_says_when_it_was_made(patch: Patch) -> None:
    count = itertools.count()
    made = "anabranch.agent.prompt.asking.request_body"
    patch.setattr(made, lambda *args: conversation.request_body(*args) + b" " * next(count))


@plant("results are true", "crashes", start=19)
def a_begun_call_counts_as_ok(patch: Patch) -> None:
    unknown = Service.unknown
    patch.setattr(Service, "unknown", lambda self: replace(unknown(self), outcome="ok"))


@plant("results are true", "orderly", start=13)
def a_result_goes_to_the_next_call(patch: Patch) -> None:
    folded = fold._fold_call

    def shifted(run: Any, call: Any, event: e.Event, offset: int, at: float) -> None:
        if isinstance(event, e.ToolReturned):
            free = [other for other in run.batch.calls.values() if other.due is not None and other.result is None]
            call = free[0]
        folded(run, call, event, offset, at)

    patch.setattr(fold, "_fold_call", shifted)


@plant("a model call is made once per fault", "orderly")
def a_model_call_is_not_handed_off(patch: Patch) -> None:
    patch.setattr(ModelCalls, "hand_off", lambda self, for_s: [])


@plant("a model call is made once per fault", "orderly")
def a_hand_off_is_not_waited_for(patch: Patch) -> None:
    patch.setattr(Owner, "_may_call", lambda self, run: True)


@plant("a reply in the log is never paid again", "crashes and rebalances", start=10)
def an_owner_acts_before_it_has_read_the_log(patch: Patch) -> None:
    resume = Owner.resume
    patch.setattr(Owner, "resume", lambda self, end: resume(self, 0))


@plant("a tool call is executed once per fault", "orderly")
def a_running_call_is_not_handed_off(patch: Patch) -> None:
    async def forget(self: HandOffs, jobs: Any, for_s: float) -> list[Job]:
        return []

    patch.setattr(HandOffs, "tell", forget)


@plant("a tool call is executed once per fault", "deploys", start=175)
def a_worker_that_stops_keeps_no_rebalance_waiting(patch: Patch) -> None:
    revoked = ToolWorker.revoked

    async def at_once(self: ToolWorker, places: Any, lost: bool) -> None:
        if not self._membership.stopping:
            await revoked(self, places, lost)

    patch.setattr(ToolWorker, "revoked", at_once)


@plant("no worker dies", "orderly", start=14)
def what_was_revoked_before_attach_is_taken_over(patch: Patch) -> None:
    forget = Membership.forget

    def keeping(self: Membership) -> None:
        assigned = self._assigned
        forget(self)
        self._assigned = assigned

    patch.setattr(Membership, "forget", keeping)


@plant("a call is published once", "orderly")
def a_release_does_not_say_what_is_done(patch: Patch) -> None:
    patch.setattr(Reach, "done", lambda self: 0)


@plant("a call is published once", "crashes and rebalances", start=4)
def any_dispatch_wins(patch: Patch) -> None:
    folded = fold._fold_call

    def last_wins(run: Any, call: Any, event: e.Event, offset: int, at: float) -> None:
        if isinstance(event, e.CallDispatched):
            call.token = None
        folded(run, call, event, offset, at)

    patch.setattr(fold, "_fold_call", last_wins)
    patch.setattr(Publisher, "_dispatched", lambda self, due, may_dispatch: True)


@plant("at most once", "crashes", start=19)
def what_was_begun_is_executed_again(patch: Patch) -> None:
    take = Progress.take
    patch.setattr(Progress, "take", lambda self, offset: take(self, offset).replace("begun", "new"))


@plant("at most once", "crashes")
def a_call_begins_before_it_is_committed_as_begun(patch: Patch) -> None:
    async def at_once(self: Commits, *args: Any) -> bool:
        return True

    patch.setattr(Commits, "may_begin", at_once)


@plant("nothing is executed that was not asked", "crashes and rebalances", start=9)
def two_owners_ask_and_the_last_reply_wins(patch: Patch) -> None:
    folded = fold._fold_reply

    def last_wins(run: Any, event: e.ModelReplied, offset: int, at: float) -> None:
        if not run.owed and run.batch is not None and event.turn == run.turn:
            run.turns.pop()
            run.owed = True
        folded(run, event, offset, at)

    patch.setattr(fold, "_fold_reply", last_wins)
    patch.setattr(Owner, "_may_call", lambda self, run: True)


@plant("serial keys go one by one", "orderly")
def serial_keys_do_not_count(patch: Patch) -> None:
    patch.setattr(Job, "serial_key", None)


@plant("serial keys go one by one", "orderly", start=26)
def the_next_owner_does_not_hold_the_key(patch: Patch) -> None:
    patch.setattr(ToolWorker, "_held_until", lambda self, job: 0.0)


@plant("no lag is left", "orderly", start=42)
def a_note_that_is_done_is_kept_for_ever(patch: Patch) -> None:
    low = Reach.low

    def keeping(self: Reach) -> tuple[int, Nexts, float]:
        notes = [(offset, self._state.note_links[offset], math.inf) for offset in self._state.notes]
        return min([low(self), *notes], key=lambda first: first[0])

    patch.setattr(Reach, "low", keeping)


@plant("no lag is left", "crashes")
def a_call_is_never_finished(patch: Patch) -> None:
    finish = Calls.finish

    def forgetful(self: Calls, job: Job) -> None:
        if job.call.tool != "slow":
            finish(self, job)

    patch.setattr(Calls, "finish", forgetful)


@plant("a fold from a commit agrees", "crashes")
def the_commit_is_the_position(patch: Patch) -> None:
    patch.setattr(Reach, "low", lambda self: (self._state.position, self._state.nexts, math.inf))


@plant("a fold from a commit agrees", "orderly")
def the_commit_says_what_is_next_now(patch: Patch) -> None:
    low = Reach.low
    patch.setattr(Reach, "low", lambda self: (low(self)[0], self._state.nexts, math.inf))


@plant("every request is answered", "orderly")
def there_is_never_room(patch: Patch) -> None:
    async def lost(self: Admission) -> None:
        await asyncio.Event().wait()

    patch.setattr(Admission, "_until_there_is_room", lost)
