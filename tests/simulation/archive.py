"""What has ever lain in the topics, and what was committed meanwhile; retention, which eats what is old.

Responsible for: keeping for the judge what is gone for the workers, and trimming as a seed's retention says.
Must never: trim what a fold from the last commit still needs, unless retention goes by age as Kafka's does.
Called by: the world, every now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from anabranch.agent.commit import read_commit
from anabranch.kafka.memory.cluster import MemoryBroker, MemoryRecord
from anabranch.kafka.seam import Committed, Place
from tests.simulation.evidence import NAMESPACE, PARTITIONS, Sample
from tests.simulation.faults import Retention
from tests.simulation.workload import QUEUE

GROUPS: Final = (NAMESPACE.agents_group, NAMESPACE.tools_group(QUEUE))
AGE_S: Final = 75.0
"""How long requests and logs are kept where retention goes by age: longer than a story may be without any worker, for
nobody says a run again then."""


@dataclass(slots=True)
class Archive:
    """`now` is the broker's time in epoch seconds. `older` is what each group had committed at each look."""

    broker: MemoryBroker
    retention: Retention
    now: Callable[[], float]
    samples: list[Sample] = field(default_factory=list)
    older: dict[str, list[dict[Place, Committed]]] = field(default_factory=lambda: {group: [] for group in GROUPS})
    gone: dict[Place, list[MemoryRecord]] = field(default_factory=dict)

    def records(self, topic: str, partition: int) -> Sequence[MemoryRecord]:
        """Everything that was ever written there, what is gone too: a record's index is its offset."""
        place = Place(topic, partition)
        return [*self.gone.get(place, ()), *self.broker.records(place)]

    def look(self) -> None:
        """Note what is committed now; then retention takes its share."""
        for group, seen in self.older.items():
            seen.append(dict(self.broker.commits(group)))
        commits = self.broker.commits(NAMESPACE.agents_group)
        known = {sample.partition: sample for sample in self.samples}
        for partition in range(PARTITIONS):
            place = Place(NAMESPACE.log, partition)
            if (committed := commits.get(place)) is not None:
                end = len(self.gone.get(place, ())) + len(self.broker.records(place))
                last = known.get(partition)
                bulk = commits.get(Place(NAMESPACE.bulk_requests, partition))
                if last is None or (last.committed, last.bulk, last.end) != (committed, bulk, end):
                    self.samples.append(Sample(partition, committed, bulk, end, self.now()))
        self._retain()

    def _retain(self) -> None:
        if self.retention == "low":
            self._keep_from_low()
        elif self.retention == "age":
            for partition in range(PARTITIONS):
                for topic in (NAMESPACE.log, NAMESPACE.requests, NAMESPACE.bulk_requests):
                    self._keep_the_young(Place(topic, partition))
        if self.retention != "none":
            for place, committed in self.broker.commits(NAMESPACE.tools_group(QUEUE)).items():
                self._trim(place, committed.offset)

    def _keep_from_low(self) -> None:
        """Whatever no fold from the last commits reads again; requests are older than the events that name them."""
        agents = self.broker.commits(NAMESPACE.agents_group)
        for partition in range(PARTITIONS):
            place = Place(NAMESPACE.log, partition)
            bulk = Place(NAMESPACE.bulk_requests, partition)
            commit = read_commit(agents.get(place), agents.get(bulk))
            if commit is not None and commit.next_request >= 0 and commit.next_bulk >= 0:
                self._trim(place, commit.low)
                self._trim(Place(NAMESPACE.requests, partition), commit.next_request)
                self._trim(bulk, commit.next_bulk)

    def _keep_the_young(self, place: Place) -> None:
        old_ms = (self.now() - AGE_S) * 1000
        records = self.broker.records(place)
        keep = next((record.offset for record in records if record.timestamp >= old_ms), None)
        self._trim(place, keep if keep is not None else len(self.records(*place)))

    def _trim(self, place: Place, offset: int) -> None:
        gone = self.gone.setdefault(place, [])
        gone += self.broker.records(place)[: max(0, offset - len(gone))]
        self.broker.trim(place, offset)
