"""A bare loop: the SDK, and `asyncio.gather` for the calls of a turn. Nothing outlives the process.

In the variant `streamed` it streams, as Anabranch does; else it waits for whole replies, which is cheaper.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anthropic import AsyncAnthropic

from tests.bench.peers import turns
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place


@dataclass(frozen=True, slots=True)
class Loop:
    """See `load.Asked`."""

    model: AsyncAnthropic
    streamed: bool

    async def ask(self, tool_ms: int) -> None:
        messages = turns.first(tool_ms)
        while calls := turns.calls_of(content := await self._think(messages)):
            results = await asyncio.gather(*(turns.look_up(**call["input"]) for call in calls))
            messages = turns.with_results(messages, content, results)
        turns.check(turns.text_of(content))

    async def _think(self, messages: list[turns.Json]) -> list[turns.Json]:
        if not self.streamed:
            return await turns.think(self.model, messages)
        async with self.model.messages.stream(**turns.request(messages)) as stream:
            reply = await stream.get_final_message()
        return [block.to_dict() for block in reply.content]


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """One client for all runs."""
    async with turns.client() as model:
        yield Job(Loop(model, streamed=place.variant == "streamed"))


if __name__ == "__main__":
    main(opened, ["anthropic"])
