"""Why something was done twice: the one fault that explains it, or none. Pure functions over a ledger.

Responsible for: finding the repeats of model calls and of tool calls, and the cause of each.
Must never: excuse a repeat with a fault elsewhere: a kill explains only what was in flight in the process that it hit,
and a deploy or a slow connection explains nothing.
Called by: `checker.py`, `serial.py`, `report.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tests.chaos.ledger import Execution, Fault, FaultKind, Ledger, Logged, ModelCall, Told, tool_use_id

COMMIT_S: Final = 3.0
"""How long after its end an execution may not be committed yet, although nothing is broken."""
CLOCKS_S: Final = 0.05
"""Times come from different processes, and are written a moment after what they say."""
AFTER_S: Final[dict[FaultKind, float]] = {
    "kill": 0.0,
    "mute": 0.0,
    "freeze": 4.0,
    "cut": 4.0,
    "half_open": 12.0,
    "broker_stop": 20.0,
    "broker_kill": 20.0,
}
"""How long after its end a fault is still felt: a woken process finds out, a session ends, a group comes together.
Others, a deploy and a slow connection among them, explain nothing."""
FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Repeat:
    """`what` was done again at `at`. `cause` is the kind of fault that explains it, or None."""

    what: str
    at: float
    cause: str | None


def winners(ledger: Ledger) -> dict[tuple[str, int], Logged]:
    """The reply that counts, by run and turn: the first one in the log."""
    found: dict[tuple[str, int], Logged] = {}
    for reply in sorted(ledger.logged, key=lambda reply: (reply.partition, reply.offset)):
        found.setdefault((reply.run, reply.turn), reply)
    return found


def turns(ledger: Ledger) -> dict[tuple[str, int], list[ModelCall]]:
    """The model calls of each turn, in the order of time."""
    found: dict[tuple[str, int], list[ModelCall]] = defaultdict(list)
    for call in sorted(ledger.model_calls, key=lambda call: call.begun):
        found[call.run, call.turn].append(call)
    return found


def executions(ledger: Ledger) -> dict[tuple[str, int], list[Execution]]:
    """The executions of each tool call (token of the reply, index), in the order of time."""
    found: dict[tuple[str, int], list[Execution]] = defaultdict(list)
    for execution in sorted(ledger.executions, key=lambda execution: execution.begun):
        found[execution.token, execution.index].append(execution)
    return found


def model_repeats(ledger: Ledger) -> list[Repeat]:
    """Every model call of a turn but its first."""
    logged = {reply.token: reply.at for reply in ledger.logged}
    found = []
    for (run, turn), calls in turns(ledger).items():
        for earlier, later in pairwise(calls):
            # In flight until its reply is in the log; the log may have it late, because the broker was away.
            over = logged.get(earlier.token, FOREVER)
            cause = hit(ledger.faults, [earlier.worker], earlier.begun, min(over, later.begun))
            cause = cause or awoken(ledger.faults, later.worker, later.begun)
            found.append(Repeat(f"model call {later.token} (turn {turn} of {run}, {later.worker})", later.begun, cause))
    return found


def tool_repeats(ledger: Ledger) -> list[Repeat]:
    """Every execution of a tool call but its first."""
    asked_at = {call.token: call.begun for call in ledger.model_calls}
    agents = {call.worker for call in ledger.model_calls}
    found = []
    for (token, index), done in executions(ledger).items():
        for earlier, later in pairwise(done):
            over = FOREVER if earlier.ended is None else earlier.ended + COMMIT_S
            cause = hit(ledger.faults, [earlier.worker], earlier.begun, min(over, later.begun))
            cause = cause or awoken(ledger.faults, later.worker, later.begun)
            if cause is None and (published := hit(ledger.faults, agents, asked_at.get(token, 0.0), later.begun)):
                cause = f"{published} of an agent worker"  # the next owner publishes again what may not be published
            what = f"tool call {token}[{index}] ({later.worker}, after {earlier.worker})"
            found.append(Repeat(what, later.begun, cause))
    return found


def unknowns(ledger: Ledger) -> list[Repeat]:
    """Every call of which the model was told that its outcome is unknown."""
    workers = {tool_use_id(done.token, done.index): done.worker for done in ledger.executions}
    asked_at = {call.token: call.begun for call in ledger.model_calls}
    found = {}
    for call in ledger.model_calls:
        for told in call.told:
            if is_unknown(told):
                # Not executed: it was lost on its way, so that any worker may have been the cause.
                places = [workers[told.tool_use_id]] if told.tool_use_id in workers else None
                cause = hit(ledger.faults, places, asked_at.get(call.after or "", 0.0), call.begun)
                found[told.tool_use_id] = Repeat(f"tool call {told.tool_use_id}", call.begun, cause)
    return list(found.values())


def is_unknown(told: Told) -> bool:
    """Whether the model was told that the outcome of a call is unknown."""
    return told.is_error and "outcome unknown" in told.text


def hit(faults: Sequence[Fault], workers: Iterable[str] | None, begun: float, over: float) -> str | None:
    """The kind of the fault that hit one of `workers` (None: any), or the broker, in that time: rather one that was
    under way than one that was still felt, and rather the worker's own."""
    places = None if workers is None else set(workers)
    felt = [
        fault
        for fault in faults
        if fault.kind in AFTER_S
        and (places is None or fault.worker is None or fault.worker in places)
        and fault.begun <= over + CLOCKS_S
        and fault.ended + AFTER_S[fault.kind] >= begun
    ]
    felt.sort(key=lambda fault: (fault.ended < begun, fault.worker is None, -fault.begun))
    return felt[0].kind if felt else None


def awoken(faults: Sequence[Fault], worker: str, at: float) -> str | None:
    """The fault from which `worker` had just come back when it did something at `at`, not knowing what it missed."""
    return hit([fault for fault in faults if fault.kind not in ("kill", "mute")], [worker], at, at)
