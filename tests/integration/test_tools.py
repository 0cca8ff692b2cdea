"""What one tool may do, on a real Kafka: take typed arguments, return anything, fail in any way.

Responsible for: that whatever a tool does, its call gets one result that tells the model what happened, and its
siblings are unaffected. Must never: test what spans the calls of a batch (test_batches).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from tests.support.fleet import Fleet, by_turn, fleet, settings_for, told

from anabranch import App, Call, Retryable
from anabranch.content import image, text
from anabranch.testing import last_results, result_text, tool_use

PIXEL = b"\x89PNG\r\n\x1a\n"
app = App("tools")
seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


class Address(BaseModel):
    street: str
    since: date | None = None


class Customer(BaseModel):
    name: str
    addresses: list[Address] = []


class Unwritable:
    """Has no JSON."""


@app.tool(queue="io")
async def move(
    customer: Customer, how: Literal["fast", "slow"], boxes: Annotated[int, Field(ge=1)] = 3, call: Call | None = None
) -> Customer:
    """Moves a customer."""
    assert call is not None
    seen.update(customer=customer, how=how, boxes=boxes, call=call)
    call.log.info("moving")
    return customer


@app.tool(queue="io")
async def give(what: str) -> Any:
    """Returns something."""
    return {
        "text": "plain",
        "json": {"a": [1, None, 2.5], "b": True},
        "none": None,
        "empty": "",
        "number": 7,
        "blocks": [text("look:"), image(PIXEL, "image/png")],
        "block": text("one block"),
        "set": Unwritable(),
        "nested": {"x": [Unwritable()]},
    }[what]


@app.tool(queue="io")
async def fail(how: str) -> str:
    """Fails."""
    match how:
        case "raises":
            raise ValueError("no such customer")
        case "raises without a word":
            raise KeyError
        case "times out by itself":
            raise TimeoutError("the CRM is slow")
        case "exits":
            raise SystemExit(3)
        case "cancels itself":
            raise asyncio.CancelledError
        case _:
            raise ExceptionGroup("two at once", [ValueError("a"), TypeError("b")])


@app.tool(queue="io", timeout=0.3)
async def hang() -> str:
    """Hangs in the loop."""
    await asyncio.sleep(60)
    return "never"


released = threading.Event()


@app.tool(queue="io", timeout=0.3)
def hang_in_a_thread() -> str:
    """Hangs in a thread."""
    released.wait(20)
    return "never"


@app.tool(queue="io", run_in="process", timeout=20)
def in_a_process(n: int) -> dict[str, int]:
    """Works in another process."""
    return {"square": n * n, "pid": os.getpid()}


@app.tool(queue="io", run_in="process", timeout=20)
def die(how: str) -> str:
    """Dies in another process."""
    if how == "exit":
        os._exit(1)
    raise ValueError("not today")


@app.tool(queue="io", run_in="process", timeout=1.0)
def hang_in_a_process() -> str:
    """Hangs in another process."""
    time.sleep(60)
    return "never"


@app.tool(queue="io", max_result=100)
async def chatter(length: int) -> str:
    """Says a lot."""
    return "x" * length


@app.tool(queue="io", retries=2)
async def flaky(call: Call) -> str:
    """Works at the third try."""
    if call.attempt < 3:
        raise Retryable("not yet", after=0.01)
    return f"try {call.attempt} of {call.dispatch}, key {call.idempotency_key == call.id}"


@app.tool(queue="io", on_error="abort")
async def vital(ok: bool) -> str:
    """Must not fail."""
    if not ok:
        raise RuntimeError("the vault is empty")
    return "fine"


@app.tool(queue="io")
async def fine() -> str:
    """Always works."""
    return "fine"


app.agent("worker", model="scripted", tools=[*app.tools, "in_no_app"])


def in_one_batch(*calls: tuple[str, dict[str, Any] | str]) -> Any:
    return by_turn([tool_use(name, arguments) for name, arguments in calls], "Done.")


async def results_of(running: Fleet) -> list[tuple[bool, str]]:
    """Whether each call failed, and what the model was told."""
    await running.ask("worker")
    blocks = last_results(running.request).values()
    return [(block.get("is_error", False), result_text(block)) for block in blocks]


async def test_arguments_arrive_typed_with_the_call_beside_them(kafka: str, namespace: str) -> None:
    customer = {"name": "Ada", "addresses": [{"street": "Main St", "since": "2020-01-31"}]}
    script = in_one_batch(("move", {"customer": customer, "how": "fast"}))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        before = time.time()
        response = await running.ask("worker", run_id="run-1", tenant="acme", deadline=120)
        (result,) = told(running.request)
    assert seen["customer"] == Customer(name="Ada", addresses=[Address(street="Main St", since=date(2020, 1, 31))])
    assert (seen["how"], seen["boxes"]) == ("fast", 3)
    assert Customer.model_validate_json(result) == seen["customer"]
    call = seen["call"]
    assert call.id.startswith("run-1/1.")
    assert (call.run_id, call.tool, call.tenant, call.attempt, call.dispatch) == ("run-1", "move", "acme", 1, 1)
    assert call.idempotency_key == call.id
    assert before + 100 < call.deadline < before + 180
    assert response.status == "completed"


async def test_results_may_be_texts_json_models_and_content_blocks(kafka: str, namespace: str) -> None:
    whats = ["text", "json", "none", "empty", "number", "blocks", "block"]
    script = in_one_batch(*(("give", {"what": what}) for what in whats))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await running.ask("worker")
        contents = [block.get("content") for block in running.request["messages"][-1]["content"]]
    assert contents[:2] == ["plain", '{"a":[1,null,2.5],"b":true}']
    assert contents[2:5] == ["null", "", "7"]
    assert [block["type"] for block in contents[5]] == ["text", "image"]
    assert contents[5][1]["source"]["media_type"] == "image/png"
    assert contents[6] == [{"type": "text", "text": "one block"}]


async def test_a_tool_that_fails_in_any_way_gives_an_error_result_and_its_siblings_go_on(
    kafka: str, namespace: str
) -> None:
    hows = {
        "raises": "no such customer",
        "raises without a word": "KeyError",
        "times out by itself": "the CRM is slow",
        "exits": "SystemExit",
        "cancels itself": "Cancelled",
        "raises a group": "two at once",
    }
    script = in_one_batch(*(("fail", {"how": how}) for how in hows), ("fine", {}))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        *failed, sibling = await results_of(running)
    assert sibling == (False, "fine")
    assert all(is_error for is_error, _ in failed)
    assert [said for said in hows.values() if not any(said in told for _, told in failed)] == []


async def test_a_result_that_has_no_json_is_an_error_that_says_so(kafka: str, namespace: str) -> None:
    script = in_one_batch(("give", {"what": "set"}), ("give", {"what": "nested"}), ("fine", {}))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        *failed, sibling = await results_of(running)
    assert sibling == (False, "fine")
    assert all(is_error and "JSON" in said for is_error, said in failed)


async def test_a_tool_past_its_timeout_is_an_error_wherever_it_runs(kafka: str, namespace: str) -> None:
    script = in_one_batch(("hang", {}), ("hang_in_a_thread", {}), ("hang_in_a_process", {}), ("fine", {}))
    try:
        async with fleet(app, script, settings_for(kafka, namespace)) as running:
            response = await running.ask("worker")
            blocks = list(last_results(running.request).values())
    finally:
        released.set()
    assert all(block["is_error"] and "timed out" in result_text(block) for block in blocks[:3])
    assert ["0.3 s" in result_text(block) for block in blocks[:3]] == [True, True, False]
    assert result_text(blocks[3]) == "fine"
    assert response.timing.tools_s < 15


async def test_an_unknown_tool_and_bad_arguments_are_errors_that_name_what_is_wrong(kafka: str, namespace: str) -> None:
    script = in_one_batch(
        ("in_nobodys_mind", {}),
        ("in_no_app", {}),
        ("chatter", {"length": "long"}),
        ("chatter", {}),
        ("chatter", {"length": 1, "loud": True}),
        ("move", {"customer": {"name": 7}, "how": "slowly", "boxes": 0}),
        ("fine", {}),
    )
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        *failed, sibling = await results_of(running)
    assert sibling == (False, "fine")
    assert all(is_error for is_error, _ in failed)
    said = [words for _, words in failed]
    assert "in_nobodys_mind" in said[0]
    assert "fine" in said[0], "it lists the tools that there are"
    assert "in_no_app" in said[1]
    assert "length" in said[2]
    assert "length" in said[3]
    assert "loud" in said[4]
    assert "customer" in said[5]
    assert "boxes" in said[5]


async def test_arguments_that_are_no_json_object_are_an_error_and_the_conversation_goes_on(
    kafka: str, namespace: str
) -> None:
    script = in_one_batch(("chatter", '{"length": '), ("chatter", "[1, 2]"), ("chatter", '{"length": Infinity}'))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        failed = await results_of(running)
    assert all(is_error for is_error, _ in failed)


async def test_a_tool_may_run_in_a_process_of_its_own(kafka: str, namespace: str) -> None:
    script = in_one_batch(
        ("in_a_process", {"n": 12}), ("die", {"how": "raise"}), ("die", {"how": "exit"}), ("fine", {})
    )
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        squared, raised, exited, sibling = await results_of(running)
    assert '"square":144' in squared[1]
    assert f'"pid":{os.getpid()}' not in squared[1]
    assert raised == (True, "die failed: ValueError: not today")
    assert exited[0]
    assert sibling == (False, "fine")


async def test_a_long_result_is_cut_and_says_how_long_it_was(kafka: str, namespace: str) -> None:
    script = in_one_batch(
        ("chatter", {"length": 100}), ("chatter", {"length": 12_345}), ("chatter", {"length": 3 << 20})
    )
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        whole, cut, huge = await results_of(running)
    assert whole == (False, "x" * 100)
    assert cut[1].startswith("x" * 100 + "...")
    assert "12,345" in cut[1]
    assert "3,145,728" in huge[1]


async def test_an_error_that_may_pass_is_tried_again(kafka: str, namespace: str) -> None:
    async with fleet(app, in_one_batch(("flaky", {})), settings_for(kafka, namespace)) as running:
        assert await results_of(running) == [(False, "try 3 of 1, key True")]


async def test_a_tool_may_abort_the_run_by_its_failure(kafka: str, namespace: str) -> None:
    async with fleet(
        app, in_one_batch(("fine", {}), ("vital", {"ok": False})), settings_for(kafka, namespace)
    ) as running:
        response = await running.ask("worker")
        assert running.model.calls == 1
    assert (response.status, response.output) == ("failed", None)
    assert response.error is not None
    assert response.error.code == "tool_aborted"
    assert "vital" in response.error.message
    assert "the vault is empty" in response.error.message


async def test_a_tool_that_aborts_on_failure_also_does_so_on_bad_arguments(kafka: str, namespace: str) -> None:
    async with fleet(app, in_one_batch(("vital", {"ok": "perhaps"})), settings_for(kafka, namespace)) as running:
        response = await running.ask("worker")
    assert response.error is not None
    assert response.error.code == "tool_aborted"
