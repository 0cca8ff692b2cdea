"""Examples of every body and of every event, for the schemas and for those who read them.

Values of the message types, so that they cannot fall behind. Tests encode, decode and validate each of them.
Used by `schemagen`, `asyncapi` and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.bodies import dump
from anabranch.fields import SEALED
from anabranch.specs import AgentSpec, LimitSpec, ToolSpec, WorkerInfo

AT: Final = 1767225600.0
RUN: Final = "order-1234"
LIFE: Final = "17"
ATTEMPT: Final = "9f86d081884c7d65"
CALL: Final = f"{RUN}/1.{ATTEMPT}/0"
WORKER: Final = "tool-4f2a"
TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

_request = m.RunRequest(
    run_id=RUN,
    agent="analyst",
    input="Review order 1234",
    tenant="acme",
    deadline_s=600.0,
    metadata={"ticket": 7},
    reply_to=m.ReplyTo(3),
)
_cancel = m.RunRequest(run_id=RUN, cancel=True)
_seal = "6c1f0b1e9a3d4c52;AAECAwQFBgcICQoLFFQc1Abl4wNtBTnE033je+jbmHwxAFw="
_sealed = m.RunRequest(RUN, "analyst", messages_sealed=_seal, tenant="acme", metadata_sealed=_seal)
_opening = e.Opening(_request, "5d41402abc4b2a76", AT + 600, e.RunLimits(20, 0.5), AT)
_planned = e.PlannedCall(CALL, "toolu_01", "get_customer", queue="io", key=CALL)
_homed = e.PlannedCall(CALL, "toolu_01", "get_customer", queue="io", key=CALL, partition=7)
_refused = e.PlannedCall(f"{CALL[:-1]}1", "toolu_02", "get_weather", rejected="there is no tool 'get_weather'")
_hidden = e.PlannedCall(f"{CALL[:-1]}2", "toolu_03", "get_customer", rejected=SEALED, rejected_sealed=_seal)
_usage = m.Usage(input_tokens=812, output_tokens=64, cost_usd=0.0034)
_busy = e.Tried("claude-sonnet-4-5", AT, 0.12, "overload", "529: Overloaded")
_broke = e.Tried("claude-sonnet-4-5", AT + 1, 4.5, "broken", "the stream ended in the middle of the reply")
_spoke = e.Tried("claude-haiku-4-5", AT + 7, 3.25)
_result = e.ToolResult("Ada Example, customer since 2019", AT + 1, AT + 1.4, 1, WORKER)
_pictured = e.ToolResult([{"type": "text", "text": "a chart"}], AT + 1, AT + 2, 2, WORKER)
_error = m.RunError("invalid_request", "max_turns: Input should be a valid integer (got 'many')")
_call = m.ToolCall(
    call_id=CALL,
    run_id=RUN,
    agent="analyst",
    tenant="acme",
    tool="get_customer",
    input={"customer_id": 1234},
    dispatch=1,
    deadline=AT + 600,
    idempotency_key=CALL,
    reply=m.ReplyTopic("shop.agent.log", 11),
)
_response = m.RunResponse(
    RUN,
    "analyst",
    "5d41402abc4b2a76",
    "completed",
    output="Nothing to complain of.",
    stop_reason="end_turn",
    usage=m.TotalUsage(1700, 130, cost_usd=0.007),
    turns=2,
    calls=m.CallCounts(3, 0, 1, 3),
    timing=m.Timing(0.01, 2.1, 0.6, 2.8, 1.5),
    metadata={"ticket": 7},
)
_schema = {"type": "object", "properties": {"customer_id": {"type": "integer"}}, "required": ["customer_id"]}
_tool = ToolSpec("get_customer", "io", "Fetch a customer by id.", _schema, limit="crm", read_only=True)
_agent = AgentSpec("analyst", "5d41402abc4b2a76", "claude-sonnet-4-5", system="Be brief.", tools=["get_customer"])
_message = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "stop_reason": "tool_use",
    "content": [{"type": "tool_use", "id": "toolu_01", "name": "get_customer", "input": {"customer_id": 1234}}],
}

_cut = {"id": "msg_02", "type": "message", "stop_reason": "max_tokens", "content": [{"type": "text", "text": "So the"}]}

EXAMPLES: Final[Mapping[str, tuple[Any, ...]]] = {
    "run-request": (m.RunRequest(agent="analyst", input="Review order 1234"), _request, _cancel, _sealed),
    "run-response": (
        _response,
        m.RunResponse(RUN, None, None, "failed", error=_error),
        replace(_response, output=None, content_sealed=[_seal], metadata=None, metadata_sealed=_seal),
    ),
    "tool-call": (_call, replace(_call, input=None, input_sealed=_seal)),
    "tool-result": (_result, _pictured, replace(_result, content=None, content_sealed=_seal)),
    "stream-delta": (
        m.StreamDelta(RUN, 2, ATTEMPT, "text", text="Nothing to ", number=4, index=0),
        m.StreamDelta(RUN, 1, ATTEMPT, "tool_use", tool="get_customer", tool_use_id="toolu_01", number=1, index=1),
        m.StreamDelta(
            RUN,
            1,
            ATTEMPT,
            "tool_input",
            tool="get_customer",
            tool_use_id="toolu_01",
            number=2,
            index=1,
            input={"customer_id": 1234},
        ),
        m.StreamDelta(RUN, 1, ATTEMPT, "discarded", number=3),
        m.StreamDelta(RUN, 2, ATTEMPT, "text", text_sealed=_seal, number=5, index=0),
    ),
    "opening": (_opening,),
    "planned-call": (_planned, _homed, _refused, _hidden),
    "usage": (
        e.AttemptUsage(812, 64, cost_usd=0.0034),
        e.AttemptUsage(812, 64, cost_usd=0.0011, model="claude-haiku-4-5", tried=(_busy, _spoke)),
    ),
    "run-error": (_error, m.RunError("model_rejected", SEALED, _seal)),
    "model-failure": (e.ModelFailure("model_unavailable", "no reply before the deadline", tried=(_busy,)),),
    "tool-spec": (_tool,),
    "limit-spec": (LimitSpec("crm", "io", 50.0, 20), LimitSpec("mail", "io", 1 / 60, per="tenant")),
    "agent-spec": (_agent,),
    "worker-info": (WorkerInfo(WORKER, "tool", "0.1.0", AT, AT + 30, queue="io", running=2),),
    "request-note": ({"error": _error, "reply_to": m.ReplyTo(3)}, {}),
    "reason": ({"reason": "cancelled by its client"},),
    "handed-off-calls": ({"calls": [CALL]},),
    "nothing": ({},),
    "snapshot-part": ({"pieces": [[0, "{}"]]},),
    "model-message": (_message,),
}
"""By the body's name; a field that is null is left out when it is written."""

