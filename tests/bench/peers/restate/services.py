"""Two Restate services: an agent, whose turns are journaled steps, and a tool, called as a service of its own.

Called by: hypercorn, which serves `agents_app` and `tools_app` in a process each.
"""

from __future__ import annotations

import restate

from tests.bench.peers import turns

agents, tools = restate.Service("agents"), restate.Service("tools")
_model = turns.client()


@tools.handler()
async def look_up(ctx: restate.Context, arguments: turns.Json) -> str:
    """What it returns is journaled, so that a caller that is replayed does not call again."""
    return await turns.look_up(**arguments)


@agents.handler()
async def run(ctx: restate.Context, tool_ms: int) -> str:
    """The loop; after a crash it is replayed from the journal."""
    messages = turns.first(tool_ms)
    while True:
        content = await ctx.run_typed("think", turns.think, model=_model, messages=messages)
        calls = turns.calls_of(content)
        if not calls:
            return turns.text_of(content)
        batch = [ctx.service_call(look_up, arg=call["input"]) for call in calls]
        await restate.gather(*batch)
        messages = turns.with_results(messages, content, [await each for each in batch])


agents_app, tools_app = restate.app(services=[agents]), restate.app(services=[tools])
