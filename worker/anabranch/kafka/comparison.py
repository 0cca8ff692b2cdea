"""What a topic is and what it should be: which deviations there are, which of them are dangerous, what mends them.

Responsible for: judging topics as a broker describes them by their specs, in pure functions.
Must never: speak to a broker. What a broker does not say is unknown, not wrong.
Called by: `admin.py`, `memory/cluster.py`.

Some settings are bounds: records that are kept longer, or may be larger, than wanted are no deviation, so that
`apply` never deletes what somebody wants to keep; a bound of a topic's size is left alone where it leaves enough room.
`agent.log` and both lanes of requests of a namespace are twins: a
run has the same partition in all of them, so their counts agree, and are fixed for life.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Final

from anabranch.kafka.seam import Lack
from anabranch.topics import BULK_REQUESTS, LOG, REQUESTS, TopicSpec
from anabranch.values import frozen
from anabranch.wording import counted

APPLY: Final = "`anabranch topics apply APP`"
REPLICAS: Final = 3
"""Replicas of a topic in production: as many, or more, brokers are taken for it."""

_ISR: Final = "min.insync.replicas"
_UNCLEAN: Final = "unclean.leader.election.enable"
_RETENTION: Final = "retention.ms"
_SIZE: Final = "retention.bytes"
_BOUNDS: Final = {_RETENTION, "max.message.bytes"}
_UNLIMITED: Final = "-1"
ROOM_BYTES: Final = 1024**3
"""What a partition must have room for at least: its open runs take up to twice 64 MB of the log, and some more."""
# Settings whose deviation is dangerous for every topic that has them in its spec, and for twins only.
_DANGEROUS: Final = {"cleanup.policy", "max.message.bytes"}
_DANGEROUS_FOR_TWINS: Final = {_RETENTION, _SIZE, "message.timestamp.type"}


@frozen()
class Configs:
    """A topic's settings as reported, and those among them that were set for this topic (None: kept secret)."""

    values: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str | None] = field(default_factory=dict)


@frozen()
class Seen:
    """A topic as the broker has it. `configs` is None if we may not read them; `replicas` is the lowest count."""

    partitions: int
    replicas: int
    led: bool = True
    configs: Configs | None = field(default_factory=Configs)


@frozen()
class Cluster:
    """The brokers' number, and the topics that exist, by name."""

    brokers: int
    topics: Mapping[str, Seen]


def lacks(specs: Sequence[TopicSpec], cluster: Cluster) -> list[Lack]:
    """Every deviation, topic by topic."""
    found = [lack for spec in specs for lack in _lacks_of(spec, specs, cluster)]
    return found + [lack for log in _logs(specs) for lack in _apart(log, cluster)]


def partitions_to_create(spec: TopicSpec, specs: Sequence[TopicSpec], cluster: Cluster) -> int:
    """How many partitions a missing topic gets: as many as its twins have, if one exists already."""
    twins = (cluster.topics.get(twin) for twin in _twins(specs).get(spec.name, ()))
    return next((other.partitions for other in twins if other is not None), spec.partitions)


def partitions_to_add(spec: TopicSpec, specs: Sequence[TopicSpec], cluster: Cluster) -> int:
    """How many partitions an existing topic lacks; a twin none, whatever it has."""
    seen = cluster.topics[spec.name]
    return 0 if spec.name in _twins(specs) else max(0, spec.partitions - seen.partitions)


def changes(spec: TopicSpec, seen: Seen, new: bool) -> dict[str, str]:
    """The settings to alter. A topic that is `new`, and replicated, also gets what makes replication safe."""
    if seen.configs is None:
        return {}
    values = seen.configs.values
    wrong = {name: wanted for name, wanted in spec.settings.items() if not _suffices(name, values.get(name), wanted)}
    if new and seen.replicas >= REPLICAS:
        wrong |= {name: wanted for name, wanted, _ in _unsafe(seen.configs)}
    return wrong


