"""Two models in one run, on a real Kafka, against a server that refuses thinking that it did not issue so.

Responsible for: a run that goes on by its agent's fallback, what either model is sent, what the log and the answer say.
Must never: test when a fallback is asked (`tests/unit/test_fallback.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.support.fleet import fleet, settings_for
from tests.support.wait import until

from anabranch import App
from anabranch.cli.picture.attempts import Made
from anabranch.cli.picture.logs import RunLog
from anabranch.kafka.connect import KafkaBroker
from anabranch.prices import Price
from anabranch.testing import Answer, Reply, prompt_of, text, thinking, tool_use, turn_of
from anabranch.topics import Namespace

app = App("fallback")


@app.tool(queue="io")
async def look() -> str:
    """Looks."""
    return "seen"


app.agent("careful", model="first", fallback="second", tools=[look], max_tokens=500)
PRICES = {"first": Price(10.0, 10.0), "second": Price(1.0, 1.0)}


def script(request: dict[str, Any]) -> Answer:
    """The first model is overloaded in turn 2. Each thinks, and calls a tool in its turn."""
    model, turn = request["model"], turn_of(request)
    if prompt_of(request) == "for ever":
        return Reply(content=["a long story " * 20], hang_after=4)
    if turn == 2 and model == "first":
        return Reply.error(529, retry_after=60)
    said: list[Any] = [thinking(f"{model} thinks in turn {turn}"), text(f"turn {turn}")]
    return Reply(content=[*said, tool_use("look", {})] if turn < 4 else said, usage={"input_tokens": 100 * turn})


def settings_of(kafka: str, namespace: str) -> Any:
    return replace(settings_for(kafka, namespace), prices=PRICES)


async def made_in(kafka: str, namespace: str, run_id: str) -> list[Made]:
    broker = KafkaBroker(settings_for(kafka, namespace).kafka)
    async with RunLog.opened(broker, Namespace(namespace), run_id, "begin") as log:
        await log.catch_up()
        return log.made


async def test_a_run_goes_on_by_its_other_model_and_back(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_of(kafka, namespace), models=("first", "second")) as running:
        response = await running.ask("careful", "hi", run_id="r")
        requests, metered = running.model.requests, running.model.metered
        made = await made_in(kafka, namespace, "r")
    assert (response.status, response.output, response.turns) == ("completed", "turn 4", 4)
    asked = [(request["model"], turn_of(request)) for request in requests]
    assert asked[:3] == [("first", 1), ("first", 2), ("second", 2)]
    for request in requests:
        thoughts = [
            block["thinking"].split()[0]
            for message in request["messages"][1::2] for block in message["content"] if block["type"] == "thinking"
        ]  # fmt: skip
        assert set(thoughts) <= {request["model"]}
    assert [(each.turn, each.model, each.failure) for each in made][:3] == [
        (1, "first", None), (2, "first", "overload"), (2, "second", None),
    ]  # fmt: skip
    total, discarded = response.usage, response.usage.discarded
    assert sum(each.input_tokens for each in metered) == total.input_tokens + discarded.input_tokens
    assert sum(each.output_tokens for each in metered) == total.output_tokens + discarded.output_tokens
    costs = {name: sum(e.input_tokens + e.output_tokens for e in metered if e.model == name) for name in PRICES}
    assert total.cost_usd is not None
    assert round(total.cost_usd, 9) == round((10 * costs["first"] + costs["second"]) / 1e6, 9)


async def test_a_deadline_that_comes_while_the_model_speaks_says_what_was_paid(kafka: str, namespace: str) -> None:
    async with fleet(app, script, settings_of(kafka, namespace), models=("first", "second")) as running:
        response = await running.ask("careful", "for ever", run_id="r", deadline=1.5)
        metered = running.model.metered
        made = await made_in(kafka, namespace, "r")
    assert response.status == "expired"
    assert response.usage.discarded.input_tokens == sum(each.input_tokens for each in metered) > 0
    assert response.usage.discarded.output_tokens == sum(each.output_tokens for each in metered) == 1
    assert [(each.failure, each.is_counted) for each in made] == [("ended", True)]


async def test_what_a_worker_that_stops_had_used_counts(kafka: str, namespace: str) -> None:
    """Its drain is over before the model is; the next worker makes the call again."""
    asked: list[int] = []

    def moody(request: dict[str, Any]) -> Answer:
        asked.append(1)
        return Reply(content=["a long story " * 20], hang_after=4) if len(asked) == 1 else Reply(content=["Done."])

    settings = settings_of(kafka, namespace)
    settings = replace(settings, worker=replace(settings.worker, drain_s=0.5))
    async with fleet(app, moody, settings, models=("first", "second")) as running:
        asking = asyncio.create_task(running.ask("careful", "hi", run_id="r"))
        await until(lambda: any(each.output_tokens for each in running.model.metered))
        (worker, *_) = running.running
        assert await running.stop(worker) == 1
        await running.add_agent()
        response = await asking
        metered = running.model.metered
    assert (response.status, response.output) == ("completed", "Done.")
    assert response.usage.discarded.output_tokens == 1
    assert (
        sum(each.input_tokens for each in metered)
        == response.usage.input_tokens + response.usage.discarded.input_tokens
    )


async def test_what_a_cancelled_run_had_used_is_in_its_log(kafka: str, namespace: str) -> None:
    """Its answer does not wait for it."""
    async with fleet(app, script, settings_of(kafka, namespace), models=("first", "second")) as running:
        asking = asyncio.create_task(running.ask("careful", "for ever", run_id="r"))
        await until(lambda: any(each.output_tokens for each in running.model.metered))
        await running.client.cancel("r")
        response = await asking
        assert response.status == "cancelled"
        made = await until(lambda: made_in(kafka, namespace, "r"))
    assert [(each.failure, each.is_counted) for each in made] == [("ended", False)]
    assert made[0].usage is not None
    assert made[0].usage.output_tokens == 1
