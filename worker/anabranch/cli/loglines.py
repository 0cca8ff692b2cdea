"""The log of a command: a line a record, on stderr, and nothing said over and over.

Responsible for: levels (those of the libraries below us too), the form of a line, and that a message which comes many
times within some seconds is shown once, with the number of its likes. Must never: hold back what our own roles say.
Called by: `frame.py`, for every command.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anabranch.config import Settings

WINDOW_S: Final = 10.0
REMEMBERED: Final = 500
_OTHERS: Final = {
    "aiokafka": logging.ERROR,  # it alone says why a connection failed
    "aiokafka.producer.sender": logging.CRITICAL,  # what became of a send, the appender says
    "aiohttp": logging.WARNING,
    "anthropic": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "httpcore": logging.WARNING,
}
_TALKATIVE: Final = (*_OTHERS, "asyncio", "anabranch.kafka")
"""Those that repeat themselves while a broker is away, or refuses: aiokafka's coordinator does ten times a second."""
_NUMBER: Final = re.compile(r"\d+")


def log_to_stderr(settings: Settings, *, least: str = "debug") -> None:
    """One line a record, from the level of the settings on; from `least` on if that is higher, unless it is debug."""
    names = logging.getLevelNamesMapping()
    level = names[settings.worker.log_level.upper()]
    if level > logging.DEBUG:
        level = max(level, names[least.upper()])
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    if level > logging.DEBUG:
        handler.addFilter(Repeats())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, quiet in _OTHERS.items():
        logging.getLogger(name).setLevel(logging.DEBUG if level == logging.DEBUG else quiet)


class OneLine(logging.Formatter):
    """A record is a line, so that tools which collect logs see one record. A traceback keeps its lines."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed describes a narrower default
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def formatMessage(self, record: logging.LogRecord) -> str:
        hidden = getattr(record, "hidden", 0)
        more = f" (and {hidden} more like it in the meantime)" if hidden else ""
        return super().formatMessage(record).replace("\n", " | ") + more


@dataclass(slots=True)
class _Shown:
    at: float
    hidden: int = 0


class Repeats(logging.Filter):
    """Lets a message of the talkative through once in `WINDOW_S`, and then says how many were not shown.

    Messages that differ in numbers alone (a partition, an offset, a node) count as the same.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._shown: dict[tuple[str, int, str], _Shown] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in _TALKATIVE):
            return True
        key = (record.name, record.levelno, _NUMBER.sub("", record.getMessage()))
        shown = self._shown.get(key)
        if shown is not None and self._now() - shown.at < WINDOW_S:
            shown.hidden += 1
            return False
        if shown is None and len(self._shown) >= REMEMBERED:
            self._shown.clear()
        record.hidden = shown.hidden if shown is not None else 0
        self._shown[key] = _Shown(self._now())
        return True
