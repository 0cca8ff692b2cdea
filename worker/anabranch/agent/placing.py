"""Chooses the partition of a queue that a call is published to: a home of its tool's limit, or the next in turn.

So the calls of one turn of a run, and of those that follow, are spread over a queue's workers as evenly as can be: by
chance, two of ten would often wait behind each other (docs/decisions/0020). It knows what the registry says of limits,
and how many partitions each queue has, which it asks the broker beside the work and never while a plan is made. Of a
queue that is not known yet nothing is chosen: the key decides then, and a tool worker sends a call that has missed its
home there. The plan asks; `agent_role.py` runs `follow`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import Random
from typing import Final

from anabranch.errors import BrokerError, TopicsError
from anabranch.homes import budget_of, home_of, homes, in_turn, limits_of, open_to_all
from anabranch.kafka.seam import Broker
from anabranch.registry import Registry
from anabranch.specs import ToolSpec
from anabranch.topics import Namespace, partition_of

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the registry is searched for queues that are not known yet."""
REMEMBERED: Final = 10_000
"""Of so many queues and budgets it is known whose turn it is. Each tenant may have a budget of its own."""
AGAIN_S: Final = 60.0
"""How often the partitions of known queues are counted again: somebody may have added some."""


class Placing:
    """See the module."""

    def __init__(self, broker: Broker, namespace: Namespace, registry: Registry, chance: Random) -> None:
        self._broker, self._namespace, self._registry, self._chance = broker, namespace, registry, chance
        self._counts: dict[str, int] = {}
        self._placed: dict[str, int] = {}

    def partition(self, spec: ToolSpec, key: str, tenant: str | None, again: bool = False) -> int | None:
        """Where a call with this key goes; None: wherever its key says. Who may ask `again` for the same call is told
        the same: in turn, one that is asked for twice would keep to every other home.
        """
        partitions, limits = self._counts.get(spec.queue), self._registry.limits
        if partitions is None:
            return None
        limit = limits.get(spec.limit) if spec.limit is not None else None
        if limit is not None:
            among, name = homes(limit, tenant, partitions), budget_of(limit, tenant)
            if spec.serial_key is not None:
                return home_of(key, among)
            return among[partition_of(key, len(among))] if again else self._next(name, among)
        if spec.limit is not None or spec.serial_key is not None:
            return None  # its calls are sent to their homes, or must meet, whatever limits come and go beside them
        free = open_to_all(limits_of(spec.queue, limits.values()), partitions) if limits else range(partitions)
        return free[partition_of(key, len(free))] if again else self._next(f"queue {spec.queue}", free)

    def _next(self, name: str, among: Sequence[int]) -> int:
        """Each has a turn of its own: with one for all, calls that alternate would keep to every other partition."""
        if (placed := self._placed.get(name)) is None:
            if len(self._placed) >= REMEMBERED:
                self._placed.clear()
            placed = self._chance.randrange(len(among))
        self._placed[name] = placed + 1
        return in_turn(placed, among)

    async def follow(self) -> None:
        """Learn of queues, for ever."""
        while True:
            await self.learn(anew=True)
            for _ in range(int(AGAIN_S / LOOK_S)):
                await asyncio.sleep(LOOK_S)
                await self.learn()

    async def learn(self, anew: bool = False) -> None:
        """Count the partitions of the registered queues that are not known; `anew` of all. What was counted holds until
        something else is.
        """
        registered = {spec.queue for spec in self._registry.tools.values()}
        for queue in sorted(registered if anew else registered - self._counts.keys()):
            try:
                self._counts[queue] = await self._broker.partitions(self._namespace.calls(queue))
            except TopicsError:
                self._counts.pop(queue, None)
                log.debug("queue %s has no topic yet", queue)
            except BrokerError as error:
                log.info("the partitions of queue %s cannot be counted yet: %s", queue, error)
