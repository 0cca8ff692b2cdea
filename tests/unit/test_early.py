"""Calls that begin while their model still speaks: which may, and what becomes of their results, whatever happens.

Responsible for: `agent/early.py` and what `Owner` and `Publisher` make of it. Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk
from tests.unit.test_pieces import block, call, ends, stop

from anabranch import log_events as e
from anabranch.agent import early
from anabranch.agent.admission.saturation import Threshold
from anabranch.agent.reply.plan import BatchContext, plan
from anabranch.agent.reply.reply import RequestedCall
from anabranch.errors import BrokerError
from anabranch.specs import AgentLimits

CALLS = NAMESPACE.calls("q")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


class Stage:
    """A run whose model speaks: the agent's calls may begin early, and its tool is `tool`."""

    def __init__(self, desk: Desk | None = None, opens: e.Opening | None = None, **tool: Any) -> None:
        self.desk = desk or Desk()
        agent = b.agent(early_start=True, tools=["t", "u"])
        tools = [b.tool(**{"read_only": True, "input_schema": SCHEMA, **tool}), b.tool("u")]
        self.desk.registry.add(tools, [agent])
        self.desk.begin()
        if desk is None:
            self.desk.write(b.requested(opens=opens))
        self.agent = agent

    def context(self, attempt: str = "att", **fields: Any) -> BatchContext:
        given = {"run_id": b.RUN, "turn": 1, "agent": self.agent, "parallel": True, "tool": self.desk.registry.tool}
        return BatchContext(**{**given, "attempt": attempt, **fields})

    def say(self, *events: dict[str, Any], **context: Any) -> None:
        (job,) = self.desk.jobs.due
        assert job.on_event is not None
        for event in events:
            job.on_event(self.context(**context), event)

    def end(self, attempt: str = "att", whole: bool = False) -> None:
        (job,) = self.desk.jobs.due
        assert job.on_end is not None
        job.on_end(self.context(attempt), whole)

    def reply(self, *asked: Any, attempt: str = "att") -> e.ModelReplied:
        """The whole reply, with calls of these arguments."""
        requested = [RequestedCall(f"tu{index}", "t", given) for index, given in enumerate(asked)]
        blocks = [b.tool_use(each.tool_use_id, "t", each.input) for each in requested]
        planned = plan(requested, self.context(attempt))
        return b.calls(*planned, body=b.message(blocks, "tool_use"), attempt=attempt)

    def returned(self, reply: e.ModelReplied, index: int = 0, content: str = "early") -> e.ToolReturned:
        return e.ToolReturned(b.RUN, b.LIFE, reply.plan[index].call_id, "ok", b.result(content))

    @property
    def published(self) -> list[tuple[str, int, Any]]:
        """What was published: call ids, dispatches, arguments."""
        bodies = [orjson.loads(record.value or b"") for record in self.desk.sent.to(CALLS)]
        return [(body["call_id"], body["dispatch"], body["input"]) for body in bodies]

    @property
    def copies(self) -> list[e.ToolReturned]:
        return [event for event in self.desk.appended if isinstance(event, e.ToolReturned)]

    @property
    def results(self) -> list[Any]:
        run = b.run_of(self.desk.owner.state)
        return [
            json.loads(c.result.body)["content"] for c in run.turns[-1].calls.values() if c.result and c.result.body
        ]

    def meter(self) -> dict[str, float]:
        return {what: count for (_, what), count in self.desk.station.meters.calls_early.copied().items()}


TWO = [*call(0, '{"n":1}'), *call(1, '{"n":2}'), ends("tool_use")]


# --- one that the reply has ---------------------------------------------------------------------------------------


async def test_a_call_begins_when_it_is_complete_and_its_publication_is_not_made_again() -> None:
    stage = Stage()
    stage.say(*call(0, '{"n":1}'))
    assert stage.published == []
    stage.say(block(1, "text"))
    reply = stage.reply({"n": 1})
    assert stage.published == [(reply.plan[0].call_id, 0, {"n": 1})]
    await stage.desk.sent.ack()
    stage.desk.write(reply)
    assert len(stage.published) == 1
    stage.desk.write(stage.returned(reply))
    assert stage.results == ["early"]
    assert (stage.copies, stage.meter()) == ([], {"started": 1, "used": 1})
    assert b.run_of(stage.desk.owner.state).owed


