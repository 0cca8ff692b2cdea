"""An App and the scripted model for it: a run of two turns and three calls in which something goes wrong everywhere.

Responsible for: one call that is retried, one that fails, one that lasts until the test lets it go; a model that is
overloaded at first. Must never: import a test. Called by: the test of traces, and its worker processes.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from anabranch import App, Call, Retryable
from anabranch.testing import Answer, Reply, prompt_of, tool_use, turn_of

app = App("traced")
PRIVATE = "4111-1111"
"""What a run speaks of, and nobody else may."""


@app.tool(queue="io", retries=2)
async def flaky(card: str, call: Call) -> str:
    """Fails the first time, and says too much."""
    call.log.info("asking with %s", os.environ.get("CRM_TOKEN"))
    if call.attempt == 1:
        raise Retryable(f"{card} is busy", after=0.01)
    return f"{card} is fine"


@app.tool(queue="io")
async def bad(card: str) -> str:
    """Fails."""
    raise ValueError(f"{card} is unknown")


@app.tool(queue="io", timeout=60)
async def held(until: str) -> str:
    """Ends once the file exists."""
    while not Path(until).exists():  # noqa: ASYNC110 - it is another process that makes it
        await asyncio.sleep(0.05)
    return "free"


app.agent("traced", model="scripted", tools=[flaky, bad, held], max_turns=5)


class Overloaded:
    """A script that is overloaded once. The prompt names the file that `held` waits for."""

    def __init__(self) -> None:
        self._refused = False

    def __call__(self, request: dict[str, Any]) -> Answer:
        if not self._refused:
            self._refused = True
            return Reply.error(529)
        if turn_of(request) > 1:
            return f"{PRIVATE} is done"
        calls = [tool_use("flaky", {"card": PRIVATE}), tool_use("bad", {"card": PRIVATE})]
        return [*calls, tool_use("held", {"until": prompt_of(request).split()[-1]})]
