"""Our own client on a real Kafka: submit, await, watch, listen, cancel, join.

Responsible for: what a client may rely on, and what two of them do to each other (nothing). Must never: produce raw
requests (test_requests).
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, Fleet, by_turn, fleet, settings_for
from tests.support.raw import read_until
from tests.support.wait import until

from anabranch import App
from anabranch.client import Client
from anabranch.errors import AnabranchError, InvalidRequest, RunFailed
from anabranch.events import Answer
from anabranch.messages import RunResponse
from anabranch.testing import Answer as Said
from anabranch.testing import prompt_of, text, tool_use

app = App("clients")


@app.tool(queue="io")
async def echo(word: str) -> str:
    """Says it again."""
    return word


app.agent("echoer", model="scripted", tools=[echo])


def echoing(request: dict[str, Any]) -> Said:
    """Answers with what it was asked, after one call."""
    word = prompt_of(request)
    return by_turn([text("I ask."), tool_use("echo", {"word": word})], f"You said {word}.")(request)


class Gate:
    """A model that answers when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = 0

    async def __call__(self, request: dict[str, Any]) -> Said:
        self.asked += 1
        await self.open.wait()
        return echoing(request)


def another_client(running: Fleet) -> Client:
    return Client.for_app(app, settings=running.settings)


async def answer_to(run: Any) -> RunResponse:
    response: RunResponse = await asyncio.wait_for(asyncio.ensure_future(_awaited(run)), ANSWER_S)
    return response


async def _awaited(run: Any) -> Any:
    return await run


async def types_of(run: Any) -> list[str]:
    async with asyncio.timeout(ANSWER_S):
        return [event.type async for event in run.events()]


