"""Who may call a tool, and the container that code runs in: what is declared, and what a request then says.

Responsible for: `callers.py` and `agent/prompt/programmatic.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import App, DefinitionError
from anabranch import log_events as e
from anabranch.agent import snapshot
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import HINT, Offer
from anabranch.agent.prompt.programmatic import check_request, container_of
from anabranch.agent.reply.referring import sealed_reply
from anabranch.agent.state import Run
from anabranch.errors import InvalidRequest
from anabranch.specs import ToolSpec

CODE = "code_execution_20260120"
SERVER_TOOL = {"type": CODE, "name": "code_execution"}
BY_CODE = {"type": CODE, "tool_id": "srvtoolu_1"}


def app_with(**tool: Any) -> App:
    app = App("callers")

    @app.tool(**tool)
    def sales(region: str) -> str:
        """Sales."""
        return region

    return app


def mistake(declare: Callable[[], object]) -> str:
    with pytest.raises(DefinitionError) as caught:
        declare()
    return str(caught.value)


# --- declarations ----------------------------------------------------------------------------------------


def test_server_tools_and_callers_are_told_to_the_fleet() -> None:
    app = app_with(allowed_callers=["direct", CODE])
    app.remote_tool("pollen", queue="go", schema={"type": "object"}, allowed_callers=(CODE,))
    agent = app.agent("a", model="m", tools=["sales", "pollen"], server_tools=[SERVER_TOOL])
    app.check()
    assert agent.spec.server_tools == [SERVER_TOOL]
    assert [spec.allowed_callers for spec in app.tool_specs()] == [["direct", CODE], [CODE]]


def test_server_tools_are_part_of_what_an_agent_is() -> None:
    plain, coding = (App("x").agent("a", model="m", server_tools=tools) for tools in ([], [SERVER_TOOL]))
    assert plain.spec.revision != coding.spec.revision


@pytest.mark.parametrize("callers", ["direct", CODE, ["code"], ["code_execution"], [5], [CODE, CODE], 7])
def test_callers_that_the_provider_does_not_know_are_refused(callers: Any) -> None:
    assert "allowed_callers" in mistake(lambda: app_with(allowed_callers=callers))


NO_SERVER_TOOLS: list[Any] = [
    SERVER_TOOL,
    "code_execution",
    [{"name": "code_execution"}],
    ["code_execution"],
    [SERVER_TOOL, SERVER_TOOL],
    [{"type": "custom", "name": "x"}],
    [{"type": "x", "name": "x", "input_schema": {}}],
    [{"type": "memory_20250818", "name": "memory"}],
    [{"type": "bash_20250124", "name": "bash"}],
    [{"type": CODE, "name": "sales"}],
    [{"type": CODE, "name": {1, 2}}],
]


@pytest.mark.parametrize("tools", NO_SERVER_TOOLS)
def test_what_is_no_tool_of_the_providers_is_refused(tools: Any) -> None:
    app = app_with()
    mistake(lambda: app.agent("a", model="m", tools=["sales"], server_tools=tools))
    assert app.agents == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "add server_tools"),
        ({"server_tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "add server_tools"),
        ({"server_tools": [SERVER_TOOL], "tool_choice": "sales"}, "only code may call"),
        ({"server_tools": [SERVER_TOOL], "parallel_tool_calls": False}, "one call a turn"),
    ],
)
def test_what_the_provider_refuses_of_calls_from_code_is_refused_at_once(fields: Any, reason: str) -> None:
    app = app_with(allowed_callers=[CODE])
    assert reason in mistake(lambda: app.agent("a", model="m", tools=["sales"], **fields))


def test_a_tool_that_is_declared_behind_its_agent_is_looked_at_when_all_is_there() -> None:
    app = App("callers")
    app.agent("a", model="m", tools=["late"])

    @app.tool(allowed_callers=[CODE])
    def late() -> None:
        """Late."""

    found = mistake(app.check)
    assert "agent 'a'" in found
    assert "test_callers.py" in found


def test_a_tool_that_may_be_called_directly_too_can_be_forced_and_used_without_code() -> None:
    app = app_with(allowed_callers=["direct", CODE])
    app.agent("forced", model="m", tools=["sales"], server_tools=[SERVER_TOOL], tool_choice="sales")
    app.agent("plain", model="m", tools=["sales"], parallel_tool_calls=False)
    app.check()


@pytest.mark.parametrize("betas", ["x", [5], ["a b"], ["a,b"], [""], {"x": 1}])
def test_betas_are_names(betas: Any) -> None:
    assert "betas" in mistake(lambda: App("x").agent("a", model="m", betas=betas))


def test_a_run_cannot_ask_for_one_call_a_turn_where_code_may_call() -> None:
    agent, called = b.agent(server_tools=[SERVER_TOOL]), b.tool(allowed_callers=[CODE])
    with pytest.raises(InvalidRequest, match="parallel_tool_calls: is false"):
        check_request(b.request(parallel_tool_calls=False), agent, lambda name: called)
    with pytest.raises(InvalidRequest, match="parallel_tool_calls"):
        check_request(b.request(), b.agent(server_tools=[SERVER_TOOL], parallel_tool_calls=False), lambda name: called)
    check_request(b.request(parallel_tool_calls=True), agent, lambda name: called)
    check_request(b.request(parallel_tool_calls=False), b.agent(), lambda name: called)
    check_request(b.request(parallel_tool_calls=False), agent, lambda name: None)


# --- requests ----------------------------------------------------------------------------------------------


def body_of(run: Run, *tools: ToolSpec, **fields: Any) -> Any:
    agent = b.agent(**{"server_tools": [SERVER_TOOL], **fields})
    return orjson.loads(request_body(run, Offer(agent, list(tools) or [b.tool(allowed_callers=[CODE])])))


def asked_by_code(turn: int = 1, container: Any = None, *blocks: Any) -> e.ModelReplied:
    use = {**b.tool_use(f"tu{turn}0"), "caller": BY_CODE}
    body = b.message([*blocks, use], "tool_use", container=container)
    return b.calls(turn=turn, body=body)


def test_the_providers_tools_are_offered_beside_ours() -> None:
    body = body_of(b.run_after(), b.tool("x", allowed_callers=[CODE]), b.tool("y", allowed_callers=["direct", CODE]))
    assert body["tools"][0] == SERVER_TOOL
    assert [tool.get("allowed_callers") for tool in body["tools"][1:]] == [[CODE], ["direct", CODE]]
    assert body_of(b.run_after(), server_tools=[SERVER_TOOL], tools=[])["tools"][0] == SERVER_TOOL


def test_an_agent_offers_a_tool_to_the_callers_that_it_has() -> None:
    both, code = b.tool("both", allowed_callers=["direct", CODE]), b.tool("code", allowed_callers=[CODE])
    (offered,) = body_of(b.run_after(), both, code, server_tools=[])["tools"]
    assert offered == {"name": "both", "description": "d", "input_schema": {"type": "object"}}


def test_parallel_calls_are_asked_for_only_of_tools_that_are_called_directly() -> None:
    assert HINT not in str(body_of(b.run_after()))
    assert HINT in str(body_of(b.run_after(), b.tool()))


def test_a_tool_that_code_alone_may_call_is_not_forced() -> None:
    assert "tool_choice" not in body_of(b.run_after(), tool_choice="t")
    assert body_of(b.run_after(), b.tool(), tool_choice="t")["tool_choice"] == {"type": "tool", "name": "t"}


def test_no_breakpoint_is_set_on_a_result_for_code() -> None:
    run = b.run_after(asked_by_code(), b.returned())
    assert "cache_control" not in body_of(run)["messages"][-1]["content"][0]
    mixed = b.message([{**b.tool_use("tu10"), "caller": {"type": "direct"}}, {**b.tool_use("tu11"), "caller": BY_CODE}])
    run = b.run_after(b.calls(b.planned(0), b.planned(1), body=mixed), b.returned(0), b.returned(1))
    first, second = body_of(run)["messages"][-1]["content"]
    assert "cache_control" in first
    assert "cache_control" not in second
    directly = b.run_after(b.calls(), b.returned(), asked_by_code(2), b.returned(turn=2))
    marks = ["cache_control" in message["content"][-1] for message in body_of(directly)["messages"][2::2]]
    assert marks == [True, False], "the breakpoint is where there can be one"


def test_breakpoints_on_the_providers_tools_count_and_the_agent_stays_what_it_is() -> None:
    marked = {**SERVER_TOOL, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    others = [{**marked, "name": f"x{number}"} for number in range(4)]
    agent = b.agent(tools=[], server_tools=[SERVER_TOOL])
    run = b.run_after(b.calls(), b.returned())
    assert orjson.loads(request_body(run, Offer(agent, [])))["tools"][0].get("cache_control")
    assert agent.server_tools == [SERVER_TOOL]
    assert request_body(run, Offer(b.agent(server_tools=others), [b.tool()])).count(b"cache_control") == 4


GOOD = {"id": "c1", "expires_at": "2999-01-01T00:00:00Z"}
GONE = {"id": "c1", "expires_at": "1969-01-01T00:00:00Z"}  # the runs of these tests are of 1970


def test_the_last_container_goes_on_into_every_later_request() -> None:
    assert "container" not in body_of(b.run_after())
    first = (asked_by_code(1, GOOD), b.returned())
    assert body_of(b.run_after(*first))["container"] == "c1"
    silent = (*first, asked_by_code(2), b.returned(turn=2))
    assert body_of(b.run_after(*silent))["container"] == "c1"
    another = (*silent, asked_by_code(3, {**GOOD, "id": "c2"}), b.returned(turn=3))
    assert body_of(b.run_after(*another))["container"] == "c2"


def test_the_container_outlives_a_snapshot_and_a_reply_that_lies_in_the_store() -> None:
    run = b.run_after(asked_by_code(1, GOOD), b.returned(), asked_by_code(2), b.returned(turn=2))
    parts = snapshot.write(run, 4096)
    last = e.RunSnapshot("r", "0", 0, 0, len(parts), len(parts), "w1", b"")
    assert body_of(snapshot.read(last, parts)) == body_of(run)


def test_the_container_of_a_sealed_reply_is_known_and_no_more_of_it() -> None:
    whole = b.message([b.text("secret")], "tool_use", container={**GOOD, "skills": ["secret"]})
    sealed = sealed_reply(whole, "k;x", {})
    assert b"secret" not in sealed
    run = b.run_after(b.calls(body=sealed), b.returned())
    assert container_of(run, None, list) == "c1"


def test_what_the_agents_options_say_of_the_container_is_kept() -> None:
    skills = {"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}
    options = {"container": skills}
    assert body_of(b.run_after(), options=options)["container"] == skills
    run = b.run_after(asked_by_code(1, GOOD), b.returned())
    assert body_of(run, options=options)["container"] == {**skills, "id": "c1"}
    assert body_of(run, options={"container": "mine"})["container"] == "c1"


def test_an_expired_container_is_left_out_unless_code_waits_in_it() -> None:
    source = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {}}
    done = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {}}
    by_model = b.tool_use("tu10")

    def container_after(*blocks: Any) -> Any:
        body = b.message(blocks, "tool_use", container=GONE)
        return body_of(b.run_after(b.calls(body=body), b.returned())).get("container")

    assert container_after(source, {**by_model, "caller": BY_CODE}) == "c1"
    assert container_after({**by_model, "caller": BY_CODE}) == "c1"
    assert container_after(source, by_model) == "c1", "the code has not run yet"
    assert container_after(source, done, {**by_model, "caller": {"type": "direct"}}) is None


@pytest.mark.parametrize("container", ["c1", 5, [], {}, {"id": 5}, {"expires_at": "x"}, None])
def test_a_container_that_is_none_is_passed_over(container: Any) -> None:
    assert "container" not in body_of(b.run_after(asked_by_code(1, container), b.returned()))


@pytest.mark.parametrize("when", ["soon", None, 5])
def test_a_container_that_does_not_say_when_it_expires_is_used(when: Any) -> None:
    found = {"id": "c1", "expires_at": when}
    assert body_of(b.run_after(asked_by_code(1, found), b.returned()))["container"] == "c1"


def test_betas_come_first_and_once() -> None:
    run, options = b.run_after(), {"mcp_servers": [], "betas": ["x-2025-01-01", "y"]}
    assert request_body(run, Offer(b.agent(options=options), [])).startswith(
        b'{"betas":["x-2025-01-01","y"],"max_tokens"'
    )
    assert b"betas" not in request_body(run, Offer(b.agent(options={"betas": []}), []))