EVENTS: Final[tuple[e.Event, ...]] = (
    e.RunRequested(RUN, LIFE, 17, 17, _opening, after_bulk=40, trace=TRACE),
    e.RunRequested(RUN, "bulk.40", 18, 40, _opening, lane="bulk", after_bulk=40),
    e.RequestNoted(RUN, "18", 18, 18, "rejected", _error, m.ReplyTo(3)),
    e.RequestNoted(RUN, "19", 19, 19, "duplicate", after_bulk=41),
    e.ModelReplied(RUN, LIFE, 1, ATTEMPT, "calls", (_planned, _refused), _usage, dump(_message)),
    e.ModelReplied(RUN, LIFE, 2, ATTEMPT, "stopped", (), _usage, dump(_cut), code="budget_exceeded"),
    e.ModelReplied(
        RUN, LIFE, 1, ATTEMPT, "calls", (_planned,), _usage, dump(_message), model="claude-haiku-4-5", tried=(_spoke,)
    ),
    e.ModelFailed(RUN, LIFE, 1, ATTEMPT, m.RunError("model_unavailable", "no reply before the deadline"), (_busy,)),
    e.ModelDiscarded(RUN, LIFE, 1, ATTEMPT, _usage, "the reply broke off", "claude-haiku-4-5", (_busy, _broke)),
    e.ModelDiscarded(RUN, LIFE, 1, ATTEMPT, _usage, "the reply broke off"),
    e.ToolReturned(RUN, LIFE, CALL, "ok", dump(_result)),
    e.ModelHandedOff(RUN, LIFE, 1, "agent-77b0", 42.5),
    e.CallsHandedOff(WORKER, 12.0, (CALL,)),
    e.CallLost(RUN, LIFE, CALL, 4711),
    e.CallExpired(RUN, LIFE, CALL, "no result before the deadline"),
    e.CallDispatched(RUN, LIFE, CALL, "c0ffee"),
    e.PartitionReleased(4711),
    e.RunCancelled(RUN, None, "cancelled by its client", 20, 41),
    e.RunCancelled(RUN, LIFE, "cancelled by its client"),
    e.RunExpired(RUN, LIFE, "past its deadline"),
    e.RunExpired(RUN, LIFE, "past its deadline", ATTEMPT, _usage, "claude-haiku-4-5", (_spoke,)),
    e.RunSnapshot(RUN, LIFE, 4711, 18, 1, 1, "worker-1", b'{"pieces":[[0,"{}"]]}', next_bulk=41),
)
"""At least one of each kind of event that we write."""
