"""What a client hears of a run while its model speaks, on a real Kafka.

Responsible for: `agent.stream` from the worker to `run.events()`, through breaks, deaths and latecomers. What pieces
come to is in tests/unit/test_spoken.py. Must never: look inside a worker.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, by_turn, fleet, settings_for
from tests.support.process import Command, GuardedProcess, tail
from tests.support.raw import read_until

from anabranch import App
from anabranch.bodies import read
from anabranch.client import Client
from anabranch.events import Answer, CallAsked, CallResult, CallStarted, Discarded, Event, RunEvent, Text, Turn
from anabranch.messages import StreamDelta
from anabranch.roles import broker_of, topic_specs
from anabranch.testing import Answer as Said
from anabranch.testing import Reply, ScriptedModel, prompt_of, text, tool_use

app = App("streamed")


@app.tool(queue="io", read_only=True)
async def look(word: str) -> str:
    """Looks."""
    return f"seen {word}"


app.agent("teller", model="scripted", tools=[look])

WORDS = "one two three four five six seven eight " * 3
SLOWLY = Reply(content=[text(WORDS)], chunk_s=0.1)
LOOKS = Reply(content=[text("I look. "), tool_use("look", {"word": "here"}), text("Wait.")], chunk_s=0.05)


def telling(request: dict[str, Any]) -> Said:
    return by_turn(LOOKS, SLOWLY)(request)


async def all_of(events: Any) -> list[Event]:
    async with asyncio.timeout(ANSWER_S):
        return [event async for event in events]


def said(events: list[Event]) -> dict[int, str]:
    """The text of each turn that counts."""
    texts: dict[int, str] = {}
    for event in events:
        if isinstance(event, Discarded):
            texts.pop(event.turn, None)
        elif isinstance(event, Text):
            texts[event.turn] = texts.get(event.turn, "") + event.text
    return texts


async def test_text_and_calls_are_heard_while_the_model_speaks_and_in_their_order(kafka: str, namespace: str) -> None:
    async with fleet(app, telling, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("teller", "go", stream=True)
        early = 0
        seen: list[Event] = []
        async with asyncio.timeout(ANSWER_S):
            async for event in run.events():
                early += isinstance(event, Text) and event.turn == 2 and not run.done
                seen.append(event)
        response = await run
    assert early > 1
    steps = [event for event in seen if not isinstance(event, Text) and type(event) is not RunEvent]
    assert [type(step) for step in steps] == [CallStarted, CallAsked, Turn, CallResult, Answer]
    started, asked, turn, result, answer = steps
    assert (started.tool, asked.input) == ("look", {"word": "here"})  # type: ignore[union-attr]
    assert isinstance(turn, Turn)
    assert (turn.number, turn.text, [call.input for call in turn.calls]) == (1, "I look. Wait.", [{"word": "here"}])
    assert isinstance(result, CallResult)
    assert (result.tool, result.outcome, result.content) == ("look", "ok", "seen here")
    assert isinstance(answer, Answer)
    assert answer.response == response
    assert said(seen) == {1: "I look. Wait.", 2: WORDS}


async def test_a_reply_that_broke_off_is_taken_back_before_the_next_is_heard(kafka: str, namespace: str) -> None:
    broken = iter([Reply(content=[text("wrong " * 20)], chunk_s=0.02, drop_after=12)])

    def breaking(request: dict[str, Any]) -> Said:
        return next(broken, SLOWLY)

    async with fleet(app, breaking, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("teller", "go", stream=True)
        seen = await all_of(run.events())
    texts = [event for event in seen if isinstance(event, Text | Discarded)]
    place = next(number for number, event in enumerate(texts) if isinstance(event, Discarded))
    assert place > 0
    assert all("wrong" in event.text for event in texts[:place] if isinstance(event, Text))
    assert said(seen) == {1: WORDS}


async def test_runs_that_share_an_inbox_hear_themselves_alone_and_one_that_did_not_ask_nothing(
    kafka: str, namespace: str
) -> None:
    def echoing(request: dict[str, Any]) -> Said:
        return Reply(content=[text(f"You said {prompt_of(request)}. " * 5)], chunk_s=0.02)

    async with fleet(app, echoing, settings_for(kafka, namespace)) as running:
        runs = [await running.client.submit("teller", f"word{n}", stream=n < 3 or None) for n in range(4)]
        seen = await asyncio.gather(*(all_of(run.events()) for run in runs))
        deltas = [
            read(StreamDelta, r.value)
            for r in await read_until(
                kafka, running.namespace.stream, lambda f: len([r for r in f if b'"end"' in (r.value or b"")]) == 3
            )
        ]
    assert [said(events) for events in seen] == [{1: f"You said word{n}. " * 5} if n < 3 else {} for n in range(4)]
    assert {delta.run_id for delta in deltas} == {run.run_id for run in runs[:3]}


async def test_who_comes_late_hears_the_turn_from_its_beginning(kafka: str, namespace: str) -> None:
    async with fleet(app, telling, settings_for(kafka, namespace)) as running:
        run = await running.client.submit("teller", "go", stream=True, run_id="order-1")
        spoken = asyncio.Event()

        async def listen() -> list[Event]:
            seen: list[Event] = []
            async for event in run.events():
                seen.append(event)
                if isinstance(event, Text) and event.turn == 2:
                    spoken.set()
            return seen

        first = asyncio.create_task(listen())
        await asyncio.wait_for(spoken.wait(), ANSWER_S)
        async with Client.for_app(app, settings=running.settings) as other:
            late = await all_of(other.events("order-1"))
        assert said(late) == said(await first) == {1: "I look. Wait.", 2: WORDS}


async def test_an_agent_worker_that_is_killed_while_its_model_speaks_leaves_nothing_that_counts(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    """As a process, by SIGKILL: the next one makes the call again, and whoever listens hears no word of both as one."""
    settings = settings_for(kafka, namespace)
    await broker_of(settings).apply(topic_specs(app, settings))
    gone = asyncio.Event()

    def script(request: dict[str, Any]) -> Said:
        return SLOWLY if gone.is_set() else Reply(content=[text("never " * 200)], chunk_s=0.05)

    async with ScriptedModel(script) as model, Client.for_app(app, settings=settings) as client:
        victim = worker(kafka, namespace, model.base_url, tmp_path / "first.log")
        try:
            run = await client.submit("teller", "go", stream=True)
            seen: list[Event] = []
            async with asyncio.timeout(ANSWER_S):
                async for event in run.events():
                    seen.append(event)
                    if isinstance(event, Text) and not gone.is_set():
                        await asyncio.to_thread(victim.kill)
                        gone.set()
                        another = worker(kafka, namespace, model.base_url, tmp_path / "second.log")
        except TimeoutError:
            pytest.fail("\n".join(tail(log) for log in tmp_path.glob("*.log")))
        finally:
            await asyncio.to_thread(victim.kill)
            if gone.is_set():
                await asyncio.to_thread(another.kill)
    assert any(isinstance(event, Text) and "never" in event.text for event in seen)
    assert sum(isinstance(event, Discarded) for event in seen) == 1
    assert said(seen) == {1: WORDS}


def worker(kafka: str, namespace: str, model: str, log: Path) -> GuardedProcess:
    argv = [sys.executable, "-m", "anabranch.cli", "worker", "agent", f"{__file__}"]
    environment = {
        "ANTHROPIC_API_KEY": "test", "ANTHROPIC_BASE_URL": model, "ANABRANCH_BOOTSTRAP": kafka,
        "ANABRANCH_NAMESPACE": namespace, "ANABRANCH_PARTITIONS": "4", "ANABRANCH_SESSION_TIMEOUT_S": "6",
    }  # fmt: skip
    return GuardedProcess(Command(argv, environment), log)
