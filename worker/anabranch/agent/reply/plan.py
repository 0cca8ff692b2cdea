"""The plan of a batch: what becomes of each call that the model asked for. PURE, but for what seals it.

It is made once, when the reply arrives, from the registry and the agent's limits as they are then, and it
is appended together with the reply; so whoever folds the log later needs neither. A call that cannot be run
is rejected here, with a text that tells the model why.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson

from anabranch.about import Fields, traced
from anabranch.agent.reply.reply import RequestedCall
from anabranch.agent.reply.tokens import derived
from anabranch.fields import SEALED, Json
from anabranch.log_events import PlannedCall
from anabranch.specs import AgentSpec, ToolSpec
from anabranch.values import frozen

if TYPE_CHECKING:
    from anabranch.security.seals import Sealer

SHOWN = 2000
"""How much of an error's text the model gets to see, in bytes ..."""
SHOWN_OF_ALL = 60_000
"""... unless that is more than this in a turn of many: all of it stands in one header of the log ..."""
SHOWN_AT_LEAST = 200
"""... though never less."""
AFTER_BYTES = 80_000
"""How long the ids of calls may be together that others of their turn wait for."""
LONG = 500
"""A mistake in arguments that is told in more characters is told in so many: it quotes a value."""
DETAILED = 1000
"""Of arguments of more values than this one mistake is told, not the first five: a model may get 200,000 wrong."""


Partitioner = Callable[[ToolSpec, str, str | None, bool], int | None]
"""Which partition of its queue a call of this tool, with this key, for this tenant goes to (None: the key decides); the
last one says whether that may be asked again for the same call.
"""


def by_key(spec: ToolSpec, key: str, tenant: str | None, again: bool) -> int | None:
    """Where there are no limits, each call goes where its key says."""
    return None


@frozen()
class BatchContext:
    """What a plan depends on. `tool` finds a registered tool by name; `used` are the ids of the run's earlier calls,
    and `sealer` is that of a run that is sealed.
    """

    run_id: str
    turn: int
    attempt: str
    agent: AgentSpec
    parallel: bool
    tool: Callable[[str], ToolSpec | None]
    place: Partitioner = by_key
    tenant: str | None = None
    trace: str | None = None
    used: frozenset[str] = frozenset()
    sealer: Sealer | None = None

    def of_attempt(self, attempt: str, agent: AgentSpec) -> BatchContext:
        """The same for one attempt, of the model that `agent` names."""
        run_id, turn, parallel, tenant, trace = self.run_id, self.turn, self.parallel, self.tenant, self.trace
        return BatchContext(
            run_id, turn, attempt, agent, parallel, self.tool, self.place, tenant, trace, self.used, self.sealer
        )

    def about(self) -> Fields:
        """What its model call's log records are about."""
        return {"run_id": self.run_id, "turn": self.turn, "agent": self.agent.name, **traced(self.trace)}


def used_again(calls: Sequence[RequestedCall], context: BatchContext) -> str | None:
    """The id of an earlier call that one of these has, too: the provider would refuse every later request."""
    used = context.used
    if used:
        for call in calls:
            if call.tool_use_id in used:
                return call.tool_use_id
    return None


