"""How an agent worker stands, once a second: its gauges. It reads, and decides nothing. `AgentWorker` calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from anabranch.agent.admission import Admission
from anabranch.agent.owner import Owner
from anabranch.agent.station import Station
from anabranch.kafka.seam import Place
from anabranch.messages import LANES


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
    meters.low_age.set(max((_age(owner.low_at, now) for owner in owners if owner.live), default=0.0))
    meters.admission_held.set(station.room.waiting > 0, "bytes")
    meters.admission_held.set(station.saturation.holds, "queue")
    meters.oldest_request.set(max((_age(admission.waiting_since, now) for admission in admissions), default=0.0))
    lag = meters.lag.copied()
    meters.admission_lag.set(sum(lag.get((station.namespace.requests_of(lane),), 0.0) for lane in LANES))
    _sample_model(station)


def _sample_model(station: Station) -> None:
    meters = station.meters
    for lane in station.thinker.lanes:
        meters.model_in_flight.set(lane.begun, lane.name)
        meters.model_waiting.set(len(lane.line), lane.name)
        meters.model_limit_ratio.set(lane.budget.open_part, lane.name)


def _age(at: float, now: float) -> float:
    """`inf`: there is nothing that has an age."""
    return max(0.0, now - at)
