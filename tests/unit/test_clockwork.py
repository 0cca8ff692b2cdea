"""Telling that a machine's clock is far from the broker's.

Responsible for: `clockwork.Skew`, and that a sign of life asks it. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.wait import until

from anabranch.clockwork import Skew
from anabranch.codec import Outgoing
from anabranch.config import WorkerSettings
from anabranch.kafka.sent import Acked, Sent
from anabranch.runtime import _beat
from anabranch.specs import WorkerInfo
from anabranch.topics import Namespace


@pytest.mark.parametrize(
    ("before", "at", "after", "words"),
    [(7200.0, 100.0, 7200.1, "7100 s ahead of"), (100.0, 160.0, 100.1, "60 s behind")],
)
def test_a_clock_that_is_off_is_told_of_once_and_again_when_it_is_right(
    before: float, at: float, after: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    skew = Skew()
    skew.compare(before, at, after)
    skew.compare(before, at, after)
    [told] = caplog.messages
    assert words in told
    assert "NTP" in told
    skew.compare(at, at, at)
    assert "agrees" in caplog.messages[-1]


def test_an_acknowledgement_that_came_late_says_nothing_of_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    Skew().compare(100.0, 160.0, 170.0)
    assert caplog.messages == []


async def test_a_sign_of_life_compares_the_clocks(caplog: pytest.LogCaptureFixture) -> None:
    class Ahead:
        def append(self, record: Outgoing) -> Sent:
            sent = Sent()
            sent.succeed(Acked(0, 1_000_000))
            return sent

    def info() -> WorkerInfo:
        return WorkerInfo("w", "tool", "1", 1000.0, 1060.0)

    post: Any = SimpleNamespace(appender=Ahead(), info=info, namespace=Namespace("t"), settings=WorkerSettings())
    beating = asyncio.create_task(_beat(post))
    try:
        await until(lambda: "60 s ahead" in caplog.text, what="it is told")
    finally:
        beating.cancel()


async def test_one_sign_of_life_is_under_way_while_the_broker_does_not_answer() -> None:
    sent: list[Sent] = []
    beats = 0

    class Post:
        """Counts how often it is time for one."""

        namespace, appender = Namespace("t"), property(lambda self: self)

        @property
        def settings(self) -> Any:
            nonlocal beats
            beats += 1
            return SimpleNamespace(heartbeat_s=0.0)

        def info(self) -> WorkerInfo:
            return WorkerInfo("w", "tool", "1", 1000.0, 1060.0)

        def append(self, record: Outgoing) -> Sent:
            sent.append(Sent())
            return sent[-1]

    post: Any = Post()
    beating = asyncio.create_task(_beat(post))
    try:
        await until(lambda: beats > 50, what="it was time for many")
        assert len(sent) == 1
        sent[0].succeed(Acked(0, 1_000_000))
        await until(lambda: len(sent) == 2, what="the next one follows")
    finally:
        beating.cancel()