def _lacks_of(spec: TopicSpec, specs: Sequence[TopicSpec], cluster: Cluster) -> Iterator[Lack]:
    seen = cluster.topics.get(spec.name)
    if seen is None:
        yield Lack(spec.name, f"{spec.name} is missing: {APPLY} creates it", True)
        return
    twin = spec.name in _twins(specs)
    if more := partitions_to_add(spec, specs, cluster):
        counts = f"{counted(seen.partitions, 'partition')}, and {spec.partitions} are wanted"
        yield Lack(spec.name, f"{spec.name} has {counts}: {APPLY} adds {more}", False)
    if seen.configs is None:
        message = f"{spec.name}: its settings cannot be read; allow DescribeConfigs on this topic to check them"
        yield Lack(spec.name, message, False)
    yield from _settings(spec, seen, twin)
    if cluster.brokers >= REPLICAS:
        yield from _replication(spec.name, seen)


def _settings(spec: TopicSpec, seen: Seen, twin: bool) -> Iterator[Lack]:
    values = seen.configs.values if seen.configs else {}
    for name, wanted in changes(spec, seen, new=False).items():
        must = "at least " if name in _BOUNDS else ""
        so = ", which deletes what open runs and waiting requests need," if name == _SIZE else ""
        message = f"{spec.name}: {name} is {values[name]}{so} and must be {must}{wanted}: {APPLY} sets it"
        yield Lack(spec.name, message, name in _DANGEROUS or (twin and name in _DANGEROUS_FOR_TWINS))
    limit = values.get(_SIZE, _UNLIMITED)
    if twin and limit != _UNLIMITED and _suffices(_SIZE, limit, _UNLIMITED):
        message = f"{spec.name}: {_SIZE} is {limit}, so records may go before their time: set it to {_UNLIMITED}"
        yield Lack(spec.name, message, False)


def _replication(topic: str, seen: Seen) -> Iterator[Lack]:
    if seen.replicas < REPLICAS:
        has = f"has replication factor {seen.replicas}, and {REPLICAS} is wanted in production"
        yield Lack(topic, f"{topic} {has}: kafka-reassign-partitions adds replicas", False)
    for name, wanted, value in _unsafe(seen.configs or Configs()):
        has = f"{name} is {value}, and {wanted} is wanted in production"
        yield Lack(topic, f"{topic}: {has}: kafka-configs --alter sets it", False)


def _unsafe(configs: Configs) -> Iterator[tuple[str, str, str]]:
    """Setting, wanted value and value of what makes a replicated topic lose acknowledged records."""
    least = configs.values.get(_ISR)
    if least is not None and int(least) < REPLICAS - 1:
        yield _ISR, str(REPLICAS - 1), least
    if configs.values.get(_UNCLEAN) == "true":
        yield _UNCLEAN, "false", "true"


def _apart(log: str, cluster: Cluster) -> Iterator[Lack]:
    if log not in cluster.topics:
        return
    many = cluster.topics[log].partitions
    for requests in _requests_of(log):
        seen = cluster.topics.get(requests)
        if seen is not None and seen.partitions != many:
            message = (
                f"{log} has {counted(many, 'partition')} and {requests} has {seen.partitions}: they must have the same "
                f"number from the first run on; delete both, or take another namespace, and let {APPLY} create them"
            )
            yield Lack(log, message, True)


def _suffices(name: str, value: str | None, wanted: str) -> bool:
    if value is None or value == wanted:
        return True
    if name == "cleanup.policy":
        return set(value.split(",")) == set(wanted.split(","))
    if name == _SIZE:
        return int(value) >= ROOM_BYTES
    if name in _BOUNDS:
        return (name == _RETENTION and value == _UNLIMITED) or int(value) >= int(wanted)
    return False


def _logs(specs: Sequence[TopicSpec]) -> list[str]:
    # A queue may be called "agent.log", of which no broker's time is wanted: so not by the name only.
    return [spec.name for spec in specs if "message.timestamp.type" in spec.settings and spec.name.endswith(f".{LOG}")]


def _requests_of(log: str) -> list[str]:
    return [log.removesuffix(LOG) + requests for requests in (REQUESTS, BULK_REQUESTS)]


def _twins(specs: Sequence[TopicSpec]) -> dict[str, list[str]]:
    """Each twin's others, the log first."""
    alike = [[log, *_requests_of(log)] for log in _logs(specs)]
    return {one: [other for other in all_ if other != one] for all_ in alike for one in all_}