async def test_a_result_that_lies_before_its_reply_is_appended_again_behind_it() -> None:
    stage = Stage()
    stage.say(*TWO)
    reply = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(stage.returned(reply, 1), stage.returned(reply, 1, "a copy"), reply)
    assert [event.call_id for event in stage.copies] == [reply.plan[1].call_id]
    assert [dispatch for _, dispatch, _ in stage.published] == [0, 0]
    stage.desk.land().read()
    assert stage.results == ["early"]
    stage.desk.write(stage.returned(reply, 0, "late"))
    assert stage.results == ["late", "early"]


async def test_done_passes_the_reply_only_when_what_stands_for_its_calls_is_certain() -> None:
    """Else a successor would publish nothing, and nobody would ever answer."""
    stage = Stage()
    stage.say(*TWO)
    reply = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(stage.returned(reply, 1))
    cause = stage.desk.log.end
    stage.desk.write(reply)
    assert stage.desk.commit().done == cause
    await stage.desk.sent.ack(CALLS)
    assert stage.desk.commit().done == cause
    await stage.desk.sent.ack(NAMESPACE.log)
    assert stage.desk.commit().done > cause


# --- one that it has not ------------------------------------------------------------------------------------------


async def test_of_an_attempt_that_did_not_win_nothing_is_used() -> None:
    stage = Stage()
    stage.say(*TWO)
    other = stage.reply({"n": 1}, {"n": 2}, attempt="another")
    broken = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(stage.returned(broken, 0), other, stage.returned(broken, 1))
    assert stage.published[2:] == [(entry.call_id, 1, {"n": n}) for n, entry in enumerate(other.plan, 1)]
    assert (stage.copies, stage.results) == ([], [])
    assert not stage.desk.owner._publisher.early.speaking


async def test_a_reply_that_asks_for_something_else_under_the_same_id_gets_nothing_of_it() -> None:
    stage = Stage()
    stage.say(*TWO)
    heard, reply = stage.reply({"n": 1}, {"n": 2}), stage.reply({"n": 1}, {"n": 3})
    stage.desk.write(stage.returned(heard, 0), stage.returned(heard, 1), reply, stage.returned(heard, 1))
    assert stage.published[2:] == [(reply.plan[1].call_id, 1, {"n": 3})]
    stage.desk.land().read()
    assert stage.results == ["early"]
    assert [event.call_id for event in stage.copies] == [reply.plan[0].call_id]


async def test_an_attempt_that_is_made_again_begins_nothing_once_one_has() -> None:
    stage = Stage()
    stage.end("refused")
    stage.say(*TWO)
    stage.end()
    stage.say(*TWO, attempt="again")
    assert len(stage.published) == 2


# --- what is not certain ------------------------------------------------------------------------------------------


async def test_a_call_that_was_handed_off_before_the_log_knew_it_is_published_as_always() -> None:
    """The fold took no notice, so nobody would miss it if that worker died."""
    stage = Stage()
    stage.say(*TWO)
    reply = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(b.calls_handed_off(reply.plan[0].call_id), reply)
    assert stage.published[2:] == [(reply.plan[0].call_id, 1, {"n": 1})]


async def test_a_result_that_there_is_no_room_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "RESULT_BYTES", 30)
    stage = Stage()
    stage.say(*TWO)
    reply = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(stage.returned(reply, 0, "short"), stage.returned(reply, 1, "long " * 20), reply)
    assert stage.published[2:] == [(reply.plan[1].call_id, 1, {"n": 2})]
    assert [event.call_id for event in stage.copies] == [reply.plan[0].call_id]


async def test_a_call_that_kafka_did_not_take_is_published_as_always() -> None:
    stage = Stage()
    stage.say(*TWO)
    await stage.desk.sent.fail(BrokerError("no"), CALLS)
    stage.desk.write(stage.reply({"n": 1}, {"n": 2}))
    assert [dispatch for _, dispatch, _ in stage.published] == [0, 0, 1, 1]


async def test_who_takes_over_knows_of_nothing_and_publishes_as_always() -> None:
    stage = Stage()
    stage.say(*TWO)
    reply = stage.reply({"n": 1}, {"n": 2})
    stage.desk.write(stage.returned(reply, 0), reply)
    another = Stage(Desk(stage.desk.log))
    another.desk.read()
    assert [(call_id, dispatch) for call_id, dispatch, _ in another.published] == [
        (entry.call_id, 1) for entry in reply.plan
    ]


