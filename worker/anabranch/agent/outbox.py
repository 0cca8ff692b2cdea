"""The records that an owner publishes: tool calls, answers, and what is told to those who watch. PURE, but for what
`Station` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anabranch.agent.reply.content import content_of
from anabranch.agent.reply.referring import Input, content_elsewhere, inputs_of
from anabranch.agent.state import Call, Run, Turn
from anabranch.agent.station import Station
from anabranch.agent.telemetry.traces import call_header
from anabranch.bodies import dump, whole
from anabranch.codec import Outgoing, cloud_event
from anabranch.errors import SealError
from anabranch.fields import lane_of
from anabranch.log_events import PlannedCall
from anabranch.messages import ReplyTo, ReplyTopic, StreamDelta, ToolCall
from anabranch.spans import HEADER as TRACE


def call_record(station: Station, partition: int, run: Run, call: Call) -> Outgoing:
    """The record for `tool.calls.<queue>` of a call of the batch that is out."""
    planned = call.planned
    given = _inputs(run.turns[-1]).get(planned.tool_use_id, {})
    return _call_record(station, partition, run, planned, given, call.dispatch, run.deadline_of(call))


def early_record(station: Station, partition: int, run: Run, planned: PlannedCall, given: Input) -> Outgoing:
    """The record of a call whose reply is not whole: its dispatch is 0, below that of any call in the log."""
    return _call_record(station, partition, run, planned, given, 0, run.opening.deadline)


def _call_record(
    station: Station, partition: int, run: Run, planned: PlannedCall, given: Input, dispatch: int, deadline: float
) -> Outgoing:
    call_id, request = planned.call_id, run.opening.request
    plain, reference, sealed = _placed(given, run)
    body = ToolCall(
        call_id=call_id,
        run_id=run.run_id,
        agent=request.agent or "",
        tenant=request.tenant,
        lane="bulk" if lane_of(run.life) == "bulk" else None,
        tool=planned.tool,
        input=plain,
        input_ref=reference,
        input_sealed=sealed,
        dispatch=dispatch,
        deadline=deadline,
        idempotency_key=call_id,
        reply=ReplyTopic(station.namespace.log, partition),
    )
    topic = station.namespace.calls(planned.queue or "")
    pairs = [("ce_runid", run.run_id), ("ce_life", run.life), ("ce_callid", call_id)]
    if run.trace is not None and (trace := call_header(station.traces, run, call_id)) is not None:
        pairs.append((TRACE, trace))
    return cloud_event(
        topic,
        "tool.call",
        station.worker_id,
        planned.key or call_id,
        whole(body, "input_ref", "input_sealed", "lane"),
        pairs,
        planned.partition,
    )


def _placed(given: Input, run: Run) -> tuple[dict[str, Any] | None, str | None, str | None]:
    """The arguments where they belong: plain, as a reference, or sealed. Raises `SealError` rather than say in plain
    what must be sealed."""
    if run.opening.request.messages_sealed is not None:
        if not isinstance(given, str):
            raise SealError(f"run {run.run_id} is sealed, and the arguments of a call of it are not")
        return None, None, given
    return (None, given, None) if isinstance(given, str) else (given, None, None)


def _inputs(turn: Turn) -> Mapping[str, Input]:
    """The inputs of a reply's calls, by tool_use id; read once for all calls of the batch."""
    if turn.inputs is None and content_elsewhere(turn.body) is not None:
        turn.inputs = inputs_of(turn.body)
    elif turn.inputs is None:
        blocks = json.loads(content_of(turn.body))
        turn.inputs = {b["id"]: b["input"] for b in blocks if b.get("type") == "tool_use"}
    return turn.inputs


def response_record(
    station: Station, run_id: str, reply_to: ReplyTo | None, body: bytes, trace: str | None = None
) -> Outgoing:
    """The record for `agent.responses`."""
    topic, partition = station.namespace.responses, _inbox(station, reply_to)
    pairs = [(TRACE, trace)] if trace is not None else ()
    return cloud_event(topic, "run.response", station.worker_id, run_id, body, pairs, partition)


def stream_record(station: Station, run: Run, delta: StreamDelta) -> Outgoing:
    """The record for `agent.stream`."""
    topic, partition = station.namespace.stream, _inbox(station, run.opening.request.reply_to)
    return cloud_event(topic, "stream.delta", "anabranch", run.run_id, dump(delta), partition=partition)


def _inbox(station: Station, reply_to: ReplyTo | None) -> int | None:
    """The partition that a client reads; None: the run's id says, as where the topic is smaller than it thought."""
    if reply_to is None or reply_to.partition >= station.response_partitions:
        return None
    return reply_to.partition
