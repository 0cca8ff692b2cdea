"""How often a worker says in the registry that it lives, in virtual time.

Responsible for: the heart of `runtime.py`. Must never: start a worker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from tests.support.virtual import now, virtually

from anabranch.bodies import read
from anabranch.codec import Outgoing
from anabranch.config import WorkerSettings
from anabranch.kafka.sent import Acked, Sent
from anabranch.roles import info_of
from anabranch.runtime import Post, _beat
from anabranch.specs import WorkerInfo
from anabranch.topics import Namespace


def told(waiting_s: Callable[[], float], for_s: float) -> list[tuple[float, float]]:
    """When it spoke, and what it said of its oldest call."""
    said = list[tuple[float, float]]()

    def append(outgoing: Outgoing) -> Sent:
        assert outgoing.value is not None
        said.append((round(now(), 2), read(WorkerInfo, outgoing.value).oldest_waiting_s))
        sent = Sent()
        sent.succeed(Acked(0))
        return sent

    async def run() -> None:
        info = info_of("w", "tool", now, lambda: 0, "q", waiting_s)
        post = SimpleNamespace(
            info=info, namespace=Namespace("t"), settings=WorkerSettings(), appender=SimpleNamespace(append=append)
        )
        beating = asyncio.ensure_future(_beat(cast(Post, post)))
        await asyncio.sleep(for_s)
        beating.cancel()

    virtually(run)
    return said


def test_it_speaks_every_few_seconds() -> None:
    assert told(lambda: 0.0, 12.0) == [(0.0, 0.0), (5.0, 0.0), (10.0, 0.0)]


def test_it_speaks_no_sooner_while_calls_stay_old() -> None:
    assert told(lambda: now() + 2.0, 12.0) == [(0.0, 2.0), (5.0, 7.0), (10.0, 12.0)]


def test_it_says_at_once_that_no_call_is_old_any_more() -> None:
    """Whoever waits for that word would wait for the rest of the time otherwise."""
    assert told(lambda: 30.0 if now() < 6.2 else 0.1, 12.0) == [(0.0, 30.0), (5.0, 30.0), (6.5, 0.1), (11.5, 0.1)]
