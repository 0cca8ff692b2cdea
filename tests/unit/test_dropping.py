"""An agent that leaves out old results goes on beyond its model's context, and everybody leaves out the same.

Responsible for: `agent/prompt/dropping.py`, what a request says instead, and the provider's own editing.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import snapshot
from anabranch.agent.large import needed, sealed_in
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.dropping import FULL, dropped
from anabranch.agent.prompt.fitting import Fitting
from anabranch.agent.prompt.offer import Offer, Offers
from anabranch.agent.state import Run
from anabranch.references import name_of
from anabranch.registry import Registry
from anabranch.testing import thinking
from anabranch.testing.refusal import Refused
from anabranch.testing.rules import check_message
from anabranch.testing.signatures import Signatures

WINDOW = 20_000
EDITING = "context-management-2025-06-27"
RESULT = "a result " * 800  # about 2,000 tokens
DROPS = b.agent(context="drop_tool_results", context_window=WINDOW)
STORED = orjson.dumps(RESULT)
FOUND = {name_of(STORED): STORED}


@cache
def history(turns: int, body: bytes | None = None) -> tuple[e.Event, ...]:
    """Turns of one call with a thought before it. Usage is what a provider would count of what an agent that leaves
    out old results is sent.
    """
    if not turns:
        return ()
    events = history(turns - 1, body)
    prompt = request_body(b.run_after(*events), Offer(DROPS, [b.tool()]), FOUND)
    usage = m.Usage(len(prompt) * 2 // 7, 50)
    content = [thinking(f"hm {turns}"), b.text("I look"), b.tool_use(f"tu{turns}0")]
    reply = b.calls(b.planned(0, turns), turn=turns, body=b.message(content, "tool_use"), usage=usage)
    return (*events, reply, b.returned(0, turn=turns, body=body or b.result(RESULT)))


def after(turns: int, body: bytes | None = None) -> Run:
    return b.run_after(*history(turns, body))


def asked(run: Run, agent: Any = DROPS) -> Any:
    body = orjson.loads(request_body(run, Offer(agent, [b.tool()])))
    check_message({name: value for name, value in body.items() if name != "betas"}, ["m"])  # which go into a header
    return body


def results_in(body: Any) -> list[str]:
    return [message["content"][0]["content"] for message in body["messages"][2::2]]


def steps(turns: int) -> list[int]:
    """How many results each request of a run leaves out."""
    return [dropped(after(number), DROPS).results for number in range(turns + 1)]


# --- what is left out -----------------------------------------------------------------------------------------


def test_nothing_is_left_out_while_it_fits() -> None:
    assert results_in(asked(after(5))) == [RESULT] * 5
    assert dropped(after(5), DROPS) == (0, 0, False)


def test_old_results_give_way_visibly_and_the_last_ones_never() -> None:
    said = results_in(asked(after(8)))
    assert said[0] == "[the result of t, about 7,214 bytes, was dropped to make room in the context]"
    assert said[-1] == RESULT
    assert len(orjson.dumps(asked(after(8)))) / 3.5 < FULL * WINDOW


def test_they_give_way_in_big_steps() -> None:
    """Each step makes the provider read everything anew."""
    taken = steps(14)
    assert taken == sorted(taken), "what is left out stays left out"
    assert len(set(taken)) <= 4
    assert taken[-1] >= 8


def test_a_failure_stays_one() -> None:
    events = list(history(8))
    events[1] = b.returned(0, "error", body=b.result(RESULT))
    body = asked(b.run_after(*events))
    assert body["messages"][2]["content"][0]["is_error"]
    assert "dropped" in results_in(body)[0]


def test_small_results_stay() -> None:
    events = list(history(8))
    events[1] = b.returned(0, body=b.result("yes"))
    assert results_in(asked(b.run_after(*events)))[:2] == ["yes", results_in(asked(after(8)))[1]]


def test_whoever_takes_over_sends_the_same_bytes() -> None:
    """From the events, or from a snapshot of them: it follows from the fold alone."""
    told, run = Registry(), after(9)
    told.add([b.tool()], [DROPS])
    parts = snapshot.write(run)
    again = snapshot.read(e.RunSnapshot(run.run_id, run.life, 0, 0, len(parts), len(parts), "w1", b""), parts)
    sent = to_request(run, Offers(told)).body
    assert b"was dropped" in sent
    assert to_request(again, Offers(told)).body == to_request(after(9), Offers(told)).body == sent


def test_what_is_left_out_need_not_be_fetched() -> None:
    body = b.result(None, content_ref=name_of(STORED))
    run = after(9, body)
    results = dropped(run, DROPS).results
    assert results > 0
    assert needed(run, results) == (name_of(STORED),), "of those that stay"
    assert needed(run, len(run.turns)) == ()


def test_sealed_results_count_with_what_they_stand_for() -> None:
    sealed = b.result(None, content_sealed="k1;" + "A" * 9600)
    events = [replace(each, body=sealed) if isinstance(each, e.ToolReturned) else each for each in history(8)]
    run = b.run_after(*events)
    out = dropped(run, DROPS).results
    assert out > 0
    opens = replace(run.opening, request=replace(run.opening.request, messages_sealed="k1;" + "A" * 40))
    assert len(sealed_in(replace(run, opening=opens), out)) == 1 + 8 - out, "what is left out is not opened"


def test_usage_that_nobody_kept_is_estimated() -> None:
    events = [replace(each, usage=m.Usage()) if isinstance(each, e.ModelReplied) else each for each in history(8)]
    assert dropped(b.run_after(*events), DROPS).results > 0


@pytest.mark.parametrize("agent", [b.agent(context_window=WINDOW), b.agent(context="drop_tool_results")])
def test_it_is_the_agents_choice(agent: Any) -> None:
    assert results_in(asked(after(9), agent)) == [RESULT] * 9


def test_the_money_is_counted_for_what_is_sent() -> None:
    first = next(number for number, out in enumerate(steps(14)) if out)
    fitting = Fitting.of(after(first), DROPS, {})
    assert fitting.known.tokens == 0, "what the provider has counted is no longer there"
    assert Fitting.of(after(first + 1), DROPS, {}).known.tokens > 0


# --- what was thought -------------------------------------------------------------------------------------------


def thoughts_in(body: Any) -> list[int]:
    """The messages that bring thoughts back."""
    messages = enumerate(body["messages"])
    return [
        place
        for place, each in messages
        if any(block["type"] == "thinking" for block in each["content"] if each["role"] == "assistant")
    ]


@pytest.mark.parametrize("agent", [DROPS, b.agent()])
def test_no_thought_goes_back_behind_something_else_than_it_was_thought_of(agent: Any) -> None:
    """The newest models refuse that. What is left out takes with it what was thought until then."""
    server, events = Signatures(binds=True), history(20)
    for end in range(0, len(events), 2):
        body = asked(b.run_after(*events[:end]), agent)
        server.check_binding(body)
        server.issued(orjson.loads(events[end].body)["content"], body)  # type: ignore[union-attr]


def test_a_server_that_binds_thoughts_sees_a_changed_result() -> None:
    """The check of the check."""
    server, events = Signatures(binds=True), history(3)
    first, second = asked(b.run_after(*events[:2])), asked(b.run_after(*events[:4]))
    server.issued([thinking("hm 2")], first)
    server.check_binding(second)
    second["messages"][2]["content"][0]["content"] = "another"
    with pytest.raises(Refused, match="bound to a different conversation"):
        server.check_binding(second)


def test_what_is_thought_after_a_step_goes_back() -> None:
    runs = [after(number) for number in range(12)]
    first = next(number for number, run in enumerate(runs) if dropped(run, DROPS).now)
    assert thoughts_in(asked(runs[first])) == []
    assert thoughts_in(asked(runs[first + 1])) == [2 * first + 1]


def test_thinking_by_a_budget_wants_its_last_thoughts_back_and_voids_nothing() -> None:
    agent = b.agent(
        context="drop_tool_results",
        context_window=WINDOW,
        options={"thinking": {"type": "enabled", "budget_tokens": 1024}},
    )
    body = asked(after(9), agent)
    assert len(thoughts_in(body)) == 9
    assert "dropped" in results_in(body)[0]


# --- the provider's own -------------------------------------------------------------------------------------------


def test_the_provider_is_asked_to_leave_out_results_but_none_of_the_last_batch() -> None:
    agent, plan = b.agent(context="provider", context_window=WINDOW), [b.planned(index) for index in range(7)]
    uses = [b.tool_use(f"tu1{index}") for index in range(7)]
    run = b.run_after(b.calls(*plan, body=b.message(uses, "tool_use")), *(b.returned(index) for index in range(7)))
    (edit,) = asked(run, agent)["context_management"]["edits"]
    assert edit == {
        "type": "clear_tool_uses_20250919",
        "keep": {"type": "tool_uses", "value": 7},
        "trigger": {"type": "input_tokens", "value": 15_000},
        "clear_at_least": {"type": "input_tokens", "value": 2000},
    }


def test_ones_own_editing_wins() -> None:
    own = {"edits": [{"type": "clear_thinking_20251015"}]}
    body = asked(after(1), b.agent(context="provider", options={"context_management": own}))
    assert (body["context_management"], body["betas"]) == (own, [EDITING])


@pytest.mark.parametrize(("own", "named"), [([], [EDITING]), (["x"], ["x", EDITING]), ([EDITING, "x"], [EDITING, "x"])])
def test_the_beta_is_named_once_beside_ones_own(own: list[str], named: list[str]) -> None:
    assert asked(after(1), b.agent(context="provider", options={"betas": own}))["betas"] == named


def test_the_beta_is_named_only_where_it_is_used() -> None:
    assert "betas" not in asked(after(1), b.agent(options={"metadata": {"context_management": 1}}))


def test_what_the_provider_makes_room_for_is_not_refused_here() -> None:
    run = b.run_after(b.calls(usage=m.Usage(10**6)), b.returned())
    agent = b.agent(context="provider", context_window=WINDOW)
    assert Fitting.of(run, agent, {}).fitted(b'{"max_tokens":8192,"x":1}', "m", 1.0)
