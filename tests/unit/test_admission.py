"""Requests taken up: in order, each once, as long as there is room; a bad one costs only itself.

Responsible for: `agent/admission/admission.py`, with an appender under the test's control.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.wait import until

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.admission.admission import Admission
from anabranch.agent.commit import Commit
from anabranch.agent.effects import model_due
from anabranch.bodies import read
from anabranch.config import AgentSettings
from anabranch.specs import AgentLimits
from anabranch.topics import partition_of

GOOD: dict[str, Any] = {"agent": "a", "input": "hello"}


@asynccontextmanager
async def admitting(desk: Desk) -> AsyncIterator[Admission]:
    admission = Admission(desk.owner, desk.station)
    task = asyncio.create_task(admission.run())
    try:
        yield admission
        assert not task.done(), "admission has died"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def taken(desk: Desk, *records: b.Read, count: int | None = None) -> list[Any]:
    """What is appended for these requests; dead letters are acknowledged."""
    async with admitting(desk) as admission:
        admission.feed(records)
        wanted = len(records) if count is None else count

        async def enough() -> bool:
            await desk.sent.ack(NAMESPACE.dead_letters)
            await desk.sent.ack(NAMESPACE.requests)
            return len(desk.appended) >= wanted

        await until(enough)
    return desk.appended


def good(offset: int, run_id: str | None = None, **fields: Any) -> b.Read:
    return b.raw_request({**GOOD, "run_id": run_id or f"r{offset}", **fields}, offset)


async def test_each_event_names_the_request_before_it_across_gaps() -> None:
    events = await taken(Desk().begin(), good(0), good(1), good(5), good(9))
    assert [(event.after, event.request_offset, event.life) for event in events] == [
        (0, 0, "0"), (1, 1, "1"), (2, 5, "5"), (6, 9, "9"),
    ]  # fmt: skip


async def test_what_was_taken_up_is_not_taken_up_again() -> None:
    desk = Desk().begin()
    assert len(await taken(desk, good(0), good(1), good(0), good(1), good(2), count=3)) == 3


async def test_an_opening_decides_all_that_depends_on_clock_and_agent() -> None:
    desk = Desk().begin()
    limits = AgentLimits(max_turns=5, deadline_s=60.0)
    desk.registry.add(agents=[b.agent(limits=limits, revision="rev2")])
    events = await taken(desk, good(0, max_turns=50, deadline_s=9e9), good(1, max_turns=2, deadline_s=1))
    assert [(e.opening.limits.max_turns, e.opening.deadline, e.opening.revision) for e in events] == [
        (5, 70.0, "rev2"),
        (2, 11.0, "rev2"),
    ]


@pytest.mark.parametrize(("key", "name"), [(b"order-1", "order-1"), (b"a b", "0.7"), (None, "0.7"), (b"\xff", "0.7")])
async def test_a_request_without_a_name_has_its_keys_or_its_places(key: bytes | None, name: str) -> None:
    (event,) = await taken(Desk().begin(), b.raw_request(GOOD, 7, key=key))
    assert (event.run_id, event.opening.request.run_id) == (name, name)


# --- duplicates ----------------------------------------------------------------------


async def test_a_run_that_is_open_closed_or_unread_is_a_duplicate() -> None:
    desk = Desk().begin().write(b.requested("open"), b.requested("closed", after=1, offset=1))
    desk.write(b.replied(run_id="closed", life="1"))
    records = [good(2, "open"), good(3, "closed"), good(4, "new"), good(5, "new", reply_to={"partition": 2})]
    events = (await taken(desk, *records))[-4:]
    assert [getattr(event, "code", "opens") for event in events] == ["duplicate", "duplicate", "opens", "duplicate"]
    assert events[-1].reply_to == m.ReplyTo(2)


async def test_a_bad_copy_of_a_known_run_is_a_duplicate() -> None:
    desk = Desk().begin().write(b.requested("open"))
    (event,) = await taken(desk, good(1, "open", agent="nobody"))
    assert event.code == "duplicate"


async def test_a_copy_of_a_closed_run_is_noted_when_a_successor_would_know_the_run() -> None:
    """Else an owner that dies between the note and the answer leaves it to nobody."""
    desk = Desk().begin().write(b.requested(), b.replied())
    await desk.sent.ack()
    assert desk.commit() == Commit(2, 2, 1)
    async with admitting(desk) as admission:
        admission.feed([good(1, "r", reply_to={"partition": 3})])
        await until(lambda: desk.commits_asked_for > 0)
        assert desk.appended == []
        commit = desk.commit()
        await until(lambda: desk.appended)
    assert commit == Commit(0, 2, 0)
    successor = Desk(desk.land().log).begin(commit).read()
    assert successor.answers == desk.answers
    assert successor.sent.to(NAMESPACE.responses)[0].partition == 3


async def test_a_run_that_closes_before_its_copy_is_read_back_stays_within_reach() -> None:
    desk = Desk().begin().write(b.requested())
    await taken(desk, good(1, "r"))
    desk.write(b.replied())
    await desk.sent.ack(NAMESPACE.responses)
    commit = desk.commit()
    assert commit.low == 0
    desk.land()
    assert Desk(desk.log).begin(commit).read().answers == desk.answers
    desk.read()
    await desk.sent.ack()
    assert desk.commit().low == desk.log.end, "its note was read and answered: low moves on"


async def test_a_copy_of_a_run_that_retention_may_have_reached_waits_for_nothing() -> None:
    desk = Desk(settings=AgentSettings(snapshot_age_s=50)).begin().write(b.requested(), b.replied(), at=1.0)
    await desk.sent.ack()
    desk.commit()
    desk.clock.now = 60.0
    (event,) = await taken(desk, good(1, "r"))
    assert (event.code, desk.commits_asked_for) == ("duplicate", 0)


async def test_a_request_that_another_one_took_up_while_we_waited_is_left_to_them() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([b.raw_request({"run_id": "x", "agent": "nobody", "input": "y"}, 0), good(1)])
        await until(lambda: desk.sent.to(NAMESPACE.dead_letters))
        desk.write(b.noted("rejected", "x", after=0, offset=0))
        await desk.sent.ack(NAMESPACE.dead_letters)
        await until(lambda: desk.appended)
    assert [(type(event), event.request_offset) for event in desk.appended] == [(e.RunRequested, 1)]  # type: ignore[union-attr]


async def test_a_cancel_is_noted() -> None:
    (event,) = await taken(Desk().begin(), b.raw_request({"run_id": "r", "cancel": True}, 0))
    assert (event.code, event.run_id) == ("cancelled", "r")


async def test_a_cancel_is_one_whatever_stands_beside_it_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    body = {"run_id": "r", "cancel": True, "agent": "a", "input": "hello"}
    (event,) = await taken(Desk().begin(), b.raw_request(body, 0))
    assert (event.code, event.run_id) == ("cancelled", "r")
    assert "t.agent.requests/0/0: it cancels run r, so its input begins none" in caplog.text


# --- bad requests ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (b"hello", "invalid_request", "not JSON"),
        (b"", "invalid_request", "not JSON"),
        (b"[1]", "invalid_request", "must be a JSON object"),
        ({"input": "x"}, "invalid_request", "agent: is missing"),
        ({"agent": "nobody", "input": "x"}, "unknown_agent", "the agents are: a"),
        ({"agent": "a"}, "invalid_request", "either input or messages"),
        ({"agent": "a", "input": "x", "messages": [{}]}, "invalid_request", "either input or messages"),
        ({"agent": "a", "input": []}, "invalid_request", "input: is empty"),
        ({"agent": "a", "input": ""}, "invalid_request", "input: is blank"),
        ({"agent": "a", "input": " \n"}, "invalid_request", "input: is blank"),
        ({"agent": "a", "messages": []}, "invalid_request", "messages: is empty"),
        ({"agent": "a", "messages": [{"role": "user"}]}, "invalid_request", "messages.0.content: is missing"),
        ({"agent": "a", "input": "x", "max_turns": "many"}, "invalid_request", "max_turns"),
        ({"agent": "a", "input": "x", "max_cost_usd": 1}, "invalid_request", "no price is configured"),
        ({"agent": "a", "input": "x", "reply_to": {"partition": 99}}, "invalid_request", "the last partition is 3"),
        (b'{"agent":"a","input":"x","metadata":{"n":12345678901234567890123}}', "invalid_request", "64-bit"),
        (b'{"agent":"a","input":[{"n":12345678901234567890123}]}', "invalid_request", "64-bit"),
        (b'{"agent":"a","input":"x","reply_to":{"partition":12345678901234567890123}}', "invalid_request", "64-bit"),
        ({"agent": "a", "input": "x" * 1_030_000}, "invalid_request", "too large"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_buried_and_noted_and_the_next_one_is_taken_up(body: Any, code: str, told: str) -> None:
    desk = Desk().begin()
    bad, next_one = await taken(desk, b.raw_request(body, 0), good(1))
    assert (bad.code, bad.error.code) == ("rejected", code)
    assert told in bad.error.message
    assert isinstance(next_one, e.RunRequested)
    (letter,) = desk.sent.to(NAMESPACE.dead_letters)
    assert dict(letter.headers)["ce_origin"] == b"t.agent.requests/0/0"


async def test_a_note_is_appended_only_when_the_dead_letter_is_kept() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([b.raw_request(b"hello", 0)])
        await until(lambda: desk.sent.to(NAMESPACE.dead_letters))
        assert desk.appended == []
        await desk.sent.ack()
        await until(lambda: desk.appended)


async def test_a_bad_request_is_answered_with_its_error() -> None:
    desk = Desk().begin()
    await taken(desk, good(0, "r", agent="nobody", reply_to={"partition": 2}))
    desk.land().read()
    (record,) = desk.sent.to(NAMESPACE.responses)
    assert (record.partition, desk.answers[0]["error"]["code"]) == (2, "unknown_agent")


# --- other partitions ----------------------------------------------------------------------


async def test_a_request_on_the_wrong_partition_is_moved_to_its_own() -> None:
    name = next(n for n in map(str, range(99)) if partition_of(n, 8) == 5)
    desk = Desk(partitions=8).begin()
    (event,) = await taken(desk, b.raw_request({**GOOD, "run_id": name, "tenant": "acme"}, 0))
    assert event.code == "moved"
    (moved,) = desk.sent.to(NAMESPACE.requests)
    assert (moved.partition, moved.key) == (5, name.encode())
    assert read(m.RunRequest, moved.value) == m.RunRequest(name, "a", "hello", tenant="acme")


# --- zombies ----------------------------------------------------------------------


async def test_a_zombies_event_for_the_same_request_makes_ours_void() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        desk.log.write(b.requested("r0"))
        admission.feed([good(0), good(1)])
        await until(lambda: len(desk.appended) == 2)
        desk.read()
        admission.folded()
        assert admission.position("interactive") == 2
        desk.land().read()
        admission.folded()
    state = desk.owner.state
    assert (state.next_request, list(state.runs)) == (2, ["r0", "r1"])
    assert [run.first for run in state.runs.values()] == [0, 2]
    assert len([run for run in state.runs.values() if model_due(run)]) == len(desk.jobs.due) == 2


async def test_a_zombie_that_has_gone_further_moves_us_on() -> None:
    desk = Desk().begin().write(b.requested("r0"), b.requested("r1", after=1, offset=1))
    (event,) = (await taken(desk, good(0), good(1), good(2), count=1))[-1:]
    assert (event.after, event.request_offset) == (2, 2)


# --- room ----------------------------------------------------------------------


async def test_what_does_not_fit_waits_until_a_run_has_ended() -> None:
    desk = Desk(settings=AgentSettings(max_open_bytes=1)).begin()
    async with admitting(desk) as admission:
        admission.feed([good(0), good(1)])
        await until(lambda: desk.appended)
        desk.land().read()
        admission.folded()
        await asyncio.sleep(0)
        assert len(desk.appended) == 1
        desk.write(b.replied(run_id="r0", life="0"))
        await until(lambda: len(desk.appended) == 2)


async def test_requests_that_open_nothing_do_not_hold_up_the_rest() -> None:
    desk = Desk(settings=AgentSettings(max_partition_bytes=1)).begin()
    async with admitting(desk) as admission:
        admission.feed([b.raw_request({"run_id": "x", "cancel": True}, 0), good(1)])
        await until(lambda: desk.appended)
        await asyncio.sleep(0)
        assert len(desk.appended) == 1
        desk.land().read()
        admission.folded()
        await until(lambda: len(desk.appended) == 2)


async def test_a_full_buffer_says_so() -> None:
    admission = Admission(Desk().begin().owner, Desk().station)
    waiting = admission.lanes["interactive"]
    assert waiting.hungry
    admission.feed([good(number) for number in range(500)])
    assert waiting.full
    assert not admission.lanes["bulk"].full
    admission.suspend()
    assert not waiting.full


async def test_a_flood_of_requests_leaves_others_their_turn() -> None:
    desk, seen = Desk().begin(), list[int]()
    async with admitting(desk) as admission:
        admission.feed([good(number) for number in range(200)])
        while len(desk.appended) < 200:
            seen.append(len(desk.appended))
            await asyncio.sleep(0)
    assert len(seen) >= 10


async def test_a_sealed_request_is_refused_where_there_are_no_keys() -> None:
    request = {"agent": "a", "messages_sealed": "k1;AAAA"}
    [event] = await taken(Desk().begin(), b.raw_request(request, 0, key=b"r"))
    assert (event.code, event.error.code) == ("rejected", "invalid_request")
    assert "ANABRANCH_KEYS" in event.error.message
