"""What is left when a seed is over, and the names that its makers and its judge have in common.

Responsible for: the evidence as plain values, and how far a group has got.
Must never: judge.
Called by: the world, which fills it, and the checker, which reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from anabranch.kafka.memory.cluster import MemoryRecord
from anabranch.kafka.seam import Committed, Place
from anabranch.topics import Namespace, TopicSpec
from tests.simulation.faults import Profile
from tests.simulation.ledger import Ledger
from tests.simulation.workload import INBOXES, QUEUE, PlannedCall, Workload

EPOCH: Final = 1_800_000_000.0
"""The broker's time when a seed begins, in epoch seconds."""
PARTITIONS: Final = 2
NAMESPACE: Final = Namespace("sim")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was committed for a partition of the log and with it for the bulk lane, where the log ended then, and when
    it was, in epoch seconds.
    """

    partition: int
    committed: Committed
    bulk: Committed | None
    end: int
    at: float


@dataclass(frozen=True, slots=True, repr=False)
class Evidence:
    """Everything that is left when a seed is over. `records` is what was ever written in each place; so many of them
    were `gone` for the workers in the end. It is not shown: that is megabytes, which `asyncio.Runner` would write and
    throw away.
    """

    seed: int
    profile: Profile
    workload: Workload
    calls: dict[str, PlannedCall]
    ledger: Ledger
    records: dict[Place, Sequence[MemoryRecord]]
    commits: dict[str, dict[Place, Committed]]
    samples: list[Sample]
    gone: int


def lags(
    commits: Callable[[str], Mapping[Place, Committed]], records: Callable[[str, int], Sequence[MemoryRecord]]
) -> dict[Place, int]:
    """How many records each group has not committed."""
    agents, tools = commits(NAMESPACE.agents_group), commits(NAMESPACE.tools_group(QUEUE))
    found: dict[Place, int] = {}
    for spec in specs():
        ours = dict.fromkeys((NAMESPACE.log, NAMESPACE.requests, NAMESPACE.bulk_requests), agents)
        owner = {**ours, NAMESPACE.calls(QUEUE): tools}.get(spec.name)
        for number in range(spec.partitions if owner is not None else 0):
            place = Place(spec.name, number)
            committed = owner.get(place) if owner is not None else None
            found[place] = len(records(*place)) - (committed.offset if committed is not None else 0)
    return found


def specs() -> list[TopicSpec]:
    """The topics of a namespace, with as few partitions as are of interest."""
    few = {NAMESPACE.calls(QUEUE): 2, NAMESPACE.responses: INBOXES, NAMESPACE.stream: 1, NAMESPACE.dead_letters: 1}
    full = NAMESPACE.specs([QUEUE], PARTITIONS)
    return [TopicSpec(spec.name, few.get(spec.name, spec.partitions), spec.settings) for spec in full]
