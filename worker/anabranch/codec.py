"""Records to messages and back, validated.

The only place that knows how a message lies in headers and body. It never does I/O and never repairs:
what does not fit the contract raises `WireError`, which says which header or field was wrong.
Replies and results are passed through as bytes; only their headers are read here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import count
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.about import Located
from anabranch.bodies import dump, read, whole
from anabranch.errors import WireError
from anabranch.fields import Lane, lane_of, life_of
from anabranch.spans import HEADER as TRACE
from anabranch.spans import valid as valid_trace
from anabranch.values import frozen

Headers = Sequence[tuple[str, bytes]]


class Record(Located, Protocol):
    """A record as read; aiokafka's own record fits, so that none is copied. `timestamp` is milliseconds."""

    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Outgoing(NamedTuple):
    """A record to be sent. Without a partition, the partitioner of the Java client decides by key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None

    @property
    def size(self) -> int:
        size = len(self.key or b"") + len(self.value or b"") + 80 + 4 * len(self.headers)
        for name, value in self.headers:
            size += len(name) + len(value)
        return size


# --- headers ------------------------------------------------------------------------------------------


def header(headers: Headers, name: str) -> str | None:
    """The header as text, the last one if it is there twice, as for `decode`; None if it is not there, or null."""
    found = None
    for key, value in headers:
        if key == name:
            found = value
    return None if found is None else found.decode("utf-8", "replace")


_USAGE: Final = attrgetter(*(field.name for field in fields(m.Usage)))


class _Head:
    """The headers of one record, by name."""

    __slots__ = ("_by_name",)

    def __init__(self, headers: Headers) -> None:
        self._by_name = dict(headers)

    def get(self, name: str) -> str | None:
        raw = self._by_name.get(name)
        return None if raw is None else raw.decode("utf-8", "replace")

    def trace(self) -> str | None:
        """The trace that the record belongs to; one that cannot be read is none."""
        return valid_trace(self.get(TRACE))

    def text(self, name: str) -> str:
        raw = self._by_name.get(name)
        if not raw:
            raise WireError(f"header {name} is missing")
        return raw.decode("utf-8", "replace")

    def integer(self, name: str, prefix: str = "") -> int:
        value = self.text(name).removeprefix(prefix)
        if not value.isdecimal() or not value.isascii() or len(value) > 18:
            raise WireError(f"header {name} must be a whole number, not {value[:40]!r}")
        return int(value)

    def integer_or_none(self, name: str) -> int | None:
        return self.integer(name) if name in self._by_name else None

    def request_offset(self) -> tuple[Lane, int]:
        """Which request: a reader that knows no lanes must not take one of the bulk lane for another."""
        lane = lane_of(self.text("ce_requestoffset"))
        offset = self.integer("ce_requestoffset", life_of(lane, 0)[:-1])
        if lane == "bulk" and "ce_afterbulk" not in self._by_name:
            raise WireError("header ce_afterbulk is missing: what a request of the bulk lane comes after")
        return lane, offset

    def seconds(self, name: str) -> float:
        value = self.text(name)
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1e9:
            raise WireError(f"header {name} must be seconds, not {value[:40]!r}")
        return number

    def one_of(self, name: str, allowed: Iterable[str]) -> Any:
        value = self.text(name)
        if value not in allowed:
            raise WireError(f"header {name} must be one of {', '.join(sorted(allowed))}, not {value[:40]!r}")
        return value

    def body(self, name: str, kind: Any) -> Any:
        try:
            return read(kind, self._by_name.get(name))
        except WireError as error:
            raise WireError(f"header {name}: {error}") from None

    def usage(self) -> tuple[m.Usage, str | None, tuple[e.Tried, ...]]:
        """What a model call has used, which model if not the agent's own, and the attempts that it took."""
        used: e.AttemptUsage = self.body("ce_usage", e.AttemptUsage)
        return m.Usage(*_USAGE(used)), used.model, used.tried or ()


_IDS: Final = map(f"{os.urandom(12).hex()}%x".encode().__mod__, count())
"""Ids of records: unique to this process, and within it. Asking the system for each would cost as much as the rest."""


_SPECVERSION: Final = ("ce_specversion", b"1.0")


@lru_cache(maxsize=256)
def _origin(source: str, kind: str) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """What all records of a kind that a process writes have in common."""
    return ("ce_source", source.encode()), ("ce_type", kind.encode())


Pair = tuple[str, str | bytes | int | None]
"""A header; none if it is null."""


def cloud_event(
    topic: str, kind: str, source: str, key: str | None, value: bytes | None,
    pairs: Iterable[Pair] = (), partition: int | None = None,
) -> Outgoing:  # fmt: skip
    """A record with CloudEvents headers of `kind`, and `pairs` as further ones."""
    headers = [_SPECVERSION, ("ce_id", next(_IDS)), *_origin(source, kind)]
    for name, said in pairs:
        if said is not None:
            data = said if isinstance(said, bytes) else said.encode() if isinstance(said, str) else b"%d" % said
            headers.append((name, data))
    return Outgoing(topic, key.encode() if key is not None else None, value, tuple(headers), partition)


