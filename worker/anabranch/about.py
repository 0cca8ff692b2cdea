"""What the log's records are about: the worker, and the run or call that the code at work here is busy with.

Responsible for: context variables that a task sets once, so that every record of it (a tool's own, a library's) can say
which run, call and partition it is of. Setting one costs next to nothing: what it says is asked for when there is a
record to be written. Must never: format, or hold more than a reference. Called by: the roles and those who start
them, who set it; `cli/loglines.py`, which reads it. A record that is written elsewhere gives the same fields by
`extra`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Protocol

from anabranch.spans import parse

Fields = dict[str, object]


class Located(Protocol):
    """What lies somewhere in Kafka. (The `Place` of `kafka/seam.py` is a whole partition.)"""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Topical(Protocol):
    """Something that a task is busy with."""

    def about(self) -> Fields:
        """Its fields: `run_id`, `call_id`, `topic`, `partition` and the like; None: not known."""
        ...


WORKER: Final[ContextVar[str | None]] = ContextVar("worker", default=None)
"""The id of the worker that this code belongs to."""
TOPIC: Final[ContextVar[Topical | None]] = ContextVar("topic", default=None)
"""What this task is busy with."""


def known() -> Fields:
    """What is known here and now, empty fields left out."""
    topic, worker = TOPIC.get(), WORKER.get()
    found: Fields = {"worker": worker, **(topic.about() if topic is not None else {})}
    return {name: value for name, value in found.items() if value is not None}


def about_record(record: Located, said: str | None = None) -> Fields:
    """The fields of a record of Kafka; `said` may hold what is in it."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset, "content": said}


def place_of(record: Located) -> str:
    """`topic/partition/offset`."""
    return f"{record.topic}/{record.partition}/{record.offset}"


def traced(trace: str | None) -> Fields:
    """The fields of a `traceparent`."""
    span = parse(trace)
    return {} if span is None else {"trace_id": span.trace_id, "span_id": span.span_id}
