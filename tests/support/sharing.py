"""A worker that has shares of limits, in virtual time: it gains homes, gives them up, and starts calls.

Must never: know how a share is kept. Called by: the tests of `tools/shares.py`.
"""

from __future__ import annotations

import asyncio
import math

from anabranch.homes import homes
from anabranch.specs import LimitSpec
from anabranch.tools.marks import Marks, ShareMark, read, write
from anabranch.tools.shares import Shares
from tests.support.virtual import now

EPOCH = 1_800_000_000.0
MINUTELY = LimitSpec("mail", "q", 1 / 60)
PLACES = LimitSpec("crm", "q", 15.0, 4)
TENANTS = LimitSpec("api", "q", 1.0, per="tenant")


def home_of(limit: LimitSpec, tenant: str | None = None) -> int:
    return homes(limit, tenant, 8)[0]


class Worker:
    """A worker with shares, in its own time. `alive` may be taken from it."""

    def __init__(self, *limits: LimitSpec, ahead_s: float = 0.0) -> None:
        self.alive, self.started = True, list[tuple[str, float]]()
        self.shares = Shares(limits, 8, lambda: EPOCH + now(), lambda: self.alive)

    def gain(self, partition: int, told: tuple[ShareMark, ...] = ()) -> Worker:
        self.shares.gain(partition, told)
        self.shares.may_start(partition)
        return self

    async def call(
        self, limit: LimitSpec, tenant: str | None = None, takes_s: float = 0.0, order: int = 0, home: int | None = None
    ) -> None:
        """At `home`, or else where the limit's is."""
        pacer = self.shares.pacer(limit.name, tenant, home_of(limit, tenant) if home is None else home)
        async with pacer.inside(pacer.join(order, 60.0, lambda: math.inf)) as turn:
            await turn.start()
            self.started.append((limit.name, now()))
            await asyncio.sleep(takes_s)

    def leave(self, partition: int, for_s: float = 5.0) -> tuple[ShareMark, ...]:
        """Give all up; returns what the commit says."""
        self.shares.close(for_s, lambda partition, offset, is_in: True)
        told = read(0, write(0, Marks(shares=self.shares.told(partition)))).shares
        self.shares.leave([partition])
        return told

    @property
    def at(self) -> list[float]:
        return [round(when, 2) for _, when in self.started]
