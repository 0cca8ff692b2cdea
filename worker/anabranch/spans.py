"""What a trace is made of: its context as it travels, spans as plain values, ids that follow from what a span is of.

Responsible for: `traceparent` read and written, ids that any process derives alike, and the seam to whoever exports
(`Traces`). Must never: know an exporter, or a clock. A span is told of once it has ended, whole, by whoever sees its
end: so one that began in a process which is gone is told of by its successor, under the same id. Called by: the roles
and the client, which make spans; `tracing.py`, which exports them; `codec.py`.

Without tracing there is no `Traces` (None), and what is left is a header that is passed on as it came.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from anabranch.errors import ConfigError
from anabranch.values import frozen

if TYPE_CHECKING:
    from anabranch.config import TelemetrySettings

log = logging.getLogger(__name__)

HEADER: Final = "traceparent"
"""The name of the record header, and of the W3C's format in it."""

_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SHOWN: Final = 200

Value = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Value | None]
"""What is None is left out."""
Kind = Literal["internal", "client", "producer", "consumer"]


class Parent(NamedTuple):
    """A span as others name it: what `traceparent` says. Ids are lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def named(self, span_id: str) -> Parent:
        """Another span of the same trace."""
        return Parent(self.trace_id, span_id, self.sampled)


def parse(text: str | None) -> Parent | None:
    """None if it is no `traceparent`: a trace that cannot be read is none, and nothing fails by it."""
    found = _FORM.fullmatch(text) if text is not None and len(text) <= _SHOWN else None
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return Parent(found[2], found[3], int(found[4], 16) & 1 == 1)


def sampled(text: str | None) -> Parent | None:
    """The span that it names, if spans below it are to be told of."""
    found = parse(text)
    return found if found is not None and found.sampled else None


def valid(text: str | None) -> str | None:
    """The text itself, to be passed on, if it is a `traceparent`."""
    return text if parse(text) is not None else None


def span_id(*of: object) -> str:
    """The id of the span of all this: the same in each process."""
    return _digest(8, of)


def trace_id(*of: object) -> str:
    """The same of a trace that begins with us."""
    return _digest(16, of)


def new_span_id() -> str:
    """Of what happens once, and is told of where it happened."""
    return secrets.token_hex(8)


def _digest(size: int, of: tuple[object, ...]) -> str:
    found = blake2b("\0".join(map(str, of)).encode(), digest_size=size).hexdigest()
    return found if int(found, 16) else found[:-1] + "1"


class Happening(NamedTuple):
    """An event of a span, at epoch seconds."""

    name: str
    at: float
    attributes: Attributes


@frozen()
class Span:
    """What happened from `start` to `end` (epoch seconds). `error` is its `error.type`; None: it went well.

    `why` are words for people, which are told only where content may be.
    """

    name: str
    kind: Kind
    context: Parent
    parent_id: str | None
    start: float
    end: float
    attributes: Attributes
    error: str | None = None
    why: str | None = None
    events: tuple[Happening, ...] = ()
    links: tuple[Parent, ...] = ()


def messaging(topic: str, operation: str, kind: str) -> dict[str, Value | None]:
    """What every span of a record says."""
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }


Given = ParamSpec("Given")
Made = TypeVar("Made")
_failed: set[tuple[str, type[Exception]]] = set()


def contained(tell: Callable[Given, Made]) -> Callable[Given, Made | None]:
    """What makes a span, or tells of one, and ends nothing that it tells of: whatever is raised in it costs that span
    (None), and is said once.
    """

    @wraps(tell)
    def told(*args: Given.args, **kwargs: Given.kwargs) -> Made | None:
        try:
            return tell(*args, **kwargs)
        except Exception as error:
            kind = (tell.__qualname__, type(error))
            if kind not in _failed:
                _failed.add(kind)
                log.exception("a span cannot be told of, and is left out (%s). It is not said again", tell.__qualname__)
            return None

    return told


class Traces(Protocol):
    """Where spans go. `content` says whether they may hold what people, models and tools have said."""

    @property
    def content(self) -> bool: ...

    def emit(self, span: Span) -> None:
        """Never waits, and never raises."""
        ...

    def samples(self, name: str, trace_id: str, parent: Parent | None) -> bool:
        """Whether to tell of a trace that begins here, or goes on here."""
        ...

    def inside(self, span: Parent) -> AbstractContextManager[None]:
        """Spans of other libraries that begin within are below `span`."""
        ...

    def close(self) -> None:
        """Send what is left. Blocks for some seconds at most."""
        ...


def opened(settings: TelemetrySettings, service: str, instance: str) -> Traces | None:
    """What the settings ask for: None if they ask for nothing. `service` and `instance` say who tells.

    Raises `ConfigError` if OpenTelemetry is not installed, or is set up for what we cannot do.
    """
    if not settings.traces:
        return None
    try:
        from anabranch import tracing
    except ImportError as error:
        raise ConfigError(
            f"ANABRANCH_TRACES is on, but OpenTelemetry is not installed ({error}): pip install 'anabranch[otel]'"
        ) from None
    return tracing.exporting(service, instance, settings.capture_content)


def surrounding() -> Parent | None:
    """The span that this code runs in, if somebody here uses OpenTelemetry: without an import, for most do not."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return Parent(f"{context.trace_id:032x}", f"{context.span_id:016x}", bool(context.trace_flags.sampled))
