"""A role's membership in its consumer group: when it takes over what is assigned, and when it gives all up.

What both roles owe the group alike is here: an assignment may come before the subscription is known, a take-over
is tried until it works and ends when it is overtaken, a revoke waits for a release that is under way. It decides
nothing about partitions: `Member` does, which is an `AgentWorker` or a `ToolWorker`. What is said here while Kafka is
away comes again and again, and is shown now and then (`cli/loglines.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from anabranch.errors import AnabranchError, BrokerError, ConfigError, Forbidden, TopicsError
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Place, Subscription
from anabranch.tasks import Group

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5


class Member(Protocol):
    """What a role does with its partitions."""

    async def take_over(self, places: frozenset[Place]) -> None:
        """Begin, or go on, where the commits say. What no repetition cures ends the worker; all else is tried again."""
        ...

    async def give_up(self, for_s: float) -> None:
        """Finish, hand off and commit; what is in flight goes on for `for_s` at most."""
        ...

    def let_go(self) -> None:
        """The session was lost: nothing may be told or committed any more."""
        ...


class Membership:
    """See the module. `hand_off_s` is for how long what is in flight goes on after a revoke."""

    def __init__(self, member: Member, hand_off_s: float, meters: RoleMeters) -> None:
        self._member, self._hand_off_s, self._meters = member, hand_off_s, meters
        self._subscription: Subscription | None = None
        self._tasks: Group | None = None
        self._taking_over: asyncio.Task[object] | None = None
        self._assigned: frozenset[Place] | None = None  # by the group, since the last revoke
        self.is_settled = False
        """Whether what the group assigned last, be it nothing, has been taken over."""
        self.assigned_at = 0.0  # by the loop's clock
        self._giving_up = asyncio.Lock()
        self.stopping = False

    @property
    def subscription(self) -> Subscription:
        assert self._subscription is not None, "attach() comes first"
        return self._subscription

    @property
    def is_taking_over(self) -> bool:
        """What is delivered meanwhile, of an assignment that was not renewed, is read again."""
        return self._taking_over is not None and not self._taking_over.done()

    @property
    def places(self) -> frozenset[Place]:
        """What is assigned to us now."""
        return self._assigned or frozenset()

    def attach(self, subscription: Subscription) -> None:
        """From here on partitions are taken over. The group may have assigned them before."""
        self._subscription = subscription
        self._start_to_take_over()

    def enter(self, tasks: Group) -> None:
        """From here on there is somebody to do it."""
        self._tasks = tasks
        self._start_to_take_over()

    def assigned(self, places: frozenset[Place]) -> None:
        self._meters.rebalances.count()
        self.assigned_at = asyncio.get_running_loop().time()
        self._assigned = places
        self._start_to_take_over()

    def take_over_again(self) -> None:
        """Let what is assigned go, and begin anew with it."""
        assigned = self._assigned
        self.forget()
        self._member.let_go()
        self._assigned = assigned
        self._start_to_take_over()

    async def revoked(self, lost: bool) -> None:
        if self.stopping:
            async with self._giving_up:  # the group waits: what `release` has begun may be under way still
                return
        if lost:
            self._meters.sessions_lost.count()
            self.forget()
            self._member.let_go()
        else:
            await self._give_up(self._hand_off_s)

    async def release(self, for_s: float) -> None:
        """Take nothing more, and give all up; what is in flight goes on for `for_s` at most."""
        self.stopping = True
        await self._give_up(for_s)

    def forget(self) -> None:
        """Take over no more of what was assigned: a revoke may come before `attach`, or in mid-take-over."""
        self._assigned, self.is_settled = None, False
        if self._taking_over is not None:
            self._taking_over.cancel()
            self._taking_over = None

    async def end_of(self, place: Place, wanted: Callable[[], bool]) -> int | None:
        """Where a partition ends now, asked until Kafka says it; None if that is `wanted` no more."""
        while wanted():
            try:
                return (await self.subscription.ends([place]))[place]
            except BrokerError as error:
                log.warning("the end of %s/%d cannot be had yet: %s", *place, error, extra=place._asdict())
                await asyncio.sleep(AGAIN_S)
        return None

    async def _give_up(self, for_s: float) -> None:
        async with self._giving_up:
            self.forget()
            await self._member.give_up(for_s)

    def _start_to_take_over(self) -> None:
        if self._tasks is None or self._subscription is None or self.stopping:
            return
        self.is_settled = False
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._taking_over = self._tasks.begin(self._take_over(self.places), "take over")

    async def _take_over(self, places: frozenset[Place]) -> None:
        """Tried until it works: without it nothing happens here."""
        while True:
            try:
                await self._member.take_over(places)
                self.is_settled = self._assigned is not None
                return
            except (ConfigError, Forbidden, TopicsError):
                raise  # no repetition cures it: the worker ends, and says why
            except AnabranchError as error:
                log.warning("cannot take over yet: %s", error)
                await asyncio.sleep(AGAIN_S)
