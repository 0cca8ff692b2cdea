"""The plan of a batch: who is rejected and why, keys, deadlines, predecessors.

Responsible for: `agent/reply/plan.py`.
Must never: call a tool.
Called by: pytest.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import pytest
from tests.support import builders as b

from anabranch.agent.large import HEADER_BYTES
from anabranch.agent.reply.plan import BatchContext, plan, planned_alone, unfit
from anabranch.agent.reply.reply import RequestedCall
from anabranch.agent.reply.tokens import derived
from anabranch.bodies import dump
from anabranch.log_events import PlannedCall
from anabranch.specs import AgentLimits, ToolSpec

NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}


def planned(
    *asked: RequestedCall,
    tools: list[ToolSpec] | None = None,
    named: list[str] | None = None,
    parallel: bool = True,
    **fields: Any,
) -> tuple[PlannedCall, ...]:
    known = {spec.name: spec for spec in ([b.tool()] if tools is None else tools)}
    agent = b.agent(tools=list(known) if named is None else named, **fields)
    return plan(asked, BatchContext("r", 2, "att", agent, parallel, known.get))


ID = [f"r/2.{derived('att', index)}/{index}" for index in range(3)]


def call(name: str = "t", number: int = 0, **arguments: Any) -> RequestedCall:
    return RequestedCall(f"tu{number}", name, arguments)


def test_a_call_is_planned_with_all_that_depends_on_its_tool() -> None:
    spec = b.tool(queue="io", deadline_s=7.0, on_error="abort")
    assert planned(call(), tools=[spec]) == (
        PlannedCall(ID[0], "tu0", "t", "io", ID[0], "at_least_once", 7.0, "abort"),
    )


def test_an_attempt_is_planned_with_all_that_its_call_is() -> None:
    values = {field.name: object() for field in fields(BatchContext)}
    context, agent = BatchContext(**values), b.agent()  # type: ignore[arg-type]
    assert context.of_attempt("a1", agent) == replace(context, attempt="a1", agent=agent)


def test_a_call_id_gives_away_neither_the_attempt_nor_the_ids_of_other_calls() -> None:
    tokens = [entry.call_id.split("/")[1] for entry in planned(*(call(number=n) for n in range(5)))]
    assert len({*tokens}) == 5
    assert all(len(token) == len("2.") + 16 and "att" not in token for token in tokens)
    other = plan([call()], BatchContext("r", 2, "att2", b.agent(tools=["t"]), True, lambda name: b.tool()))
    assert other[0].call_id.split("/")[1] not in tokens
    assert derived("att", "stream") not in {token.removeprefix("2.") for token in tokens}


def test_a_call_is_planned_for_the_partition_that_its_limit_and_tenant_say() -> None:
    asked: list[tuple[str, str, str | None, bool]] = []

    def place(spec: ToolSpec, key: str, tenant: str | None, again: bool) -> int:
        asked.append((spec.name, key, tenant, again))
        return 7

    refused = RequestedCall("tu1", "t", {}, "not JSON")
    context = BatchContext("r", 2, "att", b.agent(tools=["t"]), True, lambda name: b.tool(), place, "acme")
    assert [entry.partition for entry in plan((call(), refused), context)] == [7, None]
    assert asked == [("t", ID[0], "acme", False)]


@pytest.mark.parametrize("early", [False, True])
def test_a_call_that_may_begin_early_is_planned_for_where_it_has_begun(early: bool) -> None:
    again: list[bool] = []

    def place(spec: ToolSpec, key: str, tenant: str | None, asked_again: bool) -> int:
        again.append(asked_again)
        return 7

    context = BatchContext("r", 2, "att", b.agent(tools=["t"], early_start=early), True, lambda name: b.tool(), place)
    plan([call()], context)
    planned_alone(0, call(), context)
    assert again == [early, early]


def test_the_plan_has_the_order_of_the_calls() -> None:
    assert [entry.tool_use_id for entry in planned(call(number=2), call(number=0), call(number=1))] == [
        "tu2",
        "tu0",
        "tu1",
    ]


def test_an_unknown_tool_is_told_which_tools_there_are() -> None:
    (entry,) = planned(call("nope"))
    assert entry.rejected == "there is no tool 'nope'; the tools are: t"
    assert entry.queue is None


def test_a_tool_of_another_agent_is_unknown() -> None:
    (entry,) = planned(call("u"), tools=[b.tool(), b.tool("u")], named=["t"])
    assert "there is no tool 'u'" in (entry.rejected or "")


def test_a_tool_that_nobody_has_registered_is_not_available() -> None:
    (entry,) = planned(call("u"), named=["t", "u"])
    assert "no worker has registered it" in (entry.rejected or "")


def test_a_name_of_any_length_gives_a_short_error() -> None:
    (entry,) = planned(call("x" * 100_000))
    assert len(entry.tool) == 128
    assert len(entry.rejected or "") < 2001


def test_arguments_that_do_not_fit_are_rejected_with_the_field() -> None:
    (entry,) = planned(call(n=-1), tools=[b.tool(input_schema=NUMBER)])
    assert (entry.rejected or "").startswith("invalid arguments for t: n: -1 is less than the minimum")


def test_an_integer_of_any_size_is_an_integer() -> None:
    assert unfit(b.tool(input_schema=NUMBER), {"n": 12345678901234567890123}) is None


def test_what_the_reply_refused_is_rejected_with_its_reason() -> None:
    (entry,) = planned(RequestedCall("tu0", "t", {}, "the arguments are not valid JSON"))
    assert entry.rejected == "invalid arguments for t: the arguments are not valid JSON"


def test_a_schema_that_is_none_is_told_and_not_raised() -> None:
    for schema in ({"type": 5}, {"pattern": "("}, {"$ref": "#/nope"}):
        assert "schema is not valid" in (unfit(b.tool(input_schema=schema), {}) or "")


def test_no_address_in_a_schema_is_fetched() -> None:
    assert "not fetched" in (unfit(b.tool(input_schema={"$ref": "http://127.0.0.1:9/x"}), {}) or "")


def test_a_tool_that_is_registered_anew_is_checked_by_its_new_schema() -> None:
    assert unfit(b.tool(input_schema=NUMBER), {"n": 1}) is None
    assert unfit(b.tool(input_schema={"type": "object", "required": ["m"]}), {"n": 1}) == '"m" is a required property'


def test_calls_beyond_the_agents_limit_are_rejected() -> None:
    entries = planned(call(number=0), call(number=1), call(number=2), limits=AgentLimits(max_calls_per_turn=2))
    assert [entry.rejected for entry in entries] == [
        None,
        None,
        "not run: a turn may make 2 calls, and this is number 3",
    ]


def test_however_many_calls_are_rejected_the_plan_still_fits_into_the_log() -> None:
    """Each with a text that quotes what the model said, at three bytes a character."""
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in "abcd"}}
    wrong = [call(number=number, **dict.fromkeys("abcd", "\u597d" * 5000)) for number in range(64)]
    found = planned(*wrong, tools=[b.tool(input_schema=schema)])
    assert len(dump(found)) < HEADER_BYTES
    assert all(len((entry.rejected or "").encode()) > 900 for entry in found)
    (alone,) = planned(wrong[0], tools=[b.tool(input_schema=schema)])
    assert 1990 < len((alone.rejected or "").encode()) <= 2000


def test_of_a_long_argument_the_model_is_told_what_is_wrong_with_it() -> None:
    refused = unfit(b.tool(input_schema=NUMBER), {"n": "x" * 5000})
    assert refused is not None
    assert refused.startswith('n: "xxx')
    assert refused.endswith('xxx" is not of type "integer"')
    assert len(refused) < 600


def test_of_a_long_list_that_is_all_wrong_one_mistake_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = b.tool(input_schema={"type": "object", "properties": {"n": {"items": {"type": "integer"}}}})
    assert unfit(spec, {"n": ["x"] * 990}) == "; ".join(f'n.{at}: "x" is not of type "integer"' for at in range(5))
    began = time.process_time()
    told = unfit(spec, {"n": ["x"] * 200_000})
    assert time.process_time() - began < 0.5, "the library takes two seconds to word them all"
    assert told is not None
    assert told.startswith('n.0: "x" is not of type "integer" (there may be more')
    assert "there may be more" in (unfit(spec, {"n": [{"deep": [{"er": list(range(2000))}]}]}) or "")
    assert "there may be more" not in (unfit(spec, {"n": ["x" * 1_000_000]}) or ""), "one long value is one"


def test_a_turn_that_may_not_be_parallel_makes_one_call() -> None:
    entries = planned(call(number=0), call(number=1), parallel=False)
    assert [entry.rejected for entry in entries] == [None, "not run: a turn may make 1 call, and this is number 2"]


def test_at_most_once_has_a_deadline_always() -> None:
    (entry,) = planned(call(), tools=[b.tool(delivery="at_most_once", timeout_s=5.0)])
    assert (entry.delivery, entry.deadline_s) == ("at_most_once", 65.0)


def test_a_serial_key_is_a_hash_of_the_argument() -> None:
    spec = b.tool(serial_key="k")
    one, same, other, none = planned(call(k=1, x=1), call(k=1, x=2), call(k="1"), call(), tools=[spec])
    assert one.key == same.key
    assert len({one.key, other.key, none.key}) == 3
    assert len(one.key or "") == 16


def test_what_a_tool_cannot_tell_apart_has_one_serial_key() -> None:
    spec = b.tool(serial_key="k", input_schema={"type": "object", "properties": {"k": {"default": 7}}})
    asked = call(k=7), call(k=7.0), call(), call(k=7.5), call(k={"a": [1], "b": 2}), call(k={"b": 2.0, "a": [1.0]})
    whole, fraction, left_out, other, nested, same = planned(*asked, tools=[spec])
    assert whole.key == fraction.key == left_out.key
    assert nested.key == same.key
    assert len({whole.key, other.key, nested.key}) == 3


def test_calls_wait_for_the_tools_that_theirs_comes_after() -> None:
    entries = planned(call("u"), call("t"), call("t"), tools=[b.tool(), b.tool("u", after=["t", "v"])])
    assert [entry.after for entry in entries] == [[ID[1], ID[2]], [], []]


def test_a_rejected_call_waits_for_nobody_and_is_waited_for() -> None:
    specs = [b.tool(input_schema=NUMBER), b.tool("u", after=["t"])]
    entries = planned(call("t"), call("u"), tools=specs)
    assert entries[0].rejected
    assert entries[1].after == [ID[0]]


def test_of_hundreds_of_calls_that_wait_for_hundreds_those_are_rejected_that_no_plan_could_hold() -> None:
    tools = [b.tool(name="first"), b.tool(name="second", after=["first"])]
    asked = [call(name, number) for number, name in enumerate(["first"] * 100 + ["second"] * 100)]
    found = planned(*asked, tools=tools, limits=AgentLimits(20, 60.0, 200))
    assert len(dump(found)) < HEADER_BYTES
    assert [entry.rejected for entry in found[:101]] == [None] * 101
    assert len(found[100].after) == 100
    assert "call it in the next" in (found[-1].rejected or "")
    assert found[-1].after == []


def test_calls_that_wait_in_a_circle_are_rejected_with_those_behind_them() -> None:
    specs = [b.tool("a", after=["b"]), b.tool("b", after=["a"]), b.tool("c", after=["a"]), b.tool("d")]
    entries = planned(call("a"), call("b"), call("c"), call("d"), tools=specs)
    assert ["circle" in (entry.rejected or "") for entry in entries] == [True, True, True, False]
    assert all(not entry.after for entry in entries)
