"""What a run that asked to be streamed costs, and what becomes of its words when Kafka does not take them.

Responsible for: `agent/reply/speaking.py` and `agent/reply/hearing.py`, with an appender under the test's control, in
virtual time.
Must never: run a model.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.support.virtual import virtually
from tests.unit.test_pieces import block, call, ends, says, stop

from anabranch import messages as m
from anabranch.agent.model.jobs import Job
from anabranch.agent.reply.plan import BatchContext
from anabranch.agent.reply.speaking import EVERY_S, WAITING_BYTES
from anabranch.errors import BrokerError

TOPIC = NAMESPACE.stream


class Stage:
    """A run whose model call is due, and what is told of it."""

    def __init__(self, **asked: Any) -> None:
        self.desk = Desk().begin().write(b.requested(opens=b.opening(request=b.request(**asked))))
        (self.job,) = self.desk.jobs.due

    def say(self, *events: dict[str, Any], attempt: str = "att") -> None:
        assert self.job.on_event is not None
        for event in events:
            self.job.on_event(context(attempt), event)

    def end(self, whole: bool, attempt: str = "att") -> None:
        assert self.job.on_end is not None
        self.job.on_end(context(attempt), whole)

    async def ack(self) -> None:
        await self.desk.sent.ack(TOPIC)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.desk.sent.to(TOPIC)]

    @property
    def words(self) -> list[str]:
        return [delta.get("text", delta["type"]) for delta in self.told]

    @property
    def dropped(self) -> float:
        return sum(self.desk.station.meters.stream_dropped.copied().values())


def context(attempt: str) -> BatchContext:
    return BatchContext(b.RUN, 1, attempt, b.agent(), True, lambda _: None)


def test_a_run_that_did_not_ask_costs_nothing() -> None:
    async def run() -> Job:
        return Stage().job

    job = virtually(run)
    assert (job.on_event, job.on_end) == (None, None)


def test_the_first_word_is_told_at_once_and_the_rest_a_few_times_a_second() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True, reply_to=m.ReplyTo(3))
        stage.say(block(0, "text"))
        for number in range(200):
            stage.say(says(0, "text_delta", f"{number} "))
            if number == 0:
                assert stage.words == ["0 "]
            await asyncio.sleep(0.005)
            await stage.ack()
        stage.end(whole=True)
        return stage

    stage = virtually(run)
    assert "".join(stage.words[:-1]) == "".join(f"{number} " for number in range(200))
    assert len(stage.told) <= 1.0 / EVERY_S + 3
    assert [delta.get("number", 0) for delta in stage.told] == list(range(len(stage.told)))
    assert stage.words[-1] == "end"
    assert {record.partition for record in stage.desk.sent.to(TOPIC)} == {3}
    assert {record.key for record in stage.desk.sent.to(TOPIC)} == {b.RUN.encode()}


def test_an_inbox_that_there_is_not_gets_nothing_and_costs_nobody_else_his_words() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True, reply_to=m.ReplyTo(999))
        stage.say(block(0, "text", text="Hello"))
        return stage

    assert [record.partition for record in virtually(run).desk.sent.to(TOPIC)] == [None]


def test_a_call_is_told_with_its_name_at_its_start_and_with_its_input_when_it_is_complete() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say(*call(0, '{"n": 12345678901234567890123, "x": 1.10}'), *call(1, "[oops"), ends("tool_use"))
        stage.end(whole=True)
        return stage

    *told, end = virtually(run).told
    assert [(d["type"], d["index"], d["tool"], d["tool_use_id"]) for d in told] == [
        ("tool_use", 0, "t", "tu0"), ("tool_input", 0, "t", "tu0"),
        ("tool_use", 1, "t", "tu1"), ("tool_input", 1, "t", "tu1"),
    ]  # fmt: skip
    assert told[1]["input"] == {"n": 12345678901234567890123, "x": 1.10}
    assert "input" not in told[3]
    assert end["type"] == "end"


def test_what_the_model_thinks_is_told_to_those_who_asked_for_that() -> None:
    async def run(**asked: Any) -> list[str]:
        stage = Stage(stream=True, **asked)
        stage.say(block(0, "thinking"), says(0, "thinking_delta", "hm"), stop(0), block(1, "text", text="Yes"))
        stage.end(whole=True)
        return [delta["type"] for delta in stage.told]

    assert virtually(run) == ["text", "end"]
    assert virtually(lambda: run(stream_thinking=True)) == ["thinking", "text", "end"]


def test_an_attempt_that_broke_off_is_taken_back_and_the_next_one_begins_anew() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say(block(0, "text", text="one"))
        stage.end(whole=False)
        stage.end(whole=False, attempt="silent")
        await stage.ack()
        stage.say(block(0, "text", text="two"), attempt="again")
        await asyncio.sleep(EVERY_S)
        stage.end(whole=True, attempt="again")
        return stage

    told = virtually(run).told
    assert [(d["type"], d.get("text"), d.get("number", 0)) for d in told] == [
        ("text", "one", 0), ("discarded", None, 1), ("text", "two", 0), ("end", None, 1),
    ]  # fmt: skip
    assert len({d["attempt"] for d in told}) == 2
    assert not {d["attempt"] for d in told} & {"att", "again"}  # they are the key to the calls' ids


def test_a_kafka_that_is_slow_gets_fewer_and_longer_records() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say(block(0, "text"))
        for number in range(100):
            stage.say(says(0, "text_delta", f"{number} "))
            await asyncio.sleep(0.02)
        assert stage.words == ["0 "]
        await stage.ack()
        await asyncio.sleep(EVERY_S)
        return stage

    stage = virtually(run)
    assert stage.words == ["0 ", "".join(f"{number} " for number in range(1, 100))]
    assert stage.dropped == 0


def test_a_kafka_that_is_dead_costs_a_bounded_memory_and_what_was_dropped_leaves_a_gap() -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say(block(0, "text"))
        for _ in range(1000):
            stage.say(says(0, "text_delta", "x" * 1000))
        await stage.ack()
        await asyncio.sleep(EVERY_S)
        await stage.ack()
        stage.say(says(0, "text_delta", "later"))
        stage.end(whole=True)
        return stage

    stage = virtually(run)
    assert sum(map(len, stage.words)) <= WAITING_BYTES + 2000
    assert [delta.get("number", 0) for delta in stage.told] == [0, 1, 3, 4]
    assert stage.dropped == 1


def test_a_kafka_that_refuses_is_left_alone_for_a_while_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say(block(0, "text"))
        for number in range(400):
            stage.say(says(0, "text_delta", f"{number} "))
            await stage.desk.sent.fail(BrokerError("no"), TOPIC)
            await asyncio.sleep(0.05)
        return stage

    with caplog.at_level(logging.WARNING):
        stage = virtually(run)
    assert len(stage.told) <= 5
    assert stage.dropped > 100
    assert [record.message for record in caplog.records if "not told" in record.message] == [
        "some of what models say is not told to those who watch: no"
    ]


def test_whatever_happens_to_a_listener_the_model_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> Stage:
        stage = Stage(stream=True)
        stage.say({"type": "content_block_start", "index": 0, "content_block": None})
        stage.say(block(0, "text", text="unheard"))
        stage.end(whole=True)
        return stage

    assert virtually(run).told == []
    assert "can no longer be followed" in caplog.text
