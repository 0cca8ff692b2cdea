"""A subscription to two places whose brokers are written by a test: what its member hears, in which turn of the loop.

Responsible for: that. Called by: the unit tests of fetching.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition

from anabranch.config import KafkaSettings
from anabranch.kafka.connect import client_arguments
from anabranch.kafka.fetch import fetching
from anabranch.kafka.pump import KafkaSubscription
from anabranch.kafka.seam import Place
from tests.support.fetches import Broker, prepare
from tests.support.log_worlds import Member
from tests.support.wait import until

A, B = Place("log", 0), Place("log", 1)
NOT_LEADER, UNKNOWN_TOPIC, OUT_OF_RANGE, FORBIDDEN, UNKNOWN, NOT_FOUND, WRONG_EPOCH = 6, 3, 1, 29, -1, 70, 71
SETTINGS = KafkaSettings(bootstrap="nowhere:1")


class Hearing(Member):
    """A member that acts on what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[tuple[Place, int]] = []
        self.on_records: Callable[[Place], None] = lambda place: None
        self.answering = self.sated = False

    def records(self, place: Place, records: Any) -> None:
        super().records(place, records)
        self.deliveries.append((place, len(records)))
        self.on_records(place)

    @property
    def is_answering(self) -> bool:
        return self.answering

    @property
    def is_sated(self) -> bool:
        return self.sated


class Scene:
    """A subscription to two places that is run, and its brokers by number."""

    def __init__(self, brokers: dict[int, Broker], connect: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.member, self.brokers = Hearing(), brokers
        self.links: list[int] = []
        self.connect = connect
        self.has_ended = False
        self.running: asyncio.Task[None] | None = None
        self.subscription = KafkaSubscription(
            SETTINGS,
            client_arguments(SETTINGS),
            ["log"],
            "g",
            self.member,
            None,  # type: ignore[arg-type]
        )
        self.consumer = prepare(self.subscription._consumer, {A: 1, B: 2 if 2 in brokers else 1})
        self.consumer._subscription.subscribe({"log"})

    @property
    def broker(self) -> Broker:
        return self.brokers[1]

    async def linked(self, client: Any, node_id: int, timeout_s: float) -> Broker:
        self.links.append(node_id)
        if self.connect is not None:
            await self.connect(node_id)
        return self.brokers[node_id]

    async def assign(self, *places: Place, **seeks: int) -> None:
        wheres = [TopicPartition(*place) for place in places]
        self.consumer._subscription.assign_from_subscribed(wheres)
        await self.subscription.on_partitions_assigned(wheres)
        self.member.subscribed(self.subscription)
        for name, offset in seeks.items():
            self.subscription.seek({"a": A, "b": B}[name], offset)

    async def got(self, place: Place, *offsets: int) -> None:
        await until(lambda: self.member.offsets(place) == [*offsets], 20, f"{offsets} of {place}: {self.member.got}")

    @property
    def is_over(self) -> bool:
        """Whether the test has ended it, or has seen how it ended."""
        return self.subscription._stopped.is_set() or self.has_ended

    async def ended(self) -> None:
        assert self.running is not None
        self.has_ended = True
        async with asyncio.timeout(20):
            await self.running

    async def turns(self, count: int = 20) -> None:
        """So many turns of the loop: whatever is to be done at once is done by then."""
        for _ in range(count):
            await asyncio.sleep(0)


MakeScene = Callable[..., Any]


def scenes(monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    """What a test's fixture is: it makes a scene that runs, and ends it."""

    @asynccontextmanager
    async def made(
        *, run: bool = True, brokers: dict[int, Broker] | None = None, connect: Any = None, **seeks: int
    ) -> AsyncIterator[Scene]:
        scene = Scene(brokers or {1: Broker()}, connect)
        monkeypatch.setattr(fetching, "linked", scene.linked)
        await scene.assign(A, B, **(seeks or {"a": 0}))
        running = asyncio.create_task(scene.subscription.run())
        try:
            scene.running = running
            if run:
                await scene.broker.request()
            yield scene
            assert scene.is_over or not running.done(), running
        finally:
            scene.subscription.stop()
            await asyncio.wait([running])

    return made
