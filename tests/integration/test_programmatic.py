"""Calls that the model makes from its own code, on a real Kafka and over real HTTP: served like any other.

Responsible for: many calls in one turn, results that hold nothing else, and the container, kept through a takeover.
Must never: test what the scripted server refuses (test_testing_rules) or what a declaration does (test_callers).
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.fleet import fleet, settings_for, told

from anabranch import App
from anabranch.testing import Reply, code_execution, code_result, tool_use, turn_of

CODE = "code_execution_20260120"
SERVER_TOOL = {"type": CODE, "name": "code_execution"}
SOURCE = "srvtoolu_1"
REGIONS = ["West", "East", "North"]

app = App("programmatic")
held = asyncio.Event()


@app.tool(queue="io", allowed_callers=[CODE])
async def sales(region: str) -> dict[str, Any]:
    """The sales of a region, as JSON."""
    return {"region": region, "sum": 1.10}


@app.tool(queue="io", allowed_callers=["direct", CODE])
async def slow_sales(region: str) -> str:
    """The same, when it is let go."""
    await held.wait()
    return region


app.agent("analyst", model="scripted", tools=[sales, slow_sales], server_tools=[SERVER_TOOL])
app.agent("plain", model="scripted", tools=[slow_sales])


def by_code(tool: str, *regions: str) -> list[dict[str, Any]]:
    return [tool_use(tool, {"region": region}, code=SOURCE) for region in regions]


def analysing(request: dict[str, Any], tool: str = "sales") -> Any:
    """Code that asks for all regions at once, then for one more, and then comes to its end."""
    match turn_of(request):
        case 1:
            return ["Let me see.", code_execution("await gather(...)", SOURCE), *by_code(tool, *REGIONS)]
        case 2:
            return by_code(tool, "South")
        case _:
            return [code_result(SOURCE, "4 regions"), "Four regions."]


async def test_calls_of_code_are_served_like_any_other_and_stay_in_their_container(kafka: str, namespace: str) -> None:
    async with fleet(app, analysing, settings_for(kafka, namespace)) as running:
        answer = await running.ask("analyst")
        first, second, third = running.model.requests
    assert (answer.status, answer.calls.total, answer.calls.widest) == ("completed", 4, 3)
    assert [block["type"] for block in answer.content or []] == ["code_execution_tool_result", "text"]
    assert first["tools"][0] == SERVER_TOOL
    assert [tool.get("allowed_callers") for tool in first["tools"][1:]] == [[CODE], ["direct", CODE]]
    assert "container" not in first
    assert second["container"] == third["container"]
    assert second["container"].startswith("container_")
    assert told(second) == [f'{{"region":"{region}","sum":1.1}}' for region in REGIONS]
    for request in (second, third):
        assert {block["type"] for block in request["messages"][-1]["content"]} == {"tool_result"}
        callers = [block["caller"] for block in request["messages"][-2]["content"] if block["type"] == "tool_use"]
        assert callers == [{"type": CODE, "tool_id": SOURCE}] * len(callers)
        assert callers


async def test_the_container_is_kept_when_another_worker_takes_the_run_over(kafka: str, namespace: str) -> None:
    held.clear()
    async with fleet(app, lambda r: analysing(r, "slow_sales"), settings_for(kafka, namespace)) as running:
        run = await running.client.submit("analyst", "hi")
        async with asyncio.timeout(30):
            async for event in run.events():
                if event.type == "model.replied":
                    break
        await running.add_agent()
        await running.stop(running.agents[0])
        held.set()
        async with asyncio.timeout(45):
            answer = await run
        second, third = running.model.requests[1:]
    assert (answer.status, answer.output) == ("completed", "Four regions.")
    assert second["container"] == third["container"]


async def test_an_agent_without_code_is_offered_a_tool_to_call_directly(kafka: str, namespace: str) -> None:
    held.set()
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace)) as running:
        await running.ask("plain")
        (tool,) = running.request["tools"]
        assert "allowed_callers" not in tool


async def test_a_container_that_expired_while_code_waited_ends_the_run_with_its_name(
    kafka: str, namespace: str
) -> None:
    gone = {"id": "container_gone", "expires_at": "2020-01-01T00:00:00+00:00"}
    script = [Reply(content=[code_execution("x", SOURCE), *by_code("sales", "West")], container=gone)]
    async with fleet(app, script, settings_for(kafka, namespace), refusals=True) as running:
        answer = await running.ask("analyst")
        assert len(running.model.refusals) == 1
    assert answer.error is not None
    assert answer.error.code == "model_rejected"
    assert "container_gone" in answer.error.message


async def test_a_request_for_one_call_a_turn_is_refused_where_code_may_call(kafka: str, namespace: str) -> None:
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace)) as running:
        answer = await running.ask("analyst", parallel_tool_calls=False)
        assert running.model.requests == []
        assert (await running.ask("plain", parallel_tool_calls=False)).status == "completed"
    assert answer.error is not None
    assert answer.error.code == "invalid_request"
    assert "parallel_tool_calls" in answer.error.message