# --- events of the run log ------------------------------------------------------------------------------

_REPLY_OUTCOMES: Final = frozenset({"calls", "final", "pause", "stopped"})
_RESULT_OUTCOMES: Final = frozenset({"ok", "error", "timeout", "unknown"})
_NOTE_CODES: Final = frozenset({"rejected", "moved", "duplicate", "cancelled"})


@frozen()
class _Note:
    error: m.RunError | None = None
    reply_to: m.ReplyTo | None = None


@frozen()
class _Reason:
    reason: str = ""


@frozen()
class _Calls:
    calls: tuple[str, ...]


def _requested(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    after, (lane, offset), after_bulk = h.integer("ce_after"), h.request_offset(), h.integer_or_none("ce_afterbulk")
    opening = read(e.Opening, body)
    return e.RunRequested(run, life, after, offset, opening, len(body), lane, after_bulk, h.trace())


def _noted(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    note = read(_Note, body)
    code = h.one_of("ce_code", _NOTE_CODES)
    after, (lane, offset), after_bulk = h.integer("ce_after"), h.request_offset(), h.integer_or_none("ce_afterbulk")
    return e.RequestNoted(run, life, after, offset, code, note.error, note.reply_to, lane, after_bulk, h.trace())


def _replied(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    outcome = h.one_of("ce_outcome", _REPLY_OUTCOMES)
    plan = h.body("ce_plan", tuple[e.PlannedCall, ...])
    usage, model, tried = h.usage()
    turn, attempt, code = h.integer("ce_turn"), h.text("ce_attempt"), h.get("ce_error")
    return e.ModelReplied(run, life, turn, attempt, outcome, plan, usage, body, code=code, model=model, tried=tried)


def _failed(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    said = read(e.ModelFailure, body)
    error = m.RunError(said.code, said.message, said.message_sealed)
    return e.ModelFailed(run, life, h.integer("ce_turn"), h.text("ce_attempt"), error, said.tried or ())


def _discarded(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    (usage, model, tried), reason = h.usage(), read(_Reason, body).reason
    return e.ModelDiscarded(run, life, h.integer("ce_turn"), h.text("ce_attempt"), usage, reason, model, tried)


def _returned(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    """A worker in another language may leave the outcome out. What it says there and is none costs its call alone."""
    call_id, said = h.text("ce_callid"), h.get("ce_outcome")
    if said is not None and said not in _RESULT_OUTCOMES:
        must = f"must be one of {', '.join(sorted(_RESULT_OUTCOMES))}, not {said[:40]!r}"
        told = e.ToolResult(f"the tool's worker sent a result whose ce_outcome {must}: it is not used")
        return e.ToolReturned(run, life, call_id, "error", dump(told))
    outcome: Any = said or "ok"
    return e.ToolReturned(run, life, call_id, outcome, body)


def _model_handed_off(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    return e.ModelHandedOff(run, life, h.integer("ce_turn"), h.text("ce_worker"), h.seconds("ce_for"))


def _call_lost(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    return e.CallLost(run, life, h.text("ce_callid"), h.integer("ce_handoff"))


def _call_expired(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    return e.CallExpired(run, life, h.text("ce_callid"), read(_Reason, body).reason)


def _dispatched(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    return e.CallDispatched(run, life, h.text("ce_callid"), h.text("ce_token"))


def _expired(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    reason, attempt = read(_Reason, body).reason, h.get("ce_attempt")
    return e.RunExpired(run, life, reason) if attempt is None else e.RunExpired(run, life, reason, attempt, *h.usage())


def _snapshot(run: str, life: str, h: _Head, body: bytes) -> e.Event:
    as_of, next_request = h.integer("ce_asof"), h.integer("ce_nextrequest")
    part, parts = h.integer("ce_part"), h.integer("ce_parts")
    schema = h.get("ce_dataschema")
    later = schema if schema != "run.snapshot/1" else None
    bulk = h.integer_or_none("ce_nextbulk")
    return e.RunSnapshot(run, life, as_of, next_request, part, parts, h.text("ce_source"), body, later, bulk)


_OF_A_LIFE: Final[dict[str, Callable[[str, str, _Head, bytes], e.Event]]] = {
    "run.requested": _requested,
    "request.noted": _noted,
    "model.replied": _replied,
    "model.failed": _failed,
    "model.discarded": _discarded,
    "tool.returned": _returned,
    "model.handed_off": _model_handed_off,
    "call.lost": _call_lost,
    "call.expired": _call_expired,
    "call.dispatched": _dispatched,
    "run.expired": _expired,
    "run.snapshot": _snapshot,
}


def decode(record: Record) -> e.Event:
    """The event in a record of `agent.log`.

    A type that we do not know becomes `UnknownEvent`. Raises `WireError` if the record cannot be read.
    """
    h, body = _Head(record.headers), record.value or b""
    kind = h.text("ce_type")
    if (build := _OF_A_LIFE.get(kind)) is not None:
        return build(h.text("ce_runid"), h.text("ce_life"), h, body)
    if kind == "run.cancelled":
        before, before_bulk = h.integer_or_none("ce_before"), h.integer_or_none("ce_beforebulk")
        return e.RunCancelled(h.text("ce_runid"), h.get("ce_life"), read(_Reason, body).reason, before, before_bulk)
    if kind == "calls.handed_off":
        return e.CallsHandedOff(h.text("ce_worker"), h.seconds("ce_for"), read(_Calls, body).calls)
    if kind == "partition.released":
        return e.PartitionReleased(h.integer("ce_done"))
    return e.UnknownEvent(kind, h.get("ce_runid"), h.get("ce_life"), f"event type {kind!r} is not known")


_Pairs = list[Pair]


def _parts(event: e.Event) -> tuple[str, _Pairs, bytes]:
    """Type, further headers and body of an event."""
    match event:
        case e.RunRequested():
            body = event.opening_json if event.opening_json is not None else dump(event.opening)
            return "run.requested", [*_link(event), (TRACE, event.trace)], body
        case e.RequestNoted():
            pairs: _Pairs = [*_link(event), ("ce_code", event.code), (TRACE, event.trace)]
            return "request.noted", pairs, dump(_Note(event.error, event.reply_to))
        case e.ModelReplied():
            pairs = [*_attempt(event), ("ce_outcome", event.outcome), ("ce_error", event.code)]
            plan = event.plan_json if event.plan_json is not None else dump(event.plan)
            pairs += [("ce_plan", plan), ("ce_usage", _used(event))]
            return "model.replied", pairs, event.body
        case e.ModelFailed():
            error = event.error
            failure = e.ModelFailure(error.code, error.message, error.message_sealed, event.tried or None)
            return "model.failed", _attempt(event), dump(failure)
        case e.ModelDiscarded():
            pairs = [*_attempt(event), ("ce_usage", _used(event))]
            return "model.discarded", pairs, dump(_Reason(event.reason))
        case e.ToolReturned():
            return "tool.returned", [("ce_callid", event.call_id), ("ce_outcome", event.outcome)], event.body
        case _:
            return _small_parts(event)


def _small_parts(event: e.Event) -> tuple[str, _Pairs, bytes]:
    match event:
        case e.ModelHandedOff():
            pairs: _Pairs = [
                ("ce_turn", event.turn),
                ("ce_worker", event.worker),
                ("ce_for", str(event.for_s)),
            ]
            return "model.handed_off", pairs, b"{}"
        case e.CallsHandedOff():
            pairs = [("ce_worker", event.worker), ("ce_for", str(event.for_s))]
            return "calls.handed_off", pairs, dump(_Calls(event.calls))
        case e.CallLost():
            return "call.lost", [("ce_callid", event.call_id), ("ce_handoff", event.handoff)], b"{}"
        case e.CallExpired():
            return "call.expired", [("ce_callid", event.call_id)], dump(_Reason(event.reason))
        case e.CallDispatched():
            return "call.dispatched", [("ce_callid", event.call_id), ("ce_token", event.token)], b"{}"
        case e.PartitionReleased():
            return "partition.released", [("ce_done", event.done)], b"{}"
        case e.RunCancelled():
            pairs = [("ce_before", event.before), ("ce_beforebulk", event.before_bulk)]
            return "run.cancelled", pairs, dump(_Reason(event.reason))
        case e.RunExpired():
            pairs = [("ce_attempt", event.attempt), ("ce_usage", _used(event))]
            return "run.expired", pairs, dump(_Reason(event.reason))
        case e.RunSnapshot():
            pairs = [("ce_asof", event.as_of), ("ce_nextrequest", event.next_request), ("ce_nextbulk", event.next_bulk)]
            return "run.snapshot", [*pairs, ("ce_part", event.part), ("ce_parts", event.parts)], event.body
        case _:
            raise WireError(f"{type(event).__name__} is not an event that we write")


def _link(event: e.RunRequested | e.RequestNoted) -> _Pairs:
    offset = life_of(event.lane, event.request_offset)
    return [("ce_after", event.after), ("ce_afterbulk", event.after_bulk), ("ce_requestoffset", offset)]


def _used(event: e.ModelReplied | e.ModelDiscarded | e.RunExpired) -> bytes | None:
    """A cost that is null stands there: nobody knows it."""
    if event.usage is None:
        return None
    return whole(e.AttemptUsage.of(event.usage, event.model, event.tried), "model", "tried")


def _attempt(event: e.ModelReplied | e.ModelFailed | e.ModelDiscarded) -> _Pairs:
    return [("ce_turn", event.turn), ("ce_attempt", event.attempt)]


def encode(event: e.Event, topic: str, partition: int, source: str) -> Outgoing:
    """The record of an event, for `partition` of the run log `topic`."""
    kind, pairs, body = _parts(event)
    run_id: str | None = getattr(event, "run_id", None)
    life: str | None = getattr(event, "life", None)
    pairs[:0] = (("ce_runid", run_id), ("ce_life", life))
    return cloud_event(topic, kind, source, run_id, body, pairs, partition)