def plan(calls: Sequence[RequestedCall], context: BatchContext) -> tuple[PlannedCall, ...]:
    """One entry a call, in the order of the calls."""
    specs: list[ToolSpec | None] = []
    planned: list[PlannedCall] = []
    in_order, shown = False, max(SHOWN_AT_LEAST, min(SHOWN, SHOWN_OF_ALL // max(1, len(calls))))
    for index, call in enumerate(calls):
        spec = _offered(call, context)
        in_order = in_order or (spec is not None and bool(spec.after))
        specs.append(spec)
        planned.append(_planned(index, call, spec, context, shown))
    if not in_order:
        return tuple(planned)
    return tuple(_without_cycles(_ordered(specs, planned)))


def _offered(call: RequestedCall, context: BatchContext) -> ToolSpec | None:
    return context.tool(call.tool) if call.tool in context.agent.tools else None


def planned_alone(index: int, call: RequestedCall, context: BatchContext) -> tuple[PlannedCall, ToolSpec | None]:
    """The entry of one call, before the others are known: as it will be, unless its tool comes `after` another."""
    spec = _offered(call, context)
    return _planned(index, call, spec, context), spec


def _token(index: int, call: RequestedCall, context: BatchContext) -> str:
    """The right to answer a call. Where calls may begin before their reply is whole, it follows from what is asked,
    too: so a result under this id is a result of exactly this call.
    """
    if not context.agent.early_start:
        return derived(context.attempt, index)
    asked = json.dumps([index, call.tool_use_id, call.tool, call.input])
    if context.sealer is not None:  # whoever reads the attempt in the log could try what was said
        asked = context.sealer.hashed(asked)
    return derived(context.attempt, asked)


def _planned(
    index: int, call: RequestedCall, spec: ToolSpec | None, context: BatchContext, shown: int = SHOWN
) -> PlannedCall:
    call_id = f"{context.run_id}/{context.turn}.{_token(index, call, context)}/{index}"
    allowed = context.agent.limits.max_calls_per_turn if context.parallel else 1
    if index >= allowed:
        text = f"not run: a turn may make {allowed} call{'s' if allowed != 1 else ''}, and this is number {index + 1}"
        return PlannedCall(call_id, call.tool_use_id, _name(call, context), rejected=text)
    if spec is None:
        text, sealed = _rejected(_unknown(call.tool, context), context, shown)
        name = _name(call, context)
        return PlannedCall(call_id, call.tool_use_id, name, rejected=text, rejected_sealed=sealed)
    refused = call.refused or unfit(spec, call.input)
    key = _key(call_id, spec, call.input, context)
    wrong = f"invalid arguments for {spec.name}: {refused}" if refused else None
    why, sealed = (None, None) if wrong is None else _rejected(wrong, context, shown)
    return PlannedCall(
        call_id,
        call.tool_use_id,
        spec.name,
        queue=spec.queue,
        key=key,
        delivery=spec.delivery,
        deadline_s=_deadline(spec),
        on_error=spec.on_error,
        rejected=why,
        partition=None if refused else context.place(spec, key, context.tenant, context.agent.early_start),
        rejected_sealed=sealed,
    )


def _name(call: RequestedCall, context: BatchContext) -> str:
    """The tool's; one that the model has made up is what it says, like any text."""
    return call.tool[:128] if context.sealer is None or call.tool in context.agent.tools else SEALED


def _rejected(text: str, context: BatchContext, shown: int) -> tuple[str, str | None]:
    """Why a call is not run, and the seal of that: the text may quote what the model has said."""
    text = text.encode()[:shown].decode(errors="ignore")
    if context.sealer is None:
        return text, None
    return SEALED, context.sealer.seal("rejected", orjson.dumps(text))


def _unknown(name: str, context: BatchContext) -> str:
    known = sorted(tool for tool in context.agent.tools if context.tool(tool) is not None)
    if name in context.agent.tools:
        return f"tool {name!r} is not available at present: no worker has registered it"
    return f"there is no tool {name[:128]!r}; the tools are: {', '.join(known) or 'none'}"


def _deadline(spec: ToolSpec) -> float | None:
    if spec.deadline_s is None and spec.delivery == "at_most_once":
        return spec.timeout_s + 60
    return spec.deadline_s


def _key(call_id: str, spec: ToolSpec, arguments: dict[str, Any], context: BatchContext) -> str:
    """What decides the partition: the call, or the hash of its serial key, which who guesses may try if it is plain."""
    if spec.serial_key is None:
        return call_id
    text = f"{spec.serial_key}={_serial(spec, spec.serial_key, arguments)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16] if context.sealer is None else context.sealer.hashed(text)


def _serial(spec: ToolSpec, name: str, arguments: dict[str, Any]) -> str:
    """What is served one at a time. The tool gets the same for 7 and for 7.0, and its default for what is left out."""
    declared: Json = spec.input_schema
    for step in ("properties", name, "default"):
        declared = declared.get(step) if isinstance(declared, dict) else None
    value = json.loads(json.dumps(arguments.get(name, declared)), parse_float=_whole)
    return json.dumps(value, sort_keys=True)


def _whole(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _ordered(specs: Sequence[ToolSpec | None], planned: Sequence[PlannedCall]) -> list[PlannedCall]:
    """With the calls that each waits for. Hundreds that wait for hundreds are more than a plan may say."""
    ordered, room = [], AFTER_BYTES
    for index, entry in enumerate(planned):
        after = _predecessors(index, specs, planned)
        if (needed := sum(map(len, after))) > room:
            text = f"not run: it comes after {len(after)} calls of this turn, which are too many: call it in the next"
            ordered.append(replace(entry, rejected=text))
        else:
            room -= needed
            ordered.append(replace(entry, after=after))
    return ordered


def _predecessors(index: int, specs: Sequence[ToolSpec | None], planned: Sequence[PlannedCall]) -> list[str]:
    spec = specs[index]
    if spec is None or not spec.after or planned[index].rejected is not None:
        return []
    return [entry.call_id for i, entry in enumerate(planned) if i != index and entry.tool in spec.after]


def _without_cycles(planned: list[PlannedCall]) -> list[PlannedCall]:
    """Calls that wait for one another would wait for ever: they are rejected."""
    waiting = {entry.call_id: set(entry.after) for entry in planned}
    while free := {call_id for call_id, after in waiting.items() if not after & waiting.keys()}:
        for call_id in free:
            del waiting[call_id]
    text = "not run: the tools of this turn wait for one another in a circle (see their 'after')"
    return [replace(e, after=[], rejected=e.rejected or text) if e.call_id in waiting else e for e in planned]


# --- arguments ---------------------------------------------------------------------------------------------


def _no_retrieval(uri: str) -> Any:
    """A registered schema may name any address: nothing is fetched, here or while the loop waits."""
    raise ValueError(f"{uri} is outside the schema, and is not fetched")


_compiled: dict[str, tuple[ToolSpec, Any]] = {}
"""Schemas by their tool's name, each of the spec that was registered last."""


def _validator_of(spec: ToolSpec) -> Any:
    known = _compiled.get(spec.name)
    if known is None or known[0] is not spec:
        known = _compiled[spec.name] = spec, jsonschema_rs.validator_for(spec.input_schema, retriever=_no_retrieval)
    return known[1]


def unfit(spec: ToolSpec, arguments: dict[str, Any]) -> str | None:
    """Why `arguments` do not fit the tool's schema, or None."""
    try:
        validator = _validator_of(spec)
        if validator.is_valid(arguments):  # the common case, and much the quicker question
            return None
        if _has_more_than(DETAILED, arguments):
            return _first_mistake(validator, arguments)
        errors = validator.iter_errors(arguments)
    except ValueError as error:
        return f"the tool's own schema is not valid: {error}"
    return "; ".join(_shown(error) for error in islice(errors, 5)) or None


def _first_mistake(validator: Any, arguments: Json) -> str | None:
    try:
        validator.validate(arguments)
    except jsonschema_rs.ValidationError as error:
        return f"{_shown(error)} (there may be more: of so many values only the first mistake is told)"
    return None


def _has_more_than(most: int, arguments: Json) -> bool:
    """Whether it consists of so many values. The library words all that are wrong before it hands over the first."""
    values: deque[Json] = deque([arguments])
    while values:
        if len(values) > most:
            return True
        value = values.popleft()
        most -= 1
        if isinstance(value, dict | list):
            values.extend(islice(value.values() if isinstance(value, dict) else value, most + 1))
    return False


def _shown(error: Any) -> str:
    """Where, and what is wrong; of a long value how it begins, for what is wrong with it is said behind it."""
    path, message = ".".join(str(part) for part in error.instance_path), str(error.message)
    if len(message) > LONG:
        message = f"{message[: LONG // 2]} ... {message[-LONG // 2 :]}"
    return f"{path}: {message}" if path else message