async def test_a_run_is_submitted_awaited_and_watched(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("echoer", "hello", run_id="order-1", metadata={"a": [1, None]})
        watching = asyncio.create_task(types_of(run))
        response = await answer_to(run)
        assert await run.output() == "You said hello."
        assert run.done
        assert await watching == ["run.requested", "model.replied", "tool.returned", "model.replied"]
    assert (response.run_id, response.agent, response.status) == ("order-1", "echoer", "completed")
    assert response.revision == app.agents["echoer"].spec.revision
    assert response.metadata == {"a": [1, None]}
    assert (response.turns, response.calls.total, response.calls.batches) == (2, 1, 1)
    assert response.timing.wall_s >= response.timing.model_s > 0
    assert response.stop_reason == "end_turn"
    assert response.content is None


async def test_two_clients_get_only_their_own_answers(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running, another_client(running) as other:
        mine = [await running.client.submit("echoer", f"mine {n}") for n in range(10)]
        theirs = [await other.submit("echoer", f"theirs {n}") for n in range(10)]
        for name, runs in (("mine", mine), ("theirs", theirs)):
            outputs = [(await answer_to(run)).output for run in runs]
            assert outputs == [f"You said {name} {n}." for n in range(10)]


async def test_a_run_id_submitted_again_while_the_run_is_open_joins_it(kafka: str, namespace: str) -> None:
    """By another client and by the same one: all are answered, and the model is asked once a turn."""
    gate = Gate()
    async with fleet(app, gate, settings_for(kafka, namespace)) as running, another_client(running) as other:
        first = await running.client.submit("echoer", "hello", run_id="order-2")
        await until(lambda: gate.asked == 1, ANSWER_S, "the model was asked")
        again = await running.client.submit("echoer", "hello", run_id="order-2")
        joined = await other.submit("echoer", "something else", run_id="order-2")
        gate.open.set()
        answers = [await answer_to(run) for run in (first, again, joined)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].output == "You said hello."
    assert gate.asked == 2


async def test_a_run_id_submitted_again_after_the_run_was_closed_gives_the_same_answer(
    kafka: str, namespace: str
) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running, another_client(running) as other:
        first = await running.ask("echoer", "hello", run_id="order-3")
        assert await running.ask("echoer", "hello", run_id="order-3") == first
        assert await answer_to(await other.submit("echoer", "hello", run_id="order-3")) == first
        assert running.model.calls == 2
        records = await read_until(running.bootstrap, running.namespace.responses, lambda found: len(found) >= 3)
    assert len({record.value for record in records}) == 1, "copies are identical, byte for byte"


async def test_the_answer_is_still_the_same_after_a_takeover(kafka: str, namespace: str) -> None:
    """As long as an open run keeps the log from being read past."""
    gate = Gate()

    async def script(request: dict[str, Any]) -> Said:
        return await gate(request) if prompt_of(request) == "open" else echoing(request)

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        # some of each partition are open before, so that what follows them is folded again by whoever takes over
        kept = [await running.client.submit("echoer", "open") for _ in range(40)]
        await until(lambda: gate.asked == 40, ANSWER_S, "all are open")
        first = await running.ask("echoer", "hello", run_id="order-4")
        gate.open.set()
        await running.stop(running.agents[0])
        await running.add_agent()
        again = await running.ask("echoer", "hello", run_id="order-4")
        assert {(await answer_to(run)).status for run in kept} == {"completed"}
    assert again.output == first.output == "You said hello."
    assert (again.turns, again.calls) == (first.turns, first.calls)


async def test_a_run_can_be_cancelled_whatever_it_is_doing(kafka: str, namespace: str) -> None:
    async with fleet(app, Gate(), settings_for(kafka, namespace)) as running:
        run = await running.client.submit("echoer", "hello")
        await until(lambda: running.model.calls == 1, ANSWER_S, "the model was asked")
        await run.cancel("no longer wanted")
        response = await answer_to(run)
        with pytest.raises(RunFailed, match="no longer wanted"):
            await run.output()
    assert (response.status, response.output) == ("cancelled", None)
    assert response.error is not None
    assert response.error.code == "cancelled"


async def test_cancelling_a_run_that_is_over_or_never_was_changes_nothing(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        await running.client.cancel("nobody")
        first = await running.ask("echoer", "hello", run_id="order-5")
        await running.client.cancel("order-5")
        assert await running.ask("echoer", "hello", run_id="order-5") == first
        assert (await running.ask("echoer", "again", run_id="nobody")).status == "completed"


async def test_a_run_that_is_cancelled_before_it_is_admitted_ends_as_cancelled(kafka: str, namespace: str) -> None:
    async with fleet(app, Gate(), settings_for(kafka, namespace), agents=0) as running:
        run = await running.client.submit("echoer", "hello")
        await run.cancel()
        await running.add_agent()
        assert (await answer_to(run)).status == "cancelled"


async def test_a_mistake_is_told_before_anything_is_sent(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        submit = running.client.submit
        for wrong in ({"run_id": "a b"}, {"max_turns": 0}, {"metadata": {"a": "x" * 5000}}, {"metadata": {"n": 9**40}}):
            with pytest.raises(AnabranchError):
                await submit("echoer", "hello", **wrong)
        with pytest.raises(InvalidRequest):
            await submit("echoer", "x" * 2_000_000)
        with pytest.raises(AnabranchError):
            await submit("echoer", "hello", deadline="soon")


async def test_a_failed_submission_does_not_forget_an_earlier_one_of_the_same_run(kafka: str, namespace: str) -> None:
    gate = Gate()
    async with fleet(app, gate, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("echoer", "hello", run_id="order-6")
        with pytest.raises(InvalidRequest):
            await running.client.submit("echoer", "x" * 2_000_000, run_id="order-6")
        gate.open.set()
        assert (await answer_to(run)).output == "You said hello."


async def test_an_unknown_agent_is_answered_and_ends_those_who_watch(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("nobody", "hello")
        response = await answer_to(run)
        assert await types_of(run) == ["request.noted"]
    assert response.error is not None
    assert response.error.code == "unknown_agent"
    assert "echoer" in response.error.message


async def test_watching_ends_with_the_run_also_if_it_had_ended_before(kafka: str, namespace: str) -> None:
    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        await running.ask("echoer", "hello", run_id="order-7")
        async with asyncio.timeout(ANSWER_S):
            seen = [event async for event in running.client.events("order-7")]
    assert [event.type for event in seen] == ["run.requested", "model.replied", "tool.returned", "model.replied"]
    assert isinstance(seen[-1], Answer)
    assert seen[-1].response.output == "You said hello."


async def test_a_client_that_is_closed_lets_nobody_wait_for_ever(kafka: str, namespace: str) -> None:
    async with fleet(app, Gate(), settings_for(kafka, namespace)) as running:
        async with another_client(running) as other:
            run = await other.submit("echoer", "hello")
        with pytest.raises(AnabranchError, match="closed"):
            await answer_to(run)
        with pytest.raises(AnabranchError):
            await other.submit("echoer", "hello")
