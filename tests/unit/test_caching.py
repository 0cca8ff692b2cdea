"""Each turn reads from the provider's cache all that the turn before it wrote, however many calls it made.

Responsible for: `agent/prompt/caching.py`, by what a simulated cache finds; and that what was sent once is sent again.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from tests.support import builders as b

from anabranch import log_events as e
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer
from anabranch.agent.state import Run
from anabranch.specs import AgentSpec
from anabranch.testing.caching import Cache, Cached
from anabranch.testing.rules import check_message

LONG = "a long text " * 400
MARK, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}


def history(turns: int, calls: int, pauses: bool = False) -> list[e.Event]:
    """Turns of so many calls, each with a thought and a text before them, and their results."""
    events: list[e.Event] = []
    number = 0
    for _ in range(turns):
        if pauses:
            number += 1
            events.append(b.replied("pause", turn=number, body=b.message([b.text(f"wait {number}")], "pause_turn")))
        number += 1
        thought = {"type": "thinking", "thinking": f"hm {number}", "signature": "s"}
        uses = [b.tool_use(f"tu{number}{index}") for index in range(calls)]
        plan = [b.planned(index, number) for index in range(calls)]
        body = b.message([thought, b.text("I look"), *uses], "tool_use")
        events.append(b.calls(*plan, turn=number, body=body))
        results = [b.result(f"result {number} {index} {LONG[:400]}") for index in range(calls)]
        events += [b.returned(index, turn=number, body=body) for index, body in enumerate(results)]
    return events


def sent(run: Run, agent: AgentSpec) -> Any:
    body = orjson.loads(request_body(run, Offer(agent, [b.tool()])))
    check_message(body, ["m"])
    return body


def conversation(calls: int, turns: int = 4, opens: Any = None, pauses: bool = False, **fields: Any) -> list[Any]:
    """The bodies of all model calls of a run, in their order."""
    agent, events = b.agent(**{"system": LONG, **fields}), history(turns, calls, pauses)
    bodies = []
    for end in range(len(events) + 1):
        run = b.run_after(*events[:end], opens=opens)
        if run.owed:
            bodies.append(sent(run, agent))
    return bodies


def used(bodies: list[Any], apart_s: float = 1.0) -> list[Cached]:
    cache = Cache(least=1)
    return [cache.use(body, len(orjson.dumps(body)), number * apart_s) for number, body in enumerate(bodies)]


def reads_all_that_was_written(found: list[Cached]) -> bool:
    """Each but the first reads exactly what was read and written before it."""
    kept = [each.read + each.written_5m + each.written_1h for each in found]
    return all(each.read == before for before, each in zip(kept, found[1:], strict=False))


def without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_marks(item) for name, item in value.items() if name != "cache_control"}
    return [without_marks(item) for item in value] if isinstance(value, list) else value


def marks_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        own = [value["cache_control"]] if "cache_control" in value else []
        return own + [mark for name, item in value.items() if name != "cache_control" for mark in marks_in(item)]
    return [mark for item in value for mark in marks_in(item)] if isinstance(value, list) else []


# --- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pauses", [False, True])
@pytest.mark.parametrize("calls", [1, 10, 30])
def test_each_turn_reads_all_that_the_one_before_wrote(calls: int, pauses: bool) -> None:
    opens = b.opening(request=b.request(input=LONG))
    found = used(conversation(calls, opens=opens, pauses=pauses))
    assert reads_all_that_was_written(found)
    assert found[1].read > 2 * len(LONG) / 4, "the system prompt and the input"
    assert found[-1].read > found[1].read


def test_a_breakpoint_at_the_end_alone_would_miss_after_a_wide_batch() -> None:
    """What the second breakpoint is for; without it the simulated cache finds nothing of the conversation."""
    bodies = conversation(10, opens=b.opening(request=b.request(input=LONG)))
    for body in bodies:
        *before, _ = body["messages"]
        body["messages"][:-1] = without_marks(before)
    assert not reads_all_that_was_written(used(bodies))


def test_tools_and_system_prompt_are_read_by_the_agents_next_run() -> None:
    cache = Cache(least=1)
    for number, words in enumerate(("one", "two")):
        (body,) = conversation(1, turns=0, opens=b.opening(request=b.request(input=words)))
        found = cache.use(body, 10_000, number)
    assert found.read > len(LONG) / 4


def test_an_hour_is_kept_for_an_hour() -> None:
    opens = b.opening(request=b.request(input=LONG))
    every_ten_minutes = used(conversation(3, opens=opens, caching="1h"), apart_s=600)
    assert reads_all_that_was_written(every_ten_minutes)
    assert {each.written_5m for each in every_ten_minutes} == {0}
    assert [each.read for each in used(conversation(3, opens=opens), apart_s=600)] == [0] * 5


def test_what_was_sent_is_sent_again_byte_for_byte() -> None:
    """All of a request but its breakpoints is how the next one begins."""
    bodies = [
        orjson.dumps(without_marks(body)) for body in conversation(3, opens=b.opening(request=b.request(input=LONG)))
    ]
    for one, next_one in pairwise(bodies):
        assert next_one.startswith(one.removesuffix(b"]}"))


# --- where they stand ----------------------------------------------------------------------------------------


def test_the_last_two_batches_end_in_a_breakpoint_and_no_other() -> None:
    *_, body = conversation(2, turns=4)
    results = [message["content"] for message in body["messages"][2::2]]
    assert [marks_in(content) for content in results] == [[], [], [MARK], [MARK]]
    assert all("cache_control" in content[-1] for content in results[2:])


def test_without_a_system_prompt_the_last_tool_is_the_breakpoint() -> None:
    *_, body = conversation(1, system="", parallel_hint=False)
    assert body["tools"][-1]["cache_control"] == MARK
    assert "system" not in body


def test_a_small_input_stays_the_text_that_it_is() -> None:
    (body,) = conversation(1, turns=0)
    assert body["messages"] == [{"role": "user", "content": "hello"}]


def test_an_agent_without_tools_has_one_turn_and_writes_no_conversation() -> None:
    run = b.run_after(opens=b.opening(request=b.request(input=LONG)))
    body = orjson.loads(request_body(run, Offer(b.agent(system="x", tools=[]), [])))
    assert marks_in(body) == [MARK]
    assert body["messages"] == [{"role": "user", "content": LONG}]


def test_caching_can_be_left_off() -> None:
    for body in conversation(3, caching="off", opens=b.opening(request=b.request(input=LONG))):
        assert marks_in(body) == []


# --- beside the user's own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("own", range(5))
def test_there_are_never_more_than_four_with_the_users_own(own: int) -> None:
    blocks = [{**b.text(f"part {index}"), **({"cache_control": MARK} if index < own else {})} for index in range(6)]
    messages = [{"role": "user", "content": [*blocks, b.text(LONG)]}]
    opens = b.opening(request=b.request(input=None, messages=messages))
    for body in conversation(12, opens=opens):
        assert own <= len(marks_in(body)) <= 4
        assert marks_in(body["messages"][0])[:own] == [MARK] * own


@pytest.mark.parametrize("top", [MARK, HOUR])
def test_the_automatic_breakpoint_counts_and_is_the_last_one(top: Any) -> None:
    bodies = conversation(12, opens=b.opening(request=b.request(input=LONG)), options={"cache_control": top})
    assert all(len(marks_in(body)) <= 4 for body in bodies)
    assert [marks_in(body["messages"][-1]) for body in bodies] == [[]] * len(bodies)
    assert reads_all_that_was_written(used(bodies))


@pytest.mark.parametrize(("own", "caching"), [(HOUR, "5m"), (MARK, "1h"), (MARK, "5m"), (HOUR, "1h")])
def test_what_is_kept_for_an_hour_stands_before_what_is_kept_for_less(own: Any, caching: str) -> None:
    """The API refuses the other order."""
    messages = [{"role": "user", "content": [{**b.text(LONG), "cache_control": own}]}]
    for body in conversation(3, opens=b.opening(request=b.request(input=None, messages=messages)), caching=caching):
        kept = [
            mark.get("ttl", "5m") for mark in marks_in({name: body[name] for name in ("tools", "system", "messages")})
        ]
        assert kept == sorted(kept), kept


@pytest.mark.parametrize("last", [{"type": "thinking", "thinking": "x", "signature": "s"}, {"type": "new_kind"}])
def test_a_block_that_cannot_be_one_is_none(last: Any) -> None:
    messages = [{"role": "user", "content": LONG}, {"role": "assistant", "content": [last]}]
    run = b.run_after(opens=b.opening(request=b.request(input=None, messages=messages)))
    assert marks_in(orjson.loads(request_body(run, Offer(b.agent(), [b.tool()])))["messages"]) == []
