"""A model call that the money or the context does not allow is not made, and a reply is no longer than it may be.

Responsible for: `agent/prompt/fitting.py` and `agent/prompt/estimate.py`, and how a run ends by them.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.answer import response
from anabranch.agent.model.seam import Hopeless
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.estimate import IMAGE, Size, counted, fresh_in, known_of, size_of
from anabranch.agent.prompt.fitting import BUDGET, USEFUL, Fitting
from anabranch.agent.prompt.offer import Offer
from anabranch.agent.state import Run
from anabranch.prices import Price
from anabranch.specs import AgentSpec

PRICES = {"m": Price(1.0, 10.0)}
"""Dollars per million: a prompt of 1000 tokens costs 0.001, a reply of 1000 costs 0.01."""
TURN = m.Usage(10_000, 100, cost_usd=0.011)


def owes(*events: e.Event, most: float | None = 1.0) -> Run:
    return b.run_after(*events, opens=b.opening(limits=e.RunLimits(20, most)))


def after(usage: m.Usage = TURN, result: Any = "fine", most: float | None = 1.0) -> Run:
    """A run that owes its second reply."""
    return owes(b.calls(usage=usage), b.returned(body=b.result(result)), most=most)


def fitted(run: Run, agent: AgentSpec | None = None, prices: Any = PRICES, now: float = 2.0) -> tuple[Any, Fitting]:
    """The request as it would be sent."""
    agent = agent or b.agent()
    fitting = Fitting.of(run, agent, prices)
    return orjson.loads(fitting.fitted(request_body(run, Offer(agent, [b.tool()])), agent.model, now)), fitting


def refused(run: Run, agent: AgentSpec | None = None, prices: Any = PRICES, now: float = 2.0) -> tuple[str, str]:
    with pytest.raises(Hopeless) as info:
        fitted(run, agent, prices, now)
    return info.value.code, info.value.message


# --- money --------------------------------------------------------------------------------------------------


def test_a_run_without_a_limit_is_sent_as_it_is_whatever_it_costs() -> None:
    body, fitting = fitted(after(m.Usage(10**9, 10**9), most=None), prices={})
    assert (body["max_tokens"], fitting.cut) == (8192, None)


def test_a_reply_is_no_longer_than_what_the_money_left_buys() -> None:
    """10,000 tokens were read and 100 written for 0.011; to read them again costs 0.0101."""
    body, fitting = fitted(after(most=0.0311))
    assert 950 < body["max_tokens"] < 1000, "0.01 buys 1000 tokens, less what the result takes"
    assert fitting.cut == body["max_tokens"]


def test_only_max_tokens_differs_from_what_is_sent_else() -> None:
    run = after(most=0.0311)
    plain = orjson.loads(request_body(run, Offer(b.agent(), [b.tool()])))
    assert fitted(run)[0] == {**plain, "max_tokens": fitted(run)[0]["max_tokens"]}


def test_a_request_that_names_betas_is_cut_as_any() -> None:
    agent = b.agent(options={"betas": ["one", "two"]}, context="provider")
    body, fitting = fitted(after(most=0.0311), agent)
    assert (body["max_tokens"], body["betas"][:2]) == (fitting.cut, ["one", "two"])


def test_a_turn_that_would_exceed_the_money_is_not_made() -> None:
    code, message = refused(after(most=0.0211))
    assert code == BUDGET
    assert "$0.0110 of $0.0211 is spent" in message


def test_a_first_turn_can_be_too_dear() -> None:
    assert refused(owes(most=0.0001))[0] == BUDGET


@pytest.mark.parametrize("most", [0.0311, 0.5, 0.0215])
def test_it_never_costs_more_than_the_limit(most: float) -> None:
    """If the provider counts as estimated, or fewer."""
    run = after(most=most)
    try:
        body, _ = fitted(run)
    except Hopeless:
        return
    prompt = TURN.input_tokens + TURN.output_tokens + fresh_in(orjson.dumps(body), known_of(run)).most
    assert 0.011 + (prompt * 1 + body["max_tokens"] * 10) / 1e6 <= most


def test_what_was_thrown_away_is_spent() -> None:
    lost = b.discarded(turn=2, usage=m.Usage(cost_usd=0.9795))
    usage, result = b.calls(usage=TURN), b.returned()
    assert fitted(owes(usage, result))[1].cut is None
    assert refused(owes(usage, result, lost))[0] == BUDGET


def test_what_an_attempt_has_thrown_away_is_missing_for_the_next_one() -> None:
    run, agent = after(most=0.04), b.agent()
    body, fitting = request_body(run, Offer(agent, [b.tool()])), Fitting.of(run, agent, PRICES)
    first = orjson.loads(fitting.fitted(body, "m", 2.0))["max_tokens"]
    fitting.spend(m.Usage(cost_usd=0.005))
    assert orjson.loads(fitting.fitted(body, "m", 2.0))["max_tokens"] == pytest.approx(first - 500, abs=1)
    fitting.spend(m.Usage(cost_usd=None))
    with pytest.raises(Hopeless, match="nobody knows"):
        fitting.fitted(body, "m", 2.0)


def test_what_the_provider_keeps_is_cheap_as_long_as_it_keeps_it() -> None:
    kept = m.Usage(0, 0, 50_000, 50_000, 0.01)  # 100,000 tokens: 0.1 dollars, or a tenth from the cache
    agent = b.agent(caching="5m")
    assert fitted(after(kept, most=0.05), agent, now=300.0)[1].cut is not None
    assert refused(after(kept, most=0.05), agent, now=302.0)[0] == BUDGET
    assert fitted(after(kept, most=0.05), b.agent(caching="1h"), now=302.0)[0]["max_tokens"] > USEFUL


def test_a_model_without_a_price_is_not_asked_if_there_is_a_limit() -> None:
    assert refused(after(), prices={})[0] == BUDGET


def test_a_reply_must_have_room_for_what_is_thought_before_it() -> None:
    agent = b.agent(options={"thinking": {"type": "enabled", "budget_tokens": 900}})
    assert fitted(after(most=0.0311))[0]["max_tokens"] < 900 + USEFUL
    assert refused(after(most=0.0311), agent)[0] == BUDGET


def test_a_reply_that_the_money_cut_ends_the_run_for_its_money() -> None:
    body = b.message([b.text("half a sen")], "max_tokens")
    run = b.run_after(replace(b.replied("stopped", body=body), code=BUDGET))
    told = response(run)
    assert (told.status, told.error and told.error.code, told.stop_reason) == ("failed", BUDGET, "max_tokens")
    assert told.content == [b.text("half a sen")], "it was paid for"
    cut = response(b.run_after(b.replied("stopped", body=body)))
    assert cut.error is not None
    assert cut.error.code == "max_tokens", "its own"


# --- context ------------------------------------------------------------------------------------------------


def test_a_conversation_that_is_certainly_too_long_is_not_sent() -> None:
    agent, long = b.agent(context_window=20_000), "word " * 40_000
    code, message = refused(after(result=long, most=None), agent)
    assert code == "context_exceeded"
    assert "the context of m holds 20,000" in message
    assert refused(b.run_after(opens=b.opening(request=b.request(input=long))), agent)[0] == "context_exceeded"


def test_what_may_fit_is_sent_for_the_provider_knows_better() -> None:
    agent = b.agent(context_window=20_000)
    assert fitted(after(result="word " * 11_000, most=None), agent)[0]["messages"]


def test_without_a_window_nothing_is_too_long() -> None:
    assert fitted(after(m.Usage(10**9), most=None))[0]["messages"]


# --- estimates ----------------------------------------------------------------------------------------------


def test_what_was_counted_is_not_estimated() -> None:
    run = after(m.Usage(5, 7, 11, 13), result="x" * 1000)
    known = known_of(run)
    assert (known.tokens, known.cached) == (36, 24)
    fresh = fresh_in(request_body(run, Offer(b.agent(), [b.tool()])), known)
    assert 1000 < fresh.text < 1200


def test_text_that_looks_like_a_message_is_none() -> None:
    trap = '{"role":"user","content":"' + "x" * 1000
    run = after(result=[b.text(trap)])
    assert fresh_in(request_body(run, Offer(b.agent(), [b.tool()])), known_of(run)).text > 1000


def test_a_paused_turn_adds_nothing_that_was_not_counted() -> None:
    run = b.run_after(b.replied("pause", body=b.message([b.text("so far")], "pause_turn"), usage=TURN))
    assert fresh_in(request_body(run, Offer(b.agent(), [b.tool()])), known_of(run)) == Size(0)


def test_the_providers_own_tools_read_the_prompt_again_and_again_but_it_is_there_once() -> None:
    iterations = [{"type": "message", "input_tokens": 100 * n, "output_tokens": 10} for n in (1, 2, 3)]
    body = orjson.dumps({"usage": {"iterations": iterations}, "content": [b.text("x")]})
    run = b.run_after(b.replied("pause", body=body, usage=m.Usage(600, 30)))
    assert counted(run.turns[0]).tokens == 310


@pytest.mark.parametrize(("kind", "least", "most"), [("image", IMAGE, IMAGE), ("document", 99_000, 101_000)])
def test_an_image_is_no_text(kind: str, least: int, most: int) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}
    size = size_of(orjson.dumps([{"type": kind, "source": source}]))
    assert size.text < 100
    assert least <= size.media <= most
    assert size.least < 50
