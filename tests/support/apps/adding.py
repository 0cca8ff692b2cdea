"""An App of one agent and two queues, and the scripted model for it: a run whose right answer is known.

Responsible for: runs of three turns and four calls, which sleep a little. Must never: import a test.
Called by: tests of roles, and worker processes as `anabranch worker ... tests/support/apps/adding.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from anabranch import App
from anabranch.messages import RunResponse
from anabranch.testing import Answer, last_results, prompt_of, text, tool_use, turn_of

app = App("adding")


@app.tool(queue="io")
async def add(a: int, b: int) -> int:
    """Adds two numbers."""
    await asyncio.sleep(0.1)
    return a + b


@app.tool(queue="sums")
async def add_slowly(a: int, b: int) -> int:
    """Adds two numbers, in another queue."""
    await asyncio.sleep(0.2)
    return a + b


app.agent("adder", model="scripted", tools=[add, add_slowly])


def script(request: dict[str, Any]) -> Answer:
    """Adds the run's number to 1, 2 and 3 in a turn, and the results in the next; answers with the sum."""
    number = int(prompt_of(request))
    if turn_of(request) == 1:
        return [text("So."), *(tool_use("add", {"a": number, "b": n}) for n in (1, 2, 3))]
    said = [int(block["content"]) for block in last_results(request).values()]
    if turn_of(request) == 2:
        return tool_use("add_slowly", {"a": said[0] + said[1], "b": said[2]})
    return str(said[0])


def inputs(count: int) -> list[str]:
    """What `count` runs are asked."""
    return [str(number) for number in range(count)]


def check(answers: Iterable[RunResponse]) -> None:
    """Fails unless these are the right answers to `inputs`, in their order."""
    found = list(answers)
    assert Counter(response.status for response in found) == {"completed": len(found)}
    assert [response.output for response in found] == [str(3 * number + 6) for number in range(len(found))]
    assert {(response.turns, response.calls.total, response.calls.failed) for response in found} == {(3, 4, 0)}
