"""How an agent worker stands, once a second: its gauges. It reads, and decides nothing. `AgentWorker` calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from anabranch.agent.admission.admission import Admission
from anabranch.agent.model.breaker import State
from anabranch.agent.owner import Owner
from anabranch.agent.station import Station
from anabranch.fields import LANES
from anabranch.kafka.seam import Place


def sample(
    station: Station, places: frozenset[Place], owners: Collection[Owner], admissions: Collection[Admission]
) -> None:
    """Costs some steps for each partition and each model."""
    meters, now = station.meters, station.clockwork.now()
    meters.partitions.replace({(topic,): count for topic, count in Counter(place.topic for place in places).items()})
    meters.unacknowledged.set(station.appender.outstanding)
    meters.runs_open.set(sum(owner.held.runs for owner in owners))
    meters.runs_parked.set(sum(owner.parked_runs for owner in owners))
    meters.open_bytes.set(station.room.used)
    meters.open_bytes_max.set(station.room.limit)
    meters.low_age.set(max((_age(owner.reach.at, now) for owner in owners if owner.live), default=0.0))
    meters.admission_held.set(station.room.waiting > 0, "bytes")
    meters.admission_held.set(station.saturation.holds, "queue")
    meters.oldest_request.set(max((_age(admission.waiting_since, now) for admission in admissions), default=0.0))
    lag = meters.lag.copied()
    meters.admission_lag.set(sum(lag.get((station.namespace.requests_of(lane),), 0.0) for lane in LANES))
    _sample_model(station)


def _sample_model(station: Station) -> None:
    meters, now = station.meters, station.clockwork.steady()
    begun: Counter[str] = Counter()
    for lane in station.thinker.lanes:
        begun[lane.name] += lane.begun + lane.late
        meters.model_limit_ratio.set(lane.budget.open_part, lane.name)
        meters.model_breaker.set(_STATES[lane.breaker.state(now)], lane.model)
        meters.model_retry_budget.set(lane.retries.left(now), lane.model)
    waiting = station.thinker.waiting
    for name, number in begun.items():
        meters.model_in_flight.set(number, name)
        meters.model_waiting.set(waiting.get(name, 0), name)


_STATES: Final[Mapping[State, int]] = {"closed": 0, "half open": 1, "open": 2}


def _age(at: float, now: float) -> float:
    """`inf`: there is nothing that has an age."""
    return max(0.0, now - at)
