"""The calls of one turn, on a real Kafka and over real HTTP: all at once, each answered by its id, in one message.

Responsible for: what parallel tool calls promise (order, parallelism, levels, limits) and what the model is told of it.
Must never: test what a single tool may do (test_tools) or how a run ends (test_runs).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.support.fleet import by_turn, fleet, settings_for, told

from anabranch import App, Limit
from anabranch.agent.prompt.offer import HINT
from anabranch.testing import last_results, result_text, text, tool_use

NAP_S = 0.2
app = App("batches")
slow_api = Limit("slow-api", "10/s")
spans: dict[str, list[tuple[float, float]]] = {}


@pytest.fixture(autouse=True)
def _no_spans() -> None:
    spans.clear()


def note(tool: str, began: float) -> None:
    spans.setdefault(tool, []).append((began, time.monotonic()))


@app.tool(queue="io")
async def later(word: str, after_s: float) -> str:
    """Says a word after a while."""
    await asyncio.sleep(after_s)
    return word


@app.tool(queue="io")
async def nap(word: str) -> str:
    """Sleeps in the event loop."""
    await asyncio.sleep(NAP_S)
    return word


@app.tool(queue="io")
def nap_in_a_thread(word: str) -> str:
    """Sleeps in a thread."""
    time.sleep(NAP_S)
    return word


@app.tool(queue="io", concurrency=2)
async def two_at_once(word: str) -> str:
    """Two of these may run at once."""
    began = time.monotonic()
    await asyncio.sleep(NAP_S / 2)
    note("two_at_once", began)
    return word


@app.tool(queue="io", limit=slow_api)
async def paced(word: str) -> str:
    """Uses a slow API."""
    note("paced", time.monotonic())
    return word


@app.tool(queue="io", limit=slow_api)
async def paced_too(word: str) -> str:
    """Uses the same slow API."""
    note("paced", time.monotonic())
    return word


@app.tool(queue="io")
async def first(word: str) -> str:
    """Comes first."""
    began = time.monotonic()
    await asyncio.sleep(NAP_S)
    note("first", began)
    if word == "bad":
        raise ValueError("the first step broke")
    return word


@app.tool(queue="io", after=[first])
async def second(word: str) -> str:
    """Comes after the first."""
    note("second", time.monotonic())
    return word


@app.tool(queue="io", after=[second])
async def third(word: str) -> str:
    """Comes after the second."""
    note("third", time.monotonic())
    return word


TOOLS = list(app.tools)
app.agent("free", model="scripted", system="Be brief.", tools=TOOLS)
app.agent("few", model="scripted", tools=TOOLS, max_calls_per_turn=3)
app.agent("single", model="scripted", tools=TOOLS, parallel_tool_calls=False)
app.agent("unhinted", model="scripted", system="Be brief.", tools=TOOLS, parallel_hint=False)
app.agent("forced", model="scripted", tools=TOOLS, tool_choice="nap")
app.agent("any", model="scripted", tools=TOOLS, tool_choice="any")
app.agent("mute", model="scripted", tools=TOOLS, tool_choice="none")


def calls(tool: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [tool_use(tool, {"word": str(number), **more}) for number in range(count)]


async def test_results_come_in_one_message_in_the_order_of_the_calls(kafka: str, namespace: str) -> None:
    """The last call finishes first; each result still stands under its own id."""
    asked = [tool_use("later", {"word": str(n), "after_s": 0.4 - n / 10}, id=f"toolu_{n}") for n in range(5)]
    async with fleet(app, by_turn([text("Looking."), *asked], "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("free")
        results = last_results(running.request)
        last = running.request["messages"][-1]
    assert (response.status, response.output) == ("completed", "Done.")
    assert [message["role"] for message in running.request["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in last["content"]] == ["tool_result"] * 5
    assert list(results) == [f"toolu_{n}" for n in range(5)]
    assert [result_text(results[f"toolu_{n}"]) for n in range(5)] == list("01234")
    assert (response.calls.total, response.calls.failed, response.calls.widest) == (5, 0, 5)


async def test_calls_are_matched_by_id_even_if_they_are_all_alike(kafka: str, namespace: str) -> None:
    """Same tool, same arguments: still one result each."""
    alike = [tool_use("nap", {"word": "same"}) for _ in range(6)]
    async with fleet(app, by_turn(alike, "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("free")
        assert told(running.request) == ["same"] * 6
        asked = [block["id"] for block in running.request["messages"][1]["content"]]
        assert list(last_results(running.request)) == asked
    assert response.calls.total == 6


@pytest.mark.parametrize("tool", ["nap", "nap_in_a_thread"])
async def test_ten_slow_calls_of_one_tool_take_as_long_as_one(kafka: str, namespace: str, tool: str) -> None:
    async with fleet(app, by_turn(calls(tool, 10), "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("free")
        assert told(running.request) == [str(n) for n in range(10)]
    assert response.timing.tools_sequential_s >= 10 * NAP_S
    assert response.timing.tools_s < response.timing.tools_sequential_s / 3


async def test_calls_that_come_after_others_run_level_by_level(kafka: str, namespace: str) -> None:
    batch = [tool_use("third", {"word": "3"}), tool_use("second", {"word": "2"}), *calls("first", 2)]
    async with fleet(app, by_turn(batch, "Done."), settings_for(kafka, namespace)) as running:
        await running.ask("free")
        assert told(running.request) == ["3", "2", "0", "1"]
    assert min(began for began, _ in spans["second"]) >= max(ended for _, ended in spans["first"])
    assert spans["third"][0][0] >= spans["second"][0][1]


async def test_what_comes_after_a_failed_call_is_not_run(kafka: str, namespace: str) -> None:
    batch = [tool_use("third", {"word": "3"}), tool_use("second", {"word": "2"}), tool_use("first", {"word": "bad"})]
    batch.append(tool_use("nap", {"word": "unaffected"}))
    async with fleet(app, by_turn(batch, "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("free")
        third_said, second_said, first_said, sibling = told(running.request)
    assert "the first step broke" in first_said
    assert "first" in second_said
    assert "second" in third_said
    assert sibling == "unaffected"
    assert response.calls.failed == 3
    assert "second" not in spans


async def test_a_tools_concurrency_bounds_it_on_a_worker(kafka: str, namespace: str) -> None:
    async with fleet(app, by_turn(calls("two_at_once", 6), "Done."), settings_for(kafka, namespace)) as running:
        await running.ask("free")
    edges = sorted([(began, 1) for began, _ in spans["two_at_once"]] + [(end, -1) for _, end in spans["two_at_once"]])
    running_now = [sum(step for _, step in edges[: place + 1]) for place in range(len(edges))]
    assert max(running_now) == 2


async def test_a_limit_paces_all_tools_that_share_it(kafka: str, namespace: str) -> None:
    """10/s: the first may go at once, each further one a tenth of a second later; others are not held up."""
    batch = [*calls("paced", 4), *calls("paced_too", 4), *calls("nap", 4)]
    async with fleet(app, by_turn(batch, "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("free")
    starts = sorted(began for began, _ in spans["paced"])
    assert len(starts) == 8
    assert starts[-1] - starts[0] >= 0.6
    assert response.timing.tools_s < 5


async def test_calls_beyond_the_agents_maximum_get_an_error_result_that_says_so(kafka: str, namespace: str) -> None:
    async with fleet(app, by_turn(calls("nap", 5), "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("few")
        results = list(last_results(running.request).values())
    assert [result_text(result) for result in results[:3]] == ["0", "1", "2"]
    assert all(result["is_error"] and "3 calls" in result_text(result) for result in results[3:])
    assert (response.calls.total, response.calls.failed) == (5, 2)


async def test_parallel_calls_can_be_switched_off_by_the_agent_and_by_the_request(kafka: str, namespace: str) -> None:
    async with fleet(app, by_turn(calls("nap", 1), "Done."), settings_for(kafka, namespace)) as running:
        await running.ask("single")
        assert running.request["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
        assert HINT not in str(running.request.get("system"))
        await running.ask("free", parallel_tool_calls=False)
        assert running.request["tool_choice"]["disable_parallel_tool_use"] is True
        assert HINT not in str(running.request["system"])
        await running.ask("free")
        assert "disable_parallel_tool_use" not in running.request.get("tool_choice", {})


async def test_the_model_is_asked_for_parallel_calls_unless_that_is_switched_off(kafka: str, namespace: str) -> None:
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace)) as running:
        await running.ask("free")
        assert HINT in running.request["system"][0]["text"]
        assert running.request["system"][0]["text"].startswith("Be brief.")
        await running.ask("unhinted")
        assert running.request["system"][0]["text"] == "Be brief."


async def test_an_agent_can_force_a_tool_on_its_first_turn_or_forbid_them_all(kafka: str, namespace: str) -> None:
    async with fleet(app, by_turn(calls("nap", 1), "Done."), settings_for(kafka, namespace)) as running:
        await running.ask("forced")
        opening, following = running.model.requests[-2:]
        assert opening["tool_choice"] == {"type": "tool", "name": "nap"}
        assert following.get("tool_choice", {"type": "auto"}) == {"type": "auto"}
        await running.ask("any")
        assert running.model.requests[-2]["tool_choice"] == {"type": "any"}
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace)) as running:
        await running.ask("mute")
        assert running.request["tool_choice"] == {"type": "none"}
