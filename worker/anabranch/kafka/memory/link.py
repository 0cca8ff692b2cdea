"""What lies between a process and the double's cluster: delays, lost answers, and a cable to cut.

Responsible for: the faults of one process, all of them given by the test, none of them by chance or by a clock.
Must never: change what the cluster holds; it only decides what arrives, and when.
Called by: the rest of the double, and tests, which give the `Faults`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from random import Random

from anabranch.values import frozen


def _never() -> bool:
    return False


def _at_once() -> float:
    return 0.0


@frozen()
class Faults:
    """What goes wrong; each is asked anew for every request.

    `delay` is the seconds that a request, an answer or a fetch takes. `lost_ack`: records are written, but the
    producer does not hear of it, and writes them again. `blind_ack`: the acknowledgement names no offset.
    `lost_commit`: a commit is kept, but not confirmed. `most` is how many records a producer sends at once.
    """

    delay: Callable[[], float] = _at_once
    lost_ack: Callable[[], bool] = _never
    blind_ack: Callable[[], bool] = _never
    lost_commit: Callable[[], bool] = _never
    most: Callable[[], int] = lambda: sys.maxsize

    @classmethod
    def seeded(cls, random: Random, rate: float, slowest_s: float) -> Faults:
        """Each fault with probability `rate`, and delays of up to `slowest_s` seconds."""

        def happens() -> bool:
            return random.random() < rate

        return cls(lambda: random.uniform(0.0, slowest_s), happens, happens, happens)


class Link:
    """One process's connection to the cluster. While it is cut nothing passes, in either direction."""

    def __init__(self, faults: Faults, timeout_s: float) -> None:
        self.faults = faults
        self._timeout_s = timeout_s
        self._whole = asyncio.Event()
        self._whole.set()

    @property
    def is_whole(self) -> bool:
        return self._whole.is_set()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def pass_over(self) -> None:
        """The time that one request takes: its delay, and for ever while the link is cut."""
        await asyncio.sleep(self.faults.delay())
        await self._whole.wait()

    async def passes(self) -> bool:
        """The same, given up after the link's timeout: whether the request has arrived."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.pass_over()
        except TimeoutError:
            return False
        return True

    def later(self, what: Callable[[], None]) -> asyncio.TimerHandle:
        """Call `what` after a delay."""
        return asyncio.get_running_loop().call_later(self.faults.delay(), what)
