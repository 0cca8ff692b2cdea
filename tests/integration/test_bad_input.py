"""Input that is far too much, too deep, from the future, or there twice: it costs its own run or call, and no other.

Responsible for: what a model and tools may send that no wire would carry, and records of ours that come again, out of
order and on wrong partitions. Must never: test garbage that is no record of ours (test_requests).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.support.fleet import ANSWER_S, PARTITIONS, Fleet, fleet, settings_for
from tests.support.raw import Record, produce, read_until
from tests.support.wait import until

from anabranch import App
from anabranch.agent import fold
from anabranch.agent.state import Partition
from anabranch.content import image, text
from anabranch.log_events import Event, ModelReplied
from anabranch.testing import Answer, last_results, prompt_of, result_text, tool_use, turn_of
from anabranch.topics import partition_of

pytestmark = pytest.mark.timeout(120)

app = App("bad-input")
HUGE = 50_000_000
gate = asyncio.Event()
ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _closed_gate() -> None:
    gate.clear()
    ran.clear()


@app.tool(queue="io", max_result="64kB", timeout=60)
async def give(how: str) -> Any:
    """Gives 50 MB."""
    match how:
        case "text":
            return "x" * HUGE
        case "json":
            return {"a": ["x" * 1000] * (HUGE // 1000)}
        case "blocks":
            return [text("look:"), text("x" * HUGE)]
        case _:
            return image(b"x" * HUGE, "image/png")


@app.tool(queue="io", max_result="200MB", timeout=60)
async def give_whole() -> str:
    """Gives 50 MB, and is declared to give whole what no record can carry."""
    return "x" * HUGE


@app.tool(queue="io")
async def add(a: int) -> int:
    """Adds one."""
    ran[str(a)] += 1
    return a + 1


@app.tool(queue="io", timeout=60)
async def wait() -> str:
    """Waits until the test lets it go."""
    ran["wait"] += 1
    await gate.wait()
    return "waited"


app.agent("runner", model="scripted", tools=[give, give_whole, add, wait])


async def results_of(running: Fleet, within_s: float = ANSWER_S) -> list[tuple[bool, str]]:
    """Whether each call of the one batch failed, and what the model was told."""
    run = await running.ask("runner", within_s=within_s)
    assert run.status == "completed", str(run)[:3000]
    blocks = last_results(running.request).values()
    return [(block.get("is_error", False), result_text(block)) for block in blocks]


def one_batch(*calls: tuple[str, dict[str, Any] | str]) -> Any:
    return lambda request: [tool_use(*call) for call in calls] if turn_of(request) == 1 else "Done."


async def test_results_of_50_mb_are_cut_visibly_or_say_that_they_cannot_be_sent(kafka: str, namespace: str) -> None:
    hows = ["text", "json", "blocks", "image"]
    script = one_batch(*(("give", {"how": how}) for how in hows), ("give_whole", {}), ("add", {"a": 1}))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        *cut, whole, sibling = await results_of(running, within_s=90)
    assert sibling == (False, "2")
    assert [(failed, len(told) < 70_000) for failed, told in cut] == [(False, True)] * 4
    sizes = "of 50,000,000 bytes shown", "of 50,150,007 bytes shown", "of 50,000,000 bytes shown", "of 66,666,746 bytes"
    assert [size for size, (_, told) in zip(sizes, cut, strict=True) if size not in told[-200:]] == []
    assert whole[0]
    assert "max_result" in whole[1]


async def test_a_name_as_long_as_can_be_and_an_input_a_thousand_levels_deep_are_error_results(
    kafka: str, namespace: str
) -> None:
    """The latter is JSON that orjson reads and cannot write. A longer name breaks its reply."""
    deep = '{"a": ' + "[" * 1000 + "]" * 1000 + "}"
    script = one_batch(("n" * 200, {}), ("add", deep), ("add", {"a": 1}))
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        named, nested, sibling = await results_of(running)
    assert sibling == (False, "2")
    assert [(failed, len(told) < 3000) for failed, told in (named, nested)] == [(True, True)] * 2


async def test_an_input_of_a_million_characters_is_more_than_a_record_carries_and_fails_its_run_alone(
    kafka: str, namespace: str
) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return tool_use("none", {"n": "n" * 1_000_000}) if prompt_of(request) == "too much" else "Done."

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        failed, other = await running.ask_all("runner", ["too much", "hi"])
    assert failed.error is not None
    assert "does not fit into the log" in failed.error.message
    assert other.output == "Done."


# --- records of ours ------------------------------------------------------------------------------------------


def neighbours(count: int) -> list[str]:
    """Run ids of one partition."""
    names = (f"order-{number}" for number in range(1000))
    return [name for name in names if partition_of(name, PARTITIONS) == 0][:count]


def script(request: dict[str, Any]) -> Answer:
    """Calls the tool that the prompt says, and answers with its result."""
    if turn_of(request) == 1:
        name, _, argument = prompt_of(request).partition(" ")
        return tool_use(name, {"a": int(argument)} if argument else {})
    return result_text(next(iter(last_results(request).values())))


async def test_an_event_of_a_type_from_the_future_parks_its_run_and_no_other(
    kafka: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    parked, *others = neighbours(3)
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        await running.client.submit("runner", "wait", run_id=parked)
        await until(lambda: ran["wait"] == 1, ANSWER_S, "its call runs")
        opening, *_ = await read_until(kafka, running.namespace.log, lambda found: len(found) > 0)
        life = dict(opening.headers)["ce_life"]
        headers = [("ce_type", b"run.exploded"), ("ce_runid", parked.encode()), ("ce_life", life)]
        await produce(kafka, running.namespace.log, b"{}", key=parked.encode(), partition=0, headers=headers)
        await until(lambda: f"run {parked} is parked" in caplog.text, ANSWER_S, "it says so")
        gate.set()
        answers = [(await running.ask("runner", f"add {n}", run_id=name)).output for n, name in enumerate(others)]
        assert answers == ["1", "2"]
        assert running.model.calls == 1 + 2 * len(others), "the parked run owes its next model call for ever"


async def test_an_event_that_the_fold_fails_on_fails_its_run_alone(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours, that only one run meets."""
    broken, *others = neighbours(3)
    dispatch = fold._dispatch

    def defective(state: Partition, event: Event, offset: int, at: float) -> None:
        if isinstance(event, ModelReplied) and event.run_id == broken:
            raise ZeroDivisionError("a defect")
        dispatch(state, event, offset, at)

    monkeypatch.setattr(fold, "_dispatch", defective)
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        asked = [running.ask("runner", f"add {n}", run_id=name) for n, name in enumerate([broken, *others])]
        failed, *answers = await asyncio.gather(*asked)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "internal")
    assert "ZeroDivisionError" in failed.error.message
    assert [answer.output for answer in answers] == ["2", "3"]


