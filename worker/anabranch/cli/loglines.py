"""The log of a command: a line a record, on stderr, readable or JSON, without secrets, and nothing said over and over.

Responsible for: levels (those of the libraries below us too), the form of a line, what a record is about (run, call,
partition, trace), what may not be seen in it, and that a message which comes many times within some seconds is shown
once, with the number of its likes. Must never: hold back what our own roles say.

A record keeps what models, tools and people have said in its field `content`, and out of its message: that is shown
only where it is switched on, and so are the values of the exceptions of such a record. Called by: `frame.py`, for every
command.
"""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from anabranch.about import known
from anabranch.cli.terminal import printable, printable_json
from anabranch.security.redaction import Redaction

if TYPE_CHECKING:
    from anabranch.config import Settings

WINDOW_S: Final = 10.0
REMEMBERED: Final = 500
CHAIN: Final = 20
"""How many of the errors that led to one are told with it, without what they say."""
_OTHERS: Final = {
    "aiokafka": logging.ERROR,  # it alone says why a connection failed
    "aiokafka.producer.sender": logging.CRITICAL,  # what became of a send, the appender says
    "aiohttp": logging.WARNING,
    "anthropic": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "httpcore": logging.WARNING,
    "opentelemetry": logging.WARNING,
    "urllib3": logging.ERROR,  # of the exporter, which says the same
}
_TALKATIVE: Final = (*_OTHERS, "asyncio", "anabranch.kafka", "anabranch.store")
"""Those that repeat themselves while a broker or the store is away, or refuses: aiokafka's coordinator does ten times a
second.
"""
_NUMBER: Final = re.compile(r"[0-9a-f]{64}|\d+")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "hidden", "content"}
_SHOWN: Final = ("run_id", "call_id", "topic", "partition", "trace_id")
"""What a readable line says at its end; a JSON line has it all."""


def log_to_stderr(
    settings: Settings, *, least: str = "debug", redact: Redaction | None = None, content: bool = False
) -> None:
    """One line a record, from the level of the settings on; from `least` on if that is higher, unless it is debug."""
    names, told = logging.getLevelNamesMapping(), settings.telemetry
    level = names[settings.worker.log_level.upper()]
    if level > logging.DEBUG:
        level = max(level, names[least.upper()])
    handler = logging.StreamHandler()
    shows = Shows(redact or Redaction(), content or told.log_content)
    handler.setFormatter(JsonLine(shows) if told.log_format == "json" else OneLine(shows))
    if level > logging.DEBUG:
        handler.addFilter(Repeats())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, quiet in _OTHERS.items():
        logging.getLogger(name).setLevel(logging.DEBUG if level == logging.DEBUG else quiet)


# --- what a line says -------------------------------------------------------------------------------------------


class Shows:
    """What of a record may be seen. `content`: also what models, tools and people have said."""

    def __init__(self, redact: Redaction | None = None, content: bool = False) -> None:
        self._redact, self._content = redact or Redaction(), content

    def message(self, record: logging.LogRecord) -> str:
        hidden = getattr(record, "hidden", 0)
        more = f" (and {_text_of(hidden)} more like it in the meantime)" if hidden else ""
        return self._redact(_message_of(record)) + more

    def content(self, record: logging.LogRecord) -> str | None:
        found = getattr(record, "content", None)
        return self._redact(_text_of(found)) if found is not None and self._content else None

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the record is about: what its task is busy with, overruled by what it says itself."""
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        return {_text_of(name): self._plain(value) for name, value in {**known(), **given}.items()}

    def _plain(self, value: object) -> Any:
        return value if isinstance(value, bool | int | float) else self._redact(_text_of(value))

    def exception(self, record: logging.LogRecord) -> str | None:
        """The traceback; without the values of exceptions if they may hold what was said."""
        if not record.exc_info or record.exc_info[1] is None:
            found = record.exc_text or None
        elif getattr(record, "content", None) is not None and not self._content:
            found = "\n".join(_without_values(record.exc_info[1]))
        else:
            found = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        if record.stack_info:
            found = f"{found}\n{record.stack_info}" if found else record.stack_info
        return self._redact(found) if found else None


def _message_of(record: logging.LogRecord) -> str:
    """The record is told, whatever whoever logs has given with it; nor may it cost them an error."""
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - of whoever logs
        return f"{_text_of(record.msg)} (its arguments do not go with it: {type(error).__name__})"


def _text_of(value: object) -> str:
    """The value is anybody's, and so is its `__str__`."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - it may raise anything
        return f"(a {type(value).__name__} whose text cannot be had: {type(error).__name__})"


