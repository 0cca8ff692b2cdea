"""A tool that cancels the task that it runs in ends its own call, and neither the worker nor what the call comes to.

Responsible for: what `Service` makes of a task that is cancelled and not by us. Must never: run a broker. Called by:
pytest.
"""

from __future__ import annotations

import asyncio

import orjson
import pytest
from tests.support.bench import PLACE, Results, ToolBench, call
from tests.support.wait import until

from anabranch import App
from anabranch.codec import Outgoing
from anabranch.kafka.sent import Acked, Sent


class SoonAcknowledged(Results):
    """As a broker does: who appends has to wait."""

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        self.records.append(record)
        sent = Sent()
        asyncio.get_running_loop().call_soon(sent.succeed, Acked(len(self.records)))
        return sent


CONTENTS = {
    "and returns": "done",
    "and fails": "leave failed: ValueError: no",
    "and waits": "leave failed: it cancelled itself",
    "twice and returns": "done",
    "twice and waits": "leave failed: it cancelled itself",
}


@pytest.mark.parametrize("how", CONTENTS)
async def test_its_call_is_over_with_what_it_came_to(how: str) -> None:
    app = App("t")

    @app.tool(queue="q")
    async def leave() -> str:
        """Leave."""
        task = asyncio.current_task()
        assert task is not None
        for _ in range(1 + how.startswith("twice")):
            task.cancel()
        if how.endswith("waits"):
            await asyncio.sleep(60)
        if how.endswith("fails"):
            raise ValueError("no")
        return "done"

    async with ToolBench(app, sent=SoonAcknowledged()).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "leave"), call(1, "leave"))
        await until(lambda: bench.group.stands[PLACE].offset == 2, what="both calls are over")
    assert [orjson.loads(record.value or b"")["content"] for record in bench.sent.records] == [CONTENTS[how]] * 2
