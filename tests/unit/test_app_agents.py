"""Remote tools and agents are kept as declared, their files are found, and a mistake is told where it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch import App, DefinitionError
from anabranch.specs import AgentLimits


@pytest.fixture
def app() -> App:
    return App("Shop")


def score(report: str) -> float:
    """Score a report."""
    return float(len(report))


# --- remote tools ----------------------------------------------------------------------------------------


@pytest.fixture
def beside() -> Iterator[Callable[[str, str], str]]:
    """Writes a file beside this one, as a user's own files lie beside the app; it is gone after the test."""
    written: list[Path] = []

    def write(name: str, content: str) -> str:
        path = Path(__file__).with_name(name)
        written.append(path)
        path.write_text(content)
        return name

    yield write
    for path in written:
        path.unlink()


SCHEMA = {"type": "object", "description": "Pollen by city.", "properties": {"city": {"type": "string"}}}


def test_a_remote_tools_schema_is_read_beside_the_file_that_names_it(
    app: App, beside: Callable[[str, str], str]
) -> None:
    app.remote_tool("pollen", queue="go", schema=beside("_pollen_a.json", json.dumps(SCHEMA)), after=["weather"])
    assert app.remote_tools["pollen"].input_schema == SCHEMA
    assert app.remote_tools["pollen"].description == "Pollen by city."
    assert app.remote_tools["pollen"].after == ["weather"]


def test_a_schema_file_may_hold_the_description_beside_the_schema(app: App, beside: Callable[[str, str], str]) -> None:
    text = json.dumps({"description": "Pollen.", "input_schema": {"type": "object"}})
    app.remote_tool("pollen", queue="go", schema=beside("_pollen_b.json", text), serial_key=None)
    assert app.remote_tools["pollen"].description == "Pollen."