def _without_values(error: BaseException) -> Iterator[str]:
    """A traceback that says where, and of what kind, and not a word of what."""
    for each, link in reversed(_chain(error)):
        yield "Traceback (most recent call last):"
        yield from "".join(traceback.format_tb(each.__traceback__)).rstrip("\n").split("\n")
        yield f"{type(each).__qualname__}: (what it says is shown with ANABRANCH_LOG_CONTENT)"
        if link is not None:
            yield link


def _chain(error: BaseException) -> list[tuple[BaseException, str | None]]:
    """The error and those that it followed from, with what joins each to the one before it in this list.

    Who raises an error again that an older one names has made a circle of them: each is told once.
    """
    found: list[tuple[BaseException, str | None]] = []
    seen, next_, link = set[int](), error, None
    while id(next_) not in seen and len(found) < CHAIN:
        seen.add(id(next_))
        found.append((next_, link))
        if next_.__cause__ is not None:
            next_, link = next_.__cause__, "The above exception was the direct cause of the following exception:"
        elif next_.__context__ is not None and not next_.__suppress_context__:
            next_, link = next_.__context__, "During handling of the above exception, another exception occurred:"
    return found


class OneLine(logging.Formatter):
    """For people. A record is a line, so that tools which collect logs see one record. A traceback keeps its lines."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed describes a narrower default
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self, shows: Shows | None = None, form: str = "{time} {level:7} {logger}: {message}") -> None:
        super().__init__()
        self._shows, self._form = shows or Shows(), form

    def format(self, record: logging.LogRecord) -> str:
        shows, message = self._shows, self._shows.message(record)
        if (content := shows.content(record)) is not None:
            message = f"{message}: {content}"
        about = shows.fields(record)
        ends = " ".join(f"{name}={about[name]}" for name in _SHOWN if name in about)
        line = self._form.format(
            time=self.formatTime(record),
            level=record.levelname,
            logger=record.name,
            message=message + (f" [{ends}]" if ends else ""),
        )
        exception = shows.exception(record)
        return printable(line.replace("\r", "").replace("\n", " | ") + (f"\n{exception}" if exception else ""))


class JsonLine(OneLine):
    """For programs: one object a line, whatever the record holds."""

    def format(self, record: logging.LogRecord) -> str:
        import orjson

        shows = self._shows
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shows.message(record),
            "content": shows.content(record),
            "exception": shows.exception(record),
        }
        told = {name: value for name, value in line.items() if value is not None}
        whole = {**shows.fields(record), **told}
        try:
            return printable_json(orjson.dumps(whole).decode())
        except TypeError:  # half a surrogate pair, or a number of more than 64 bits
            return json.dumps(whole, separators=(",", ":"))


# --- what is said over and over ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Shown:
    at: float
    hidden: int = 0


class Repeats(logging.Filter):
    """Lets a message of the talkative through once in `WINDOW_S`, and then says how many were not shown.

    Messages that differ in numbers alone (a partition, an offset, an object of the store) count as the same.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._shown: dict[tuple[str, int, str], _Shown] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in _TALKATIVE):
            return True
        key = (record.name, record.levelno, _NUMBER.sub("", _message_of(record)))
        shown = self._shown.get(key)
        if shown is not None and self._now() - shown.at < WINDOW_S:
            shown.hidden += 1
            return False
        if shown is None and len(self._shown) >= REMEMBERED:
            self._shown.clear()
        record.hidden = shown.hidden if shown is not None else 0
        self._shown[key] = _Shown(self._now())
        return True
