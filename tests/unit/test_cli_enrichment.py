"""Runs over many records: the file that is written, and going on with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.wait import until

from anabranch.cli.enriching.enrichment import Enrichment, Order, Stop, at_hand, waited_for
from anabranch.cli.enriching.outfile import OutFile, line_of
from anabranch.cli.enriching.records import BadLine, Recipe, Record, Template, jobs
from anabranch.cli.enriching.tally import Tally
from anabranch.errors import (
    AnabranchError,
    BrokerError,
    Forgotten,
    InvalidRequest,
    ObjectLost,
    StoreError,
    StoreUnavailable,
)
from anabranch.fields import Lane
from anabranch.messages import RunError, RunResponse

RECIPE = Recipe("shop", "analyst", Template("{n}"))
Answering = Callable[[str, str], Awaitable[RunResponse]]


class Agent:
    """Answers each prompt, by default at once and with itself; knows what was asked."""

    def __init__(self, answering: Answering | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.out = self.most = 0
        self._answering = answering or self.echo

    async def submit(
        self, agent: str, input: str, *, run_id: str, tenant: str | None, deadline: float | str | None, lane: Lane
    ) -> Awaitable[RunResponse]:
        self.asked.append((input, run_id))
        return self._counted(self._answering(input, run_id))

    async def _counted(self, answer: Awaitable[RunResponse]) -> RunResponse:
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            return await answer
        finally:
            self.out -= 1

    async def echo(self, prompt: str, run_id: str) -> RunResponse:
        return RunResponse(run_id, "analyst", "r", "completed", output=prompt)


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, tally: Tally) -> None:
        """Shows nothing."""


async def enrich(path: Path, numbers: list[int], agent: Agent, stop: Stop | None = None, **order: Any) -> Tally:
    tally = Tally()
    records: list[Record | BadLine] = [Record(line, {"n": n}) for line, n in enumerate(numbers, 1)]
    with OutFile.opened(path, RECIPE.mark) as out:
        work = Enrichment(Order("analyst", **order), agent, out, tally, Silent(), stop or Stop())
        await work.run(at_hand(jobs(records, RECIPE)))
    return tally


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def outputs(path: Path) -> list[Any]:
    return [line["output"] for line in read(path)]


async def test_each_record_is_run_once_and_its_line_is_as_the_contract_has_it(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    tally = await enrich(out, [5], Agent())
    [line] = read(out)
    assert list(line) == ["record", "output", "run_id", "status", "usage"]
    assert (line["record"], line["output"], line["status"]) == ({"n": 5}, 5, "completed")
    assert line["usage"]["discarded"]["input_tokens"] == 0
    assert (tally.completed, tally.over) == (1, 1)


def test_output_that_is_no_json_stays_a_text_and_a_failure_says_why() -> None:
    failed = RunResponse("r", "a", None, "failed", error=RunError("max_turns", "too many"))
    assert json.loads(line_of({}, RunResponse("r", "a", None, "completed", output="NaN")))["output"] == "NaN"
    line = json.loads(line_of({}, failed))
    assert (line["output"], line["error"]) == (None, {"code": "max_turns", "message": "too many"})


@pytest.mark.parametrize(
    "said", ['{"name": "\\ud83d"}', "1e999", "[-1e400]", "[" * 1023 + "]" * 1023, "1}", '1, "a": 2', "9" * 5000]
)
async def test_an_output_that_no_reader_of_the_file_would_take_stays_a_text(tmp_path: Path, said: str) -> None:
    """Half a character, or a number without end, is JSON to some; the whole file could not be read again."""
    out = tmp_path / "out.jsonl"

    async def odd(prompt: str, run_id: str) -> RunResponse:
        return RunResponse(run_id, "a", None, "completed", output=said)

    await enrich(out, [1], Agent(odd))
    assert (await enrich(out, [1], Agent())).there == 1
    assert outputs(out) == [said]


async def test_no_more_runs_are_out_than_asked_for(tmp_path: Path) -> None:
    async def slowly(prompt: str, run_id: str) -> RunResponse:
        for _ in range(3):
            await asyncio.sleep(0)
        return RunResponse(run_id, "a", None, "completed", output=prompt)

    agent = Agent(slowly)
    await enrich(tmp_path / "out.jsonl", list(range(50)), agent, concurrency=7)
    assert agent.most == 7
    assert len(agent.asked) == 50


async def test_the_same_command_runs_only_what_is_not_completed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await enrich(out, [1, 2, 3], Agent())
    agent = Agent()
    tally = await enrich(out, [1, 2, 3, 4], agent)
    assert [prompt for prompt, _ in agent.asked] == ["4"]
    assert (tally.there, tally.completed) == (3, 1)
    assert sorted(outputs(out)) == [1, 2, 3, 4]


async def test_a_failed_record_is_run_again_under_a_new_id_and_its_line_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    async def failing(prompt: str, run_id: str) -> RunResponse:
        return RunResponse(run_id, "a", None, "failed", error=RunError("internal", "no"))

    first, second, third = Agent(failing), Agent(failing), Agent()
    assert (await enrich(out, [1], first)).failed == 1
    await enrich(out, [1], second)
    assert len(read(out)) == 1
    await enrich(out, [1], third)
    [(_, one)], [(_, two)], [(_, three)] = first.asked, second.asked, third.asked
    assert (two, three) == (f"{one}.2", f"{one}.3")
    assert [(line["run_id"], line["status"]) for line in read(out)] == [(three, "completed")]


async def test_a_line_that_a_crash_tore_is_dropped_and_its_record_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await enrich(out, [1, 2], Agent())
    whole = out.read_bytes()
    for cut in (1, 20, len(whole) // 2 - 2):
        out.write_bytes(whole[:-cut] if cut > 1 else whole[:-20])
        agent = Agent()
        await enrich(out, [1, 2], agent)
        assert [prompt for prompt, _ in agent.asked] == ["2"]
        assert sorted(outputs(out)) == [1, 2]


async def test_a_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await enrich(out, [1], Agent())
    out.write_bytes(out.read_bytes().rstrip(b"\n"))
    agent = Agent()
    await enrich(out, [1, 2], agent)
    assert [prompt for prompt, _ in agent.asked] == ["2"]
    assert outputs(out) == [1, 2]


@pytest.mark.parametrize("content", [b"notes\n", b'{"a": 1}\n', b"no end", b'{"run_id": "mine", "status": "ok"}\n'])
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(AnabranchError, match="line 1 is not one"):
        await enrich(out, [1], Agent())
    assert out.read_bytes() == content


async def test_answers_of_another_template_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await enrich(out, [1], Agent())
    with pytest.raises(AnabranchError, match="another command"), OutFile.opened(out, "0" * 8):
        pass


async def test_a_file_has_one_writer(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.jsonl"
    with OutFile.opened(out, RECIPE.mark), pytest.raises(AnabranchError, match="another process"):
        await enrich(out, [1], Agent())


async def test_in_order_lines_wait_for_those_before_them(tmp_path: Path) -> None:
    out, gate = tmp_path / "out.jsonl", asyncio.Event()

    async def first_last(prompt: str, run_id: str) -> RunResponse:
        if prompt == "0":
            await gate.wait()
        return RunResponse(run_id, "a", None, "completed", output=prompt)

    agent = Agent(first_last)
    work = asyncio.create_task(enrich(out, list(range(30)), agent, ordered=True, concurrency=3))
    await until(lambda: len(agent.asked) == 12, what="four times the concurrency is ahead, and no more")
    assert out.read_bytes() == b""
    gate.set()
    await work
    assert outputs(out) == list(range(30))


async def test_in_order_what_failed_is_put_where_it_belongs_when_it_is_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    async def failing(prompt: str, run_id: str) -> RunResponse:
        error = RunError("internal", "no") if prompt == "1" else None
        return RunResponse(run_id, "a", None, "failed" if error else "completed", output=prompt, error=error)

    await enrich(out, [0, 1, 2], Agent(failing), ordered=True)
    await enrich(out, [0, 1, 2], Agent(), ordered=True)
    assert outputs(out) == [0, 1, 2]


async def test_a_stop_waits_for_what_runs_writes_it_and_asks_for_nothing_more(tmp_path: Path) -> None:
    out, gate, stop = tmp_path / "out.jsonl", asyncio.Event(), Stop()

    async def gated(prompt: str, run_id: str) -> RunResponse:
        await gate.wait()
        return RunResponse(run_id, "a", None, "completed", output=prompt)

    agent = Agent(gated)
    work = asyncio.create_task(enrich(out, list(range(100)), agent, stop, concurrency=5))
    await until(lambda: agent.out == 5)
    stop.ask()
    gate.set()
    tally = await work
    assert (tally.completed, tally.running, len(agent.asked)) == (5, 0, 5)
    again = Agent()
    await enrich(out, list(range(100)), again)
    assert len(again.asked) == 95
    assert sorted(outputs(out)) == list(range(100))


@pytest.mark.parametrize("twice", [True, False])
async def test_a_stop_ends_at_the_second_request_or_when_its_time_is_up(tmp_path: Path, twice: bool) -> None:
    stop = Stop()

    async def never(prompt: str, run_id: str) -> RunResponse:
        await asyncio.Event().wait()
        raise AssertionError

    agent = Agent(never)
    drain_s = 60.0 if twice else 0.01
    work = asyncio.create_task(enrich(tmp_path / "out.jsonl", [1, 2], agent, stop, drain_s=drain_s))
    await until(lambda: agent.out == 2)
    stop.ask()
    if twice:
        stop.ask()
    tally = await asyncio.wait_for(work, 5)
    assert tally.ran == 0
    assert agent.out == 0


async def test_a_request_that_no_worker_would_take_is_a_failed_record(tmp_path: Path) -> None:
    class Refusing(Agent):
        async def submit(self, agent: str, input: str, **rest: Any) -> Awaitable[RunResponse]:
            if input == "1":
                raise InvalidRequest("too deep")
            return await super().submit(agent, input, **rest)

    out = tmp_path / "out.jsonl"
    tally = await enrich(out, [1, 2], Refusing())
    assert (tally.completed, tally.failed, tally.errors) == (1, 1, {"invalid_request": 1})
    assert {line["status"] for line in read(out)} == {"completed", "failed"}


async def test_a_record_that_the_store_does_not_take_costs_only_its_line(tmp_path: Path) -> None:
    class Refusing(Agent):
        async def submit(self, agent: str, input: str, **rest: Any) -> Awaitable[RunResponse]:
            if input == "1":
                raise StoreError("larger than 64 MB")
            return await super().submit(agent, input, **rest)

    tally = await enrich(tmp_path / "out.jsonl", [1, 2], Refusing())
    assert (tally.completed, tally.errors) == (1, {"invalid_request": 1})


async def test_an_answer_that_the_store_has_lost_costs_only_its_line_and_is_asked_for_anew(tmp_path: Path) -> None:
    async def losing(prompt: str, run_id: str) -> RunResponse:
        if prompt == "1":
            raise ObjectLost("is not in the store")
        return RunResponse(run_id, "a", None, "completed", output=prompt)

    out, agent = tmp_path / "out.jsonl", Agent()
    tally = await enrich(out, [1, 2], Agent(losing))
    assert (tally.completed, tally.errors) == (1, {"internal": 1})
    await enrich(out, [1, 2], agent)
    assert [prompt for prompt, _ in agent.asked] == ["1"]
    assert sorted(outputs(out)) == [1, 2]


@pytest.mark.parametrize("error", [StoreError("no store is set"), StoreUnavailable("away"), Forgotten("gone")])
async def test_a_store_that_nothing_can_be_had_from_ends_it_and_nothing_is_asked_for_again(
    tmp_path: Path, error: StoreError
) -> None:
    async def raising(prompt: str, run_id: str) -> RunResponse:
        raise error

    first, second = Agent(raising), Agent()
    with pytest.raises(StoreError, match=str(error)):
        await enrich(tmp_path / "out.jsonl", [1], first)
    await enrich(tmp_path / "out.jsonl", [1], second)
    assert second.asked == first.asked, "the same run: its answer is had again"


async def test_a_dead_broker_ends_it_and_what_was_answered_stays(tmp_path: Path) -> None:
    async def dying(prompt: str, run_id: str) -> RunResponse:
        if prompt == "3":
            raise BrokerError("gone")
        return RunResponse(run_id, "a", None, "completed", output=prompt)

    out = tmp_path / "out.jsonl"
    with pytest.raises(BrokerError, match="gone"):
        await enrich(out, [1, 2, 3, 4, 5], Agent(dying), concurrency=1)
    assert outputs(out)[:2] == [1, 2]
    assert 3 not in outputs(out)


async def test_items_of_a_pipe_come_one_by_one_and_its_errors_too() -> None:
    def items() -> Iterator[int]:
        yield from range(200)
        raise AnabranchError("torn")

    got: list[int] = []

    async def take() -> None:
        async for item in waited_for(items()):
            got.append(item)

    with pytest.raises(AnabranchError, match="torn"):
        await take()
    assert got == list(range(200))
