"""The evidence of a seed, prepared for whoever judges it: the whole log folded, and the answers. PURE.

Must never: judge. Called by: `checker.py`, `how_often.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.state import Partition, Run
from anabranch.codec import decode
from anabranch.errors import WireError
from anabranch.kafka.seam import Place
from tests.simulation.evidence import NAMESPACE, PARTITIONS, Evidence
from tests.simulation.ledger import Execution, Fault, ModelCall

CLOSE_S: Final = 0.05
"""What a record may take from the hands of its writer to the reader that waits for it; as long is forgiven."""


@dataclass(slots=True)
class Facts:
    """The evidence, prepared: every life of every run as the whole log has it, and the answers."""

    evidence: Evidence
    lives: dict[tuple[str, str], Run] = field(default_factory=dict)
    won: set[str] = field(default_factory=set)
    answers: dict[str, list[tuple[float, int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    events: dict[int, list[tuple[e.Event | None, int, float]]] = field(default_factory=dict)

    @property
    def orderly(self) -> bool:
        return self.evidence.profile.orderly

    def lives_of(self, run_id: str) -> int:
        return sum(known == run_id for known, _ in self.lives)

    def faults(self, *kinds: str) -> list[Fault]:
        return [fault for fault in self.evidence.ledger.faults if not kinds or fault.kind in kinds]


def facts_of(evidence: Evidence) -> Facts:
    """Folds every log of the evidence."""
    facts = Facts(evidence)
    for partition in range(PARTITIONS):
        records = evidence.records[Place(NAMESPACE.log, partition)]
        facts.events[partition] = [(_event(record), record.offset, record.timestamp / 1000) for record in records]
        _fold_all(facts, facts.events[partition])
    for place, records in evidence.records.items():
        for record in records if place.topic == NAMESPACE.responses else ():
            key = (record.key or b"").decode()
            facts.answers[key].append((record.timestamp / 1000, place.partition, record.value or b""))
    return facts


def _event(record: Any) -> e.Event | None:
    try:
        return decode(record)
    except WireError:
        return None


def _fold_all(facts: Facts, events: Iterable[tuple[e.Event | None, int, float]]) -> None:
    state = Partition(next_request=0, next_bulk=0)
    for event, offset, at in events:
        run = fold.apply(state, event, offset, at)
        if run is None:
            continue
        facts.lives[run.run_id, run.life] = run
        if isinstance(event, e.ModelReplied) and run.turns and run.turns[-1].attempt == event.attempt:
            facts.won.update(call.tool_use_id for call in event.plan)


def named(call: ModelCall) -> str:
    return f"the model call of {call.run_id} turn {call.turn} by {call.process} at {call.at:.3f}"


def told(execution: Execution) -> str:
    return f"the execution of {execution.ask} ({execution.tool}) by {execution.process} at {execution.at:.3f}"
