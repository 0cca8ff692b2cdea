"""What an operator reads on stderr: every message once, and how many of its likes were not shown.

Responsible for: `cli/loglines.py`. Must never: reach for a broker. Called by: pytest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from anabranch.cli.loglines import WINDOW_S, OneLine, Repeats

COORDINATOR = "aiokafka.consumer.group_coordinator"


@dataclass
class Screen:
    """The lines that come through, with a clock of its own."""

    now: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._repeats, self._form = Repeats(lambda: self.now), OneLine("%(name)s: %(message)s")

    def log(self, name: str, message: str, *arguments: object, level: int = logging.ERROR) -> None:
        record = logging.LogRecord(name, level, __file__, 1, message, arguments, None)
        if self._repeats.filter(record):
            self.lines.append(self._form.format(record))


def test_a_message_of_aiokafka_is_shown_once_in_ten_seconds_and_then_with_the_number_of_its_likes() -> None:
    screen = Screen()
    for tenth in range(105):
        screen.now = tenth / 10
        screen.log(COORDINATOR, "Heartbeat send request failed: %s. Will retry.", "NodeNotReadyError")
    said = f"{COORDINATOR}: Heartbeat send request failed: NodeNotReadyError. Will retry."
    assert screen.lines == [said, f"{said} (and 99 more like it in the meantime)"]


def test_messages_that_differ_in_numbers_alone_count_as_the_same() -> None:
    screen = Screen()
    for partition in range(24):
        screen.log(COORDINATOR, "OffsetCommit failed for group %s on partition %d", "shop.agents", partition)
    screen.log(COORDINATOR, "OffsetCommit failed for group %s on partition %d", "shop.tools.io", 0)
    assert len(screen.lines) == 2


def test_the_same_words_from_elsewhere_or_of_another_level_are_another_message() -> None:
    screen = Screen()
    screen.log("aiokafka", "no connection")
    screen.log("aiokafka.client", "no connection")
    screen.log("aiokafka", "no connection", level=logging.WARNING)
    assert len(screen.lines) == 3


def test_what_our_roles_say_is_never_held_back() -> None:
    screen = Screen()
    for _ in range(3):
        screen.log("anabranch.agent.owner", "run x is parked")
    assert len(screen.lines) == 3


def test_a_message_that_stopped_is_news_when_it_comes_again() -> None:
    screen = Screen()
    screen.log("aiokafka", "no connection")
    screen.now = 5 * WINDOW_S
    screen.log("aiokafka", "no connection")
    assert screen.lines == ["aiokafka: no connection"] * 2
