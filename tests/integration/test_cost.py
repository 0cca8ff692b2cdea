"""What a run costs, on a real Kafka: it stays below its limit, and the provider's cache is read in each turn.

Responsible for: `max_cost_usd`, usage and cost of answers, prompt caching and the context's policies, against a model
that counts, keeps prompts and has a window as the real one has.
Must never: test an estimate (test_fitting) or a breakpoint (test_caching) by itself.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fleet import by_turn, fleet, settings_for

from anabranch import App
from anabranch.cli import anabranch, frame
from anabranch.prices import Price, usage_of
from anabranch.testing import Answer, Reply, text, thinking, tool_use, turn_of

app = App("cost")
LONG = "a long prompt that is the same for all runs of the agent " * 100


@app.tool(queue="io")
async def look(place: int) -> str:
    """Looks at a place."""
    return f"place {place} is quiet, " * 40


app.agent("analyst", model="scripted", tools=["look"], system=LONG)
app.agent("thrifty", model="scripted", tools=["look"], max_cost_usd=1.0)
PRICES = {"scripted": Price(input=100, output=1000)}


def look_at(*places: int) -> list[Any]:
    return [tool_use("look", {"place": place}) for place in places]


async def test_a_run_stops_before_the_turn_that_would_exceed_its_money(kafka: str, namespace: str) -> None:
    """A turn costs 0.15, and must leave some for the next prompt and a short reply."""
    settings = replace(settings_for(kafka, namespace), prices=PRICES)
    usage = {"input_tokens": 500, "output_tokens": 100}
    async with fleet(app, lambda _: Reply(content=look_at(1), usage=usage), settings) as running:
        response = await running.ask("thrifty")
        assert running.model.calls == response.turns, "no call was made in vain"
    assert response.error is not None
    assert response.error.code == "budget_exceeded"
    assert response.turns >= 3
    assert response.usage.cost_usd == pytest.approx(0.15 * response.turns)
    assert response.usage.cost_usd is not None
    assert response.usage.cost_usd <= 1.0


async def test_a_reply_that_the_money_cuts_ends_the_run_and_is_kept(kafka: str, namespace: str) -> None:
    settings = replace(settings_for(kafka, namespace), prices=PRICES)

    def script(request: dict[str, Any]) -> Answer:
        cut = request["max_tokens"]
        return Reply(content=[text("So the")], stop_reason="max_tokens", usage={"output_tokens": cut})

    async with fleet(app, script, settings) as running:
        response = await running.ask("thrifty", max_cost_usd=0.5)
        asked_for = running.request["max_tokens"]
    assert response.error is not None
    assert (response.error.code, response.stop_reason) == ("budget_exceeded", "max_tokens")
    assert 256 <= asked_for < 500
    assert response.content == [text("So the")]
    assert response.usage.cost_usd is not None
    assert 0.25 < response.usage.cost_usd <= 0.5


async def test_a_cost_that_nobody_knows_is_null(kafka: str, namespace: str) -> None:
    async with fleet(app, lambda _: "Done.", settings_for(kafka, namespace)) as running:
        response = await running.ask("analyst")
    assert response.status == "completed"
    assert response.usage.cost_usd is None


@pytest.mark.parametrize("width", [1, 10, 30])
async def test_the_cache_is_read_in_each_turn_however_wide(kafka: str, namespace: str, width: int) -> None:
    """Usage is what the server counted, and adds up; all but what is new comes from the cache."""
    settings = replace(settings_for(kafka, namespace), prices=PRICES)
    turns = [look_at(*range(turn * width, (turn + 1) * width)) for turn in range(3)]
    async with fleet(app, by_turn(*turns, "Done."), settings) as running:
        response = await running.ask("analyst", input=LONG)
        sizes = [len(str(request)) for request in running.model.requests]
    used = response.usage
    assert (response.status, response.turns, response.calls.widest) == ("completed", 4, width)
    assert used.input_tokens < 0.1 * sum(sizes) / 4, "hardly anything is read at full price"
    assert used.cache_read_input_tokens > 0.9 * sum(sizes[:-1]) / 4 * 0.8
    assert used.cache_creation_input_tokens < 1.1 * sizes[-1] / 4, "nothing is written twice"
    counts = {name: getattr(used, name) for name in COUNTED}
    assert used.cost_usd == pytest.approx(usage_of(counts, PRICES["scripted"]).cost_usd)


COUNTED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


# --- context --------------------------------------------------------------------------------------------------

WINDOW = 4000
for choice in ("fail", "drop_tool_results", "provider"):
    app.agent(choice, model="scripted", tools=["look"], context=choice, context_window=WINDOW)
TURNS = 12


def looks_on(request: dict[str, Any]) -> Answer:
    """A thought and two calls a turn, whose results fill the window in six or so."""
    turn = turn_of(request)
    return [thinking(f"hm {turn}"), *look_at(turn, turn + 100)] if turn <= TURNS else "Done."


async def test_old_results_give_way_and_the_run_goes_on(kafka: str, namespace: str) -> None:
    """The model refuses what is longer than its window, and thoughts behind what was changed: neither happens."""
    settings = settings_for(kafka, namespace)
    async with fleet(app, looks_on, settings, windows={"scripted": WINDOW}, binds_thinking=True) as running:
        response = await running.ask("drop_tool_results")
        sent = json.dumps(running.request)
    assert (response.status, response.turns, response.calls.total) == ("completed", TURNS + 1, 2 * TURNS)
    assert "[the result of look, about" in sent


async def test_a_run_ends_before_a_call_that_must_fail(kafka: str, namespace: str) -> None:
    settings = settings_for(kafka, namespace)
    usage = {"input_tokens": WINDOW + 1}
    async with fleet(app, lambda _: Reply(content=look_at(1), usage=usage), settings) as running:
        response = await running.ask("fail")
        assert running.model.calls == 1
    assert response.error is not None
    assert response.error.code == "context_exceeded"
    assert "the context of scripted holds 4,000" in response.error.message


async def test_the_provider_is_asked_to_edit_with_the_header_of_its_beta(kafka: str, namespace: str) -> None:
    """The scripted model refuses the field without it."""
    async with fleet(app, by_turn(look_at(1, 2), "Done."), settings_for(kafka, namespace)) as running:
        response = await running.ask("provider")
        assert running.request["context_management"]["edits"][0]["type"] == "clear_tool_uses_20250919"
    assert response.status == "completed"


# --- commands -------------------------------------------------------------------------------------------------


async def test_usage_is_told_by_agent_tenant_model_and_turn(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANABRANCH_BOOTSTRAP", kafka)
    monkeypatch.setenv("ANABRANCH_NAMESPACE", namespace)

    async def told(*arguments: str) -> Any:
        assert await asyncio.to_thread(frame.invoke, anabranch, [*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    settings = replace(settings_for(kafka, namespace), prices=PRICES)
    usage = {"input_tokens": 100, "output_tokens": 10}
    script = by_turn(Reply(content=look_at(1), usage=usage), Reply(content=["Done."], usage=usage))
    async with fleet(app, script, settings) as running:
        one = await running.ask("analyst", tenant="acme")
        answers = [one, await running.ask("analyst", tenant="globex"), await running.ask("fail")]
    by_agent, by_tenant = await told("usage"), await told("usage", "--by", "tenant", "--since", "1h")
    assert [(row["agent"], row["runs"], row["replies"]) for row in by_agent] == [("analyst", 2, 4), ("fail", 1, 2)]
    assert {row["tenant"]: row["input_tokens"] for row in by_tenant} == {"acme": 200, "globex": 200, "(none)": 200}
    (row,) = await told("usage", "--by", "model")
    assert (row["model"], row["cost_usd"]) == (
        "scripted",
        pytest.approx(sum(each.usage.cost_usd or 0 for each in answers)),
    )
    shown = await told("runs", "show", one.run_id)
    assert [(turn["name"], turn["input_tokens"]) for turn in shown["usage_by_turn"]] == [
        ("turn 1", 100),
        ("turn 2", 100),
    ]
    assert await asyncio.to_thread(frame.invoke, anabranch, ["usage"]) == 0
    out = capsys.readouterr().out
    assert f"${by_agent[0]['cost_usd']:.4f}" in out
    assert await asyncio.to_thread(frame.invoke, anabranch, ["runs", "show", one.run_id]) == 0
    assert "turn 2" in capsys.readouterr().out
