"""The scripted model's rules for calls that code makes: results alone, no breakpoint on them, and their container.

Responsible for: `testing/containers.py`, and what `conversation` and `declarations` ask of such calls.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_testing_rules import HELLO, assistant, call, refusal_of, request, result, said, tool, user

from anabranch.testing import code_execution, code_result, tool_use
from anabranch.testing.containers import LIFE_S, Containers
from anabranch.testing.refusal import Refused
from anabranch.testing.rules import check_message

CODE = "code_execution_20260120"
SERVER_TOOL = {"type": CODE, "name": "code_execution"}
BY_CODE = {"caller": {"type": CODE, "tool_id": "s1"}}
ASKED = assistant(code_execution("x", "s1"), call("a", **BY_CODE), call("b", **BY_CODE))
MARK = {"cache_control": {"type": "ephemeral"}}
NOW = 1000.0


def callable_by(*callers: str, **more: Any) -> dict[str, Any]:
    return {**tool(), "allowed_callers": list(callers), **more}


@pytest.mark.parametrize(
    "body",
    [
        request(HELLO, ASKED, user(result("a"), result("b"))),
        request(HELLO, ASKED, user(result("a"), result("b")), assistant(code_result("s1", "x"), said("so")), HELLO),
        request(tools=[SERVER_TOOL, callable_by("direct", CODE)], tool_choice={"type": "tool", "name": "look"}),
        request(tools=[callable_by("direct", strict=True)],
                tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
    ],
)  # fmt: skip
def test_calls_from_code_as_the_api_wants_them_are_accepted(body: dict[str, Any]) -> None:
    check_message(body, ("scripted",))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (request(HELLO, ASKED, user(result("a"), result("b"), said("go"))), "only `tool_result` blocks may answer"),
        (request(HELLO, ASKED, user(result("a"), result("b", **MARK))), "content.1.cache_control: may not be set"),
        (request(HELLO, ASKED, user(result("a"))), "without `tool_result` blocks"),
        (request(tools=[callable_by(CODE)]), "none of the tools of the request"),
        (request(tools=[callable_by("code")]), "Input should be 'direct' or"),
        (request(tools=[callable_by()]), "a list that is not empty"),
        (request(tools=[SERVER_TOOL, callable_by(CODE, strict=True)]), "strict: is not supported"),
        (request(tools=[SERVER_TOOL, callable_by("direct", CODE)],
                 tool_choice={"type": "any", "disable_parallel_tool_use": True}), "disable_parallel_tool_use"),
        (request(tools=[SERVER_TOOL, callable_by(CODE)], tool_choice={"type": "tool", "name": "look"}),
         "cannot be forced"),
    ],
)  # fmt: skip
def test_what_the_api_refuses_of_calls_from_code_is_refused(body: dict[str, Any], reason: str) -> None:
    assert reason in refusal_of(body)


def refused(containers: Containers, body: dict[str, Any], now: float = NOW) -> str:
    with pytest.raises(Refused) as caught:
        containers.check(body, now)
    assert caught.value.status == 400
    return str(caught.value)


def test_results_for_code_need_the_container_that_it_waits_in() -> None:
    answered = request(HELLO, ASKED, user(result("a"), result("b")))
    assert "container_id is required" in refused(Containers(), answered)
    Containers().check({**answered, "container": "c1"}, NOW)
    Containers().check({**answered, "container": {"id": "c1", "skills": []}}, NOW)
    Containers().check(request(HELLO, assistant(call("a")), user(result("a"))), NOW)


def test_a_reply_with_code_names_a_container_that_lives_for_a_while_and_stays_the_same() -> None:
    containers = Containers()
    assert containers.of(None, [said("x"), call("a")], request(), NOW) is None
    made = containers.of(None, [code_execution("x", "s1")], request(), NOW)
    body = request(container=made["id"])
    containers.check(body, NOW + LIFE_S - 1)
    assert "has expired" in refused(containers, body, NOW + LIFE_S)
    again = containers.of(None, [tool_use("look", {}, code="s1")], body, NOW + 200)
    assert again["id"] == made["id"]
    containers.check(body, NOW + LIFE_S)


def test_a_script_may_say_which_container_it_is_and_when_it_expires() -> None:
    containers = Containers()
    given = {"id": "mine", "expires_at": "1970-01-01T00:00:10+00:00"}
    assert containers.of(given, [], request(), NOW) == given
    assert "'mine' has expired" in refused(containers, request(container="mine"))


def test_a_container_of_another_server_is_let_through() -> None:
    Containers().check(request(container="somebody's"), NOW)


def test_only_so_many_containers_are_remembered() -> None:
    containers = Containers(keep=1)
    first = {"id": "a", "expires_at": "1970-01-01T00:00:10+00:00"}
    containers.of(first, [], request(), NOW)
    containers.of({**first, "id": "b"}, [], request(), NOW)
    containers.check(request(container="a"), NOW)
    assert "'b' has expired" in refused(containers, request(container="b"))