async def test_records_that_come_again_out_of_order_and_on_wrong_partitions_change_nothing(
    kafka: str, namespace: str
) -> None:
    count = 6
    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        first = [await running.ask("runner", f"add {n}", run_id=f"order-{n}") for n in range(count)]
        names = running.namespace
        for topic, least in (
            (names.registry, 2),
            (names.log, 4 * count),
            (names.calls("io"), count),
            (names.requests, count),
        ):
            found = await records_of(kafka, topic, least)
            for record in reversed(found):
                await again(kafka, topic, record, record.partition)
                if topic != names.registry:
                    await again(kafka, topic, record, (record.partition + 1) % PARTITIONS)
        later = [await running.ask("runner", f"add {n + count}", run_id=f"later-{n}") for n in range(count)]
        copies = await read_until(kafka, names.responses, lambda found: len(found) >= 3 * count)
    assert [run.output for run in first + later] == [str(n + 1) for n in range(2 * count)]
    assert (running.model.calls, dict(ran)) == (4 * count, {str(n): 1 for n in range(2 * count)})
    bodies = {record.key: {other.value for other in copies if other.key == record.key} for record in copies}
    assert {len(values) for values in bodies.values()} == {1}


async def records_of(kafka: str, topic: str, least: int) -> list[Record]:
    return await read_until(kafka, topic, lambda found: len(found) >= least)


async def again(kafka: str, topic: str, record: Record, partition: int) -> None:
    await produce(kafka, topic, record.value, key=record.key, partition=partition, headers=list(record.headers))
