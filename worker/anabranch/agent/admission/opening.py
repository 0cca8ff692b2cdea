"""A request becomes a run: the event that opens it, or why it is a bad one.

Everything that depends on configuration, on the registry or on a clock is decided here, before the event is appended.
Must never: append, or wait. Called by: `admission.py`, for each request whose run is not known.
"""

from __future__ import annotations

from typing import Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.prompt.programmatic import check_request
from anabranch.agent.state import Nexts
from anabranch.agent.station import Station
from anabranch.bodies import dump, refuse_incomplete
from anabranch.codec import Record, header
from anabranch.errors import InvalidRequest, StoreError
from anabranch.fields import Lane, life_of
from anabranch.prices import price_of
from anabranch.spans import HEADER as TRACE
from anabranch.spans import valid
from anabranch.specs import AgentSpec
from anabranch.topics import BODY_BYTES

SURELY_FITS: Final = BODY_BYTES // 5
"""Bytes of a request that fits into the log however it is written there: 1e15 becomes 1000000000000000.0."""


def event_of(
    station: Station, record: Record, lane: Lane, request: m.RunRequest, agent: AgentSpec, after: Nexts
) -> e.RunRequested:
    """The event that opens the run, with everything decided that depends on configuration or a clock."""
    opening, body = written(station, record, request, agent)
    life = life_of(lane, record.offset)
    return e.RunRequested(
        request.run_id or "",
        life,
        after.interactive or 0,
        record.offset,
        opening,
        len(body),
        lane,
        after.bulk,
        _trace_of(station, record, request, life),
        body,
    )


def written(station: Station, record: Record, request: m.RunRequest, agent: AgentSpec) -> tuple[e.Opening, bytes]:
    """What the run begins with, and as the log says it: what is too large for that is a bad request."""
    limits = agent.limits
    opening = e.Opening(
        request=request,
        revision=agent.revision,
        deadline=station.clockwork.now() + time_s(request, agent),
        limits=e.RunLimits(min(request.max_turns or limits.max_turns, limits.max_turns), _cost(request, agent)),
        requested_at=record.timestamp / 1000,
    )
    if (size := len(body := dump(opening))) > BODY_BYTES:
        mend = "a client with a store sends a reference (ANABRANCH_STORE)"
        raise InvalidRequest(f"the request is too large: {size} bytes, of {BODY_BYTES} at most; {mend}")
    return opening, body


def time_s(request: m.RunRequest, agent: AgentSpec) -> float:
    """How long the run has, from its admission on."""
    return min(request.deadline_s or agent.limits.deadline_s, agent.limits.deadline_s)


def _trace_of(station: Station, record: Record, request: m.RunRequest, life: str) -> str | None:
    """The trace that the run belongs to: its client's, or one of its own where we tell of any."""
    given, traces = valid(header(record.headers, TRACE)), station.traces
    if traces is None:
        return given
    return traces.admitted(given, request.agent or "", request.run_id or "", life, record.timestamp / 1000)


def agent_of(station: Station, request: m.RunRequest) -> AgentSpec:
    """Who is to run; whatever is wrong with the request is told first."""
    agent = station.registry.agent(refuse_incomplete(request))
    if agent is None:
        known = ", ".join(sorted(station.registry.agents)) or "none"
        raise InvalidRequest(f"there is no agent {request.agent!r}; the agents are: {known}", "unknown_agent")
    check_request(request, agent, station.registry.tool)
    for model in agent.models if _cost(request, agent) is not None else ():
        if price_of(model, station.prices) is None:
            raise InvalidRequest(f"max_cost_usd: no price is configured for model {model!r} ([prices] in the settings)")
    if request.messages_ref is not None:
        _refuse_beyond_store(station, request.messages_ref)
    if request.messages_sealed is not None:
        _refuse_without_keys(station, request.messages_sealed)
    if request.reply_to is not None and request.reply_to.partition >= station.response_partitions:
        top = station.response_partitions - 1
        raise InvalidRequest(f"reply_to.partition: is {request.reply_to.partition}, and the last partition is {top}")
    return agent


def _refuse_beyond_store(station: Station, reference: str) -> None:
    """Whether the object is there is seen when it is needed."""
    try:
        station.store.refuse(reference)
    except StoreError as error:
        raise InvalidRequest(f"messages_ref: {error}") from None


def _refuse_without_keys(station: Station, sealed: str) -> None:
    """Whether it opens is seen when it is needed."""
    try:
        station.sealing.refuse(sealed)
    except StoreError as error:
        raise InvalidRequest(f"messages_sealed: {error}") from None


def _cost(request: m.RunRequest, agent: AgentSpec) -> float | None:
    """What the run may cost: the lower of two limits, None being none."""
    one, other = request.max_cost_usd, agent.limits.max_cost_usd
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