@pytest.mark.parametrize(
    ("schema", "options", "told"),
    [
        ("nowhere.json", {}, r"nowhere\.json cannot be read"),
        ({"type": "array"}, {}, "object"),
        (None, {}, "object"),
        ({"type": "object"}, {"description": 7}, "must be a text"),
        (SCHEMA, {"serial_key": "country"}, "none of \\['city'\\]"),
        (SCHEMA, {"timeout": 0}, "timeout"),
        (SCHEMA, {"after": ["pollen"]}, "circular"),
    ],
)
def test_a_wrong_remote_tool_is_refused(app: App, schema: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as caught:
        app.remote_tool("pollen", queue="go", schema=schema, **options)
    assert f"remote tool 'pollen' ({__file__}:" in str(caught.value)
    assert app.remote_tools == {}


def test_a_schema_file_that_is_no_json_is_refused(app: App, beside: Callable[[str, str], str]) -> None:
    with pytest.raises(DefinitionError, match="is not JSON"):
        app.remote_tool("pollen", queue="go", schema=beside("_pollen_c.json", "{"))


# --- agents ------------------------------------------------------------------------------------------------


def test_an_agent_keeps_what_it_declares(app: App) -> None:
    app.tool(name="rate")(score)
    agent = app.agent(
        "analyst", model="m-1", system="Be brief.", tools=["elsewhere", score], max_turns=5, deadline="10m",
        max_cost_usd=0.5, tool_choice="rate", parallel_tool_calls=False, thinking={"type": "adaptive"},
    )  # fmt: skip
    assert app.agents == {"analyst": agent}
    assert app.agent_specs() == [agent.spec]
    spec = agent.spec
    assert spec.tools == ["elsewhere", "rate"]
    assert spec.limits == AgentLimits(5, 600.0, 64, 0.5)
    assert (spec.system, spec.tool_choice, spec.parallel_tool_calls) == ("Be brief.", "rate", False)
    assert spec.options == {"thinking": {"type": "adaptive"}}


@pytest.mark.parametrize(("given", "kept"), [(True, "5m"), ("5m", "5m"), ("1h", "1h"), (False, "off")])
def test_an_agent_says_how_long_the_provider_keeps_its_prompts(app: App, given: Any, kept: str) -> None:
    assert app.agent("a", model="m", caching=given).spec.caching == kept


@pytest.mark.parametrize(
    ("model", "said", "window"),
    [("claude-haiku-4-5", None, 200_000), ("claude-haiku-4-5", 9000, 9000), ("m", None, None)],
)
def test_the_window_of_a_known_model_need_not_be_said(app: App, model: str, said: Any, window: Any) -> None:
    agent = app.agent("a", model=model, context="provider", context_window=said)
    assert (agent.spec.context, agent.spec.context_window) == ("provider", window)


def test_a_revision_depends_on_all_of_an_agent_and_on_nothing_else() -> None:
    def revision(**options: Any) -> str:
        return App("shop").agent("a", **{"model": "m", **options}).spec.revision

    assert len(revision()) == 16
    assert int(revision(), 16) >= 0
    assert revision() == revision()
    assert revision(thinking={"a": 1, "b": 2}) == revision(thinking={"b": 2, "a": 1})
    others = [revision(model="n"), revision(system="x"), revision(tools=["t"]), revision(max_turns=2)]
    assert len({revision(), *others}) == 5


def test_a_prompt_is_read_beside_the_file_that_names_it(app: App, beside: Callable[[str, str], str]) -> None:
    agent = app.agent("a", model="m", system=beside("_prompt.md", "# Be brief\n"))
    assert agent.spec.system == "# Be brief\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"system": "prompts/none.md"}, r"prompts/none\.md cannot be read.*relative to the file"),
        ({"system": None}, "system=None"),
        ({"model": " "}, "model"),
        ({"model": None}, "model=None must be the name of a model"),
        ({"model": "\ud800"}, "must be the name of a model"),
        ({"system": "half a \ud83d"}, "system holds half a character"),
        ({"tools": ["a", "a"]}, "names 'a' twice"),
        ({"tools": "a"}, r"tools=\['weather'\]"),
        ({"tools": ["a b"]}, "'a b'"),
        ({"tools": [print]}, "no tool of this App"),
        ({"tool_choice": "b", "tools": ["a"]}, r"tool_choice='b' is none of the agent's tools \['a'\]"),
        ({"tool_choice": "any"}, "has no tools"),
        ({"tool_choice": "auto", "tools": ["a"]}, "default"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"max_calls_per_turn": 0}, "max_calls_per_turn=0"),
        ({"max_tokens": "many"}, "max_tokens='many'"),
        ({"max_cost_usd": 0}, "max_cost_usd=0"),
        ({"caching": "2h"}, "caching='2h' must be True, False"),
        ({"context": "shrink"}, "context='shrink' must be one of 'fail', 'drop_tool_results', 'provider'"),
        ({"context_window": 0}, "context_window=0"),
        ({"context": "drop_tool_results"}, "needs context_window=, the tokens that 'm' holds"),
        ({"deadline": 0}, "deadline=0"),
        ({"parallel_hint": 1}, "parallel_hint=1"),
        ({"temperature": 0.5}, "'temperature' no longer exists"),
        ({"top_p": 1}, "'top_p' no longer exists"),
        ({"top_k": 1}, "'top_k' no longer exists"),
        ({"messages": []}, "'messages' is set by Anabranch"),
        ({"stream": True}, "'stream' is set by Anabranch"),
        ({"max_turn": 5}, "did you mean 'max_turns'"),
        ({"thinking": object()}, "values of JSON"),
        ({"top": {"share": float("nan")}}, "values of JSON"),
    ],
)
def test_a_wrong_agent_is_refused(app: App, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as caught:
        app.agent("analyst", **{"model": "m", **options})
    assert f"agent 'analyst' ({__file__}:" in str(caught.value)
    assert app.agents == {}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 129, "a\n"])
def test_an_agents_name_fits_the_wire(app: App, name: str) -> None:
    with pytest.raises(DefinitionError, match="agent name"):
        app.agent(name, model="m")


def test_two_agents_of_one_name_are_refused(app: App) -> None:
    app.agent("a", model="m")
    with pytest.raises(DefinitionError, match="already an agent"):
        app.agent("a", model="m")


# --- another model -----------------------------------------------------------------------------------------------


def test_an_agent_may_have_another_model_to_fall_back_on(app: App) -> None:
    agent = app.agent("a", model="m", fallback="n")
    assert agent.spec.models == ("m", "n")
    assert app.agent("b", model="m").spec.models == ("m",)


@pytest.mark.parametrize(("fallback", "says"), [("m", "own model"), ("", "the name of a model"), (7, "the name of")])
def test_what_cannot_be_another_model_is_refused(app: App, fallback: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        app.agent("a", model="m", fallback=fallback)