async def test_a_partition_that_came_back_still_knows_and_one_that_is_away_begins_nothing() -> None:
    stage = Stage()
    stage.say(*call(0, '{"n":1}'), *call(1, '{"n":2}'))
    stage.desk.owner.give_up()
    stage.say(block(2), stop(2), block(3, "text"))
    stage.desk.owner.suspend()
    stage.say(block(4), stop(4), block(5, "text"))
    reply = stage.reply({"n": 1})
    stage.desk.log.write(stage.returned(reply), reply)
    stage.desk.owner.resume(stage.desk.log.end)
    stage.desk.read()
    assert len(stage.published) == 1
    assert [event.call_id for event in stage.copies] == [reply.plan[0].call_id]


async def test_a_call_that_the_log_knows_when_it_is_handed_off_is_missed_by_the_fold_and_by_nobody_else() -> None:
    stage = Stage()
    stage.say(*call(0, '{"n":1}'), ends("tool_use"))
    await stage.desk.sent.ack()
    stage.desk.owner.suspend()
    reply = stage.reply({"n": 1})
    stage.desk.log.write(reply, b.calls_handed_off(reply.plan[0].call_id))
    stage.desk.owner.resume(stage.desk.log.end)
    stage.desk.read()
    assert len(stage.published) == 1


async def test_while_the_session_may_be_lost_nothing_begins() -> None:
    stage = Stage()
    stage.desk.alive = False
    stage.say(*TWO)
    assert stage.published == []


async def test_a_run_that_ends_leaves_nothing_behind() -> None:
    stage = Stage()
    stage.say(*TWO)
    stage.desk.write(stage.returned(stage.reply({"n": 1})), b.cancelled())
    kept = stage.desk.owner._publisher.early
    assert (bool(kept.speaking), kept._bytes) == (False, 0)


# --- which may begin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tool",
    [
        {"read_only": False}, {"after": ["u"]}, {"serial_key": "n"}, {"deadline_s": 60.0}, {"delivery": "at_most_once"},
        {"input_schema": {"type": "object", "required": ["m"]}},
    ],
    ids=lambda tool: next(iter(tool)),
)  # fmt: skip
async def test_only_a_call_that_is_safe_to_repeat_and_waits_for_nobody_begins_early(tool: dict[str, Any]) -> None:
    stage = Stage(**tool)
    stage.say(*TWO)
    assert stage.published == []


@pytest.mark.parametrize(
    "arguments", ['{"n":', "[1]", '{"n":Infinity}', '{"n":"\\ud800"}', '{"n":' + "[" * 200 + "]" * 200 + "}"]
)
async def test_arguments_that_only_the_whole_reply_can_judge_begin_nothing(arguments: str) -> None:
    stage = Stage()
    stage.say(*call(0, arguments), ends("tool_use"))
    assert stage.published == []


async def test_what_the_plan_will_reject_does_not_begin() -> None:
    stage = Stage()
    stage.agent = b.agent(early_start=True, limits=AgentLimits(max_calls_per_turn=1))
    stage.say(*TWO)
    assert [given for *_, given in stage.published] == [{"n": 1}]
    last = Stage(opens=b.opening(limits=e.RunLimits(1)))
    last.say(*TWO)
    unknown = Stage()
    unknown.say(block(0, name="nobody"), stop(0), ends("tool_use"))
    assert last.published == unknown.published == []


async def test_nothing_begins_in_a_queue_that_is_behind() -> None:
    stage = Stage()
    stage.desk.station.saturation._over[Threshold("q", 1.0, 1.0)] = True
    stage.say(*TWO)
    assert stage.published == []


async def test_an_agent_that_does_not_say_so_begins_nothing_and_its_calls_have_the_ids_they_had() -> None:
    desk = Desk().begin().write(b.requested())
    assert desk.jobs.due[0].on_event is None
    context = Stage().context(agent=b.agent())
    (one,), (other,) = (plan([RequestedCall("tu", "t", {"n": n})], context) for n in (1, 2))
    assert one.call_id == other.call_id


async def test_an_early_start_says_so_in_its_dispatch_and_has_until_the_runs_deadline() -> None:
    stage = Stage()
    stage.say(*TWO)
    body = orjson.loads(stage.desk.sent.to(CALLS)[0].value or b"")
    assert (body["dispatch"], body["deadline"], body["idempotency_key"]) == (0, b.DEADLINE, body["call_id"])
