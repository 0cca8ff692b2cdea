"""Large results of many calls at once: written out a few at a time, and the small ones among them at once.

Responsible for: what a tool worker has in hand on its way to the store. Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from obstore.store import MemoryStore
from tests.support.bench import ToolBench, call
from tests.support.wait import until

from anabranch import App
from anabranch.bodies import read
from anabranch.config import StoreSettings
from anabranch.content import text
from anabranch.log_events import ToolResult
from anabranch.store import Store

LARGE = 2_000_000
"""Bytes of a result that no record takes."""


class SlowObjects:
    """Takes what it is given once it may. `given` is how often it was asked to, `most` how often at the same time."""

    def __init__(self) -> None:
        self.objects, self.open = MemoryStore(), asyncio.Event()
        self.given = self.taking = self.most = 0

    async def put_async(self, path: str, data: bytes) -> None:
        self.given += 1
        self.taking += 1
        self.most = max(self.most, self.taking)
        await self.open.wait()
        await self.objects.put_async(path, data)
        self.taking -= 1


@pytest.mark.parametrize("blocks", [False, True])
async def test_large_results_are_written_out_a_few_at_a_time_and_hold_up_no_small_one(
    monkeypatch: pytest.MonkeyPatch, blocks: bool
) -> None:
    monkeypatch.setattr("anabranch.in_hand.AT_ONCE", 2 * LARGE + 1000)
    app, slow = App("t"), SlowObjects()

    @app.tool(queue="q", max_result="5MB")
    async def write(size: int) -> Any:
        """Writes."""
        return [text("x" * size)] if blocks else "x" * size

    async with ToolBench(app, store=Store(slow, "t", StoreSettings())).running() as bench:
        await bench.assign()
        bench.deliver(*(call(number, "write", {"size": LARGE + number}) for number in range(6)))
        bench.deliver(call(6, "write", {"size": 10}))
        await until(lambda: bench.sent.returned, what="the small one has its result")
        await until(lambda: slow.taking == 2, what="two are on their way to the store")
        assert bench.sent.returned == ["r/1.a/6"]
        slow.open.set()
        await until(lambda: len(bench.sent.returned) == 7, what="all have their results")
    assert (slow.given, slow.most) == (6, 2)
    for record in bench.sent.records[1:]:
        told = read(ToolResult, record.value)
        assert (told.content, told.content_ref is None) == (None, False)
