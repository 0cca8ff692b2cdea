"""How many bytes are in hand at once, and who is next.

Responsible for: `in_hand.py`, one turn of the loop after another. Must never: wait for real time. Called by: pytest.
"""

from __future__ import annotations

import asyncio

from anabranch.in_hand import AT_ONCE, InHand


class Desk:
    """Those that hold something, in the order in which they were let in. `leave` lets them go, by name."""

    def __init__(self) -> None:
        self.in_hand, self.order = InHand(), list[str]()
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def wants(self, name: str, size: int) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, size))
        await asyncio.sleep(0)

    async def _hold(self, name: str, size: int) -> None:
        async with self.in_hand.hold(size):
            self.order.append(name)
            await self.leave[name].wait()

    async def goes(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
        await asyncio.wait([self.tasks[name] for name in names])
        await asyncio.sleep(0)

    async def is_empty(self) -> bool:
        """Whether nothing is counted any more: all there is room for is to be had at once."""
        await self.wants("all", AT_ONCE)
        await self.wants("none", 0)
        came = self.order[-2:] == ["all", "none"]
        await self.goes("all", "none")
        return came


async def test_what_is_in_hand_for_all_together_is_bounded_and_what_is_larger_goes_alone() -> None:
    desk = Desk()
    await desk.wants("larger", AT_ONCE * 2)
    await desk.wants("small", 1)
    assert desk.order == ["larger"]
    await desk.goes("larger")
    assert desk.order == ["larger", "small"]
    await desk.goes("small")
    assert await desk.is_empty()


async def test_who_wants_nearly_all_is_next_although_small_ones_would_fit_one_after_the_other() -> None:
    desk = Desk()
    await desk.wants("0", 2)
    await desk.wants("large", AT_ONCE - 1)
    for number in range(1, 11):
        await desk.wants(str(number), 2)
    await desk.goes("0")
    assert desk.order == ["0", "large"]
    await desk.goes("large")
    assert desk.order == ["0", "large", *map(str, range(1, 11))], "and then all others at once, in their order"


async def test_who_waits_no_longer_holds_nobody_up() -> None:
    desk = Desk()
    await desk.wants("first", 2)
    await desk.wants("large", AT_ONCE)
    await desk.wants("small", 2)
    desk.tasks["large"].cancel()
    await asyncio.wait([desk.tasks["large"]])
    await asyncio.sleep(0)
    assert desk.order == ["first", "small"]
    await desk.goes("first", "small")
    assert await desk.is_empty()


async def test_who_is_cancelled_when_just_let_in_has_nothing_in_hand() -> None:
    desk = Desk()
    await desk.wants("first", AT_ONCE)
    await desk.wants("second", AT_ONCE)
    await desk.wants("third", AT_ONCE)
    desk.leave["first"].set()
    await asyncio.sleep(0)
    desk.tasks["second"].cancel()
    await asyncio.wait([desk.tasks["second"]])
    await asyncio.sleep(0)
    assert desk.order == ["first", "third"]
    await desk.goes("third")
    assert await desk.is_empty()
