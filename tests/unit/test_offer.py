"""What an agent's requests begin with is written once for each kind of them, and follows the registry.

Responsible for: `agent/prompt/offer.py`, beside what the tests of conversations, caching and callers say of its bytes.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import orjson
from tests.support import builders as b

from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Kind, Offer, Offers
from anabranch.registry import Registry

FIRST = Kind("m")


def test_what_requests_begin_with_is_written_once_for_each_kind() -> None:
    offer = Offer(b.agent(tool_choice="any"), [b.tool()])
    first, later = offer.head(FIRST, None), offer.head(FIRST._replace(first=False), None)
    assert first is offer.head(Kind("m"), None)
    assert (b'"tool_choice"' in first, b'"tool_choice"' in later) == (True, False)


def test_no_request_is_left_with_a_breakpoint_of_another() -> None:
    offer = Offer(b.agent(), [b.tool()])
    assert b"cache_control" in offer.head(FIRST._replace(mark="1h"), None)
    assert b"cache_control" not in offer.head(FIRST, None)


def test_the_container_of_one_run_is_in_no_other_runs_requests() -> None:
    offer, container = Offer(b.agent(options={"container": {"skills": []}}), [b.tool()]), {"id": "c1", "skills": []}
    assert b'"c1"' in offer.head(FIRST, container)
    assert b'"c1"' not in offer.head(FIRST, offer.container)


def test_a_tool_that_is_described_anew_is_offered_anew() -> None:
    registry, agent = Registry(), b.agent()
    registry.add([b.tool(description="old")], [agent])
    offers = Offers(registry)
    old = offers.of(agent.name, agent.revision)
    assert old is not None
    assert old is offers.of(agent.name, agent.revision)
    registry.add([b.tool(description="new")])
    new = offers.of(agent.name, agent.revision)
    assert new is not None
    assert [orjson.loads(request_body(b.run_after(), each))["tools"][0]["description"] for each in (old, new)] == [
        "old",
        "new",
    ]


def test_an_agent_whose_tools_nobody_has_registered_yet_is_offered_those_that_come() -> None:
    registry, agent = Registry(), b.agent()
    registry.add(agents=[agent])
    offers = Offers(registry)
    heads = [_head(offers)]
    registry.add([b.tool()])
    heads.append(_head(offers))
    assert [b'"tools"' in head for head in heads] == [False, True]


def _head(offers: Offers) -> bytes:
    offer = offers.of(b.agent().name, b.agent().revision)
    assert offer is not None
    return offer.head(FIRST, None)


def test_an_agent_that_the_registry_does_not_know_offers_nothing() -> None:
    assert Offers(Registry()).of("nobody", "r1") is None
