"""What the outside world saw: every model call, every execution of a tool, every fault. Never told by us.

Responsible for: the records that the model's and the tools' doubles write while they run.
Must never: ask a worker anything.
Called by: the doubles in `workload.py`, the world; read by the checker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal["kill", "freeze", "cut", "expel", "lost commit", "regressed commits", "copy"]


@dataclass(slots=True)
class ModelCall:
    """One request to the model. `batch` are the tool_use ids of the last assistant message in it, `results` what the
    last user message says of them: (id, text, is_error). `asked` are the ids that the reply asks for, `spoken` those
    that were heard before it was whole.
    """

    run_id: str
    turn: int
    process: str
    at: float
    body: bytes
    batch: tuple[str, ...]
    results: tuple[tuple[str, str, bool], ...]
    ended_at: float | None = None
    end: Literal["replied", "failed", "cancelled"] | None = None
    asked: tuple[str, ...] = ()
    spoken: tuple[str, ...] = ()


@dataclass(slots=True)
class Execution:
    """One start of a tool. `ask` is the tool_use id that the model gave the call, which travels in its input."""

    ask: str
    tool: str
    account: str
    attempt: int
    process: str
    at: float
    ended_at: float | None = None
    finished: bool = False


@dataclass(slots=True)
class Fault:
    """Something that we did to a process, and from when to when it may have had an effect."""

    kind: FaultKind
    process: str
    begin: float
    end: float


@dataclass(slots=True)
class Ledger:
    """`now` are virtual seconds. `trace` is the order of events, to be compared between two runs of a seed."""

    now: Callable[[], float]
    model_calls: list[ModelCall] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    asked_again: Counter[str] = field(default_factory=Counter)  # by run: the copies of its request that we made
    trace: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.trace.append(f"{self.now():.6f} {text}")

    def fault(self, kind: FaultKind, process: str, for_s: float = 0.0) -> None:
        self.say(f"fault: {kind} {process} {for_s:.3f}")
        self.faults.append(Fault(kind, process, self.now(), self.now() + for_s))

    def died(self, process: str) -> None:
        """It is gone, and what it executed with it."""
        for execution in self.executions:
            if execution.process == process and execution.ended_at is None:
                execution.ended_at = self.now()
