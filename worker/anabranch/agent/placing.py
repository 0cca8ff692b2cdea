"""Chooses the partition of a queue that a call is published to: a home of its tool's limit.

It knows what the registry says of limits, and how many partitions each queue has, which it asks the broker beside the
work and never while a plan is made. Of a queue that is not known yet nothing is chosen: the key decides then, and a
tool worker sends a call that has missed its home there. The plan asks; `agent_role.py` runs `follow`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from anabranch.errors import BrokerError, TopicsError
from anabranch.homes import home_of, homes, in_turn, limits_of, open_to_all
from anabranch.kafka.seam import Broker
from anabranch.registry import Registry
from anabranch.specs import ToolSpec
from anabranch.topics import Namespace, partition_of

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the registry is searched for queues that are not known yet."""
AGAIN_S: Final = 60.0
"""How often the partitions of known queues are counted again: somebody may have added some."""


class Placing:
    """See the module."""

    def __init__(self, broker: Broker, namespace: Namespace, registry: Registry) -> None:
        self._broker, self._namespace, self._registry = broker, namespace, registry
        self._counts: dict[str, int] = {}
        self._placed = 0

    def partition(self, spec: ToolSpec, key: str, tenant: str | None) -> int | None:
        """Where a call with this key goes; None: wherever its key says."""
        partitions = self._counts.get(spec.queue)
        if partitions is None or not self._registry.limits:
            return None
        limit = self._registry.limits.get(spec.limit) if spec.limit is not None else None
        if limit is not None:
            among = homes(limit, tenant, partitions)
            return home_of(key, among) if spec.serial_key is not None else in_turn(self._next(), among)
        if spec.serial_key is not None:  # its calls must meet, whatever limits come and go beside them
            return None
        among = open_to_all(limits_of(spec.queue, self._registry.limits.values()), partitions)
        return among[partition_of(key, len(among))] if len(among) < partitions else None

    def _next(self) -> int:
        self._placed += 1
        return self._placed

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
