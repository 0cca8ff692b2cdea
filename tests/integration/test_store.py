"""Large things by reference, on a real Kafka: what goes through the store reaches model, tool and client as it was.

Responsible for: inputs, arguments, results, replies and answers that no record takes; what happens without a store, or
without an object. Must never: test the store by itself (tests/unit/test_store).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.raw import everything
from tests.support.wait import until

from anabranch import App
from anabranch.config import Settings, StoreSettings
from anabranch.content import image, text
from anabranch.errors import InvalidRequest, StoreError
from anabranch.messages import ReplyTo, RunRequest
from anabranch.testing import Answer, last_results, prompt_of, result_text, tool_use, turn_of

MB = 1_000_000
ANSWER_S = 90.0
"""How long an answer may take: 20 MB go through three programs on a machine that is busy with other things."""
app = App("large")
got: dict[str, Any] = {}


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


PHOTO = image(noise(14 * MB), "image/png")
LETTERS = "".join(chr(ord("a") + byte % 26) for byte in noise(900_000, 2))


@pytest.fixture(autouse=True)
async def _closed() -> None:
    got.clear()
    got["gate"] = asyncio.Event()


@app.tool(queue="io", max_result="25MB", timeout=60)
async def photograph() -> list[Any]:
    """Gives a photograph of 20 MB, with what is on it."""
    return [PHOTO, text("a photograph")]


@app.tool(queue="io", timeout=60)
async def keep(document: str) -> str:
    """Keeps a document."""
    got["document"] = document
    return f"{len(document)} letters kept"


@app.tool(queue="io", timeout=60)
async def wait() -> str:
    """Waits until the test says so."""
    await got["gate"].wait()
    return "waited"


app.agent("archivist", model="scripted", tools=["photograph", "keep", "wait"])


def with_store(kafka: str, namespace: str, folder: Path, **more: Any) -> Settings:
    return replace(settings_for(kafka, namespace), storage=StoreSettings(store=folder.as_uri(), **more))


def kept(folder: Path) -> list[Path]:
    """The objects of runs: the workers' own of their start are small."""
    there = (path for path in folder.rglob("*") if "#" not in path.name)  # while it is written it has another name
    return [path for path in there if path.is_file() and path.stat().st_size > 1000]


async def test_what_no_record_takes_arrives_as_it_was(kafka: str, namespace: str, tmp_path: Path) -> None:
    """An input of 5 MB, an argument and an answer of 900 kB, a result of 20 MB with an image."""
    question = LETTERS * 6

    def script(request: dict[str, Any]) -> Answer:
        match turn_of(request):
            case 1:
                got["question"] = prompt_of(request)
                return [tool_use("keep", {"document": LETTERS}), tool_use("photograph", {})]
            case _:
                got["results"] = list(last_results(request).values())
                got["reply"] = request["messages"][1]["content"]
                return LETTERS

    async with fleet(app, script, with_store(kafka, namespace, tmp_path)) as running:
        answer = await running.ask("archivist", question, within_s=ANSWER_S, tenant="acme")
        logged = [
            record
            for topic in ("log", "responses")
            for record in await everything(running.bootstrap, getattr(running.namespace, topic))
        ]
    assert (answer.status, answer.output, answer.content) == ("completed", LETTERS, None), answer.error
    assert got["question"] == question
    assert got["document"] == LETTERS
    assert got["reply"][0]["input"] == {"document": LETTERS}
    assert result_text(got["results"][0]) == f"{len(LETTERS)} letters kept"
    assert got["results"][1]["content"] == [PHOTO, text("a photograph")]
    assert sum(len(record.value) for record in logged) < 20_000, "large things lie in the log"
    assert {path.parent.name for path in kept(tmp_path)} == {"tenant=acme"}
    assert len(kept(tmp_path)) == 5, "the answer is the last reply's own object"


async def test_a_run_that_refers_to_the_store_is_taken_over(kafka: str, namespace: str, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if turn_of(request) == 1:
            return [tool_use("photograph", {}), tool_use("wait", {})]
        got["results"] = list(last_results(request).values())
        return "Both."

    async with fleet(app, script, with_store(kafka, namespace, tmp_path)) as running:
        asking = asyncio.create_task(running.ask("archivist", LETTERS * 2, within_s=ANSWER_S))
        await until(lambda: len(kept(tmp_path)) == 2, 60, "the input and the photograph are kept")
        first = running.agents[0]
        await running.add_agent()
        await running.stop(first)
        got["gate"].set()
        answer = await asking
    assert (answer.status, answer.output) == ("completed", "Both."), answer.error
    assert got["results"][0]["content"] == [PHOTO, text("a photograph")]


async def test_a_run_whose_object_is_gone_fails_and_names_it(kafka: str, namespace: str, tmp_path: Path) -> None:
    """And no other run does."""

    def script(request: dict[str, Any]) -> Answer:
        if turn_of(request) == 1 and request["messages"][0]["content"] == "photograph":
            return [tool_use("photograph", {}), tool_use("wait", {})]
        return "Fine."

    async with fleet(app, script, with_store(kafka, namespace, tmp_path)) as running:
        asking = asyncio.create_task(running.ask("archivist", "photograph", within_s=ANSWER_S))
        await until(lambda: kept(tmp_path), 60, "the photograph is kept")
        async with asyncio.timeout(60):
            async for event in running.client.events(await _only_run(running)):
                if event.type == "tool.returned":
                    break
        [photograph] = kept(tmp_path)
        photograph.unlink()
        got["gate"].set()
        failed, fine = await asking, await running.ask("archivist", "hello")
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "internal")
    assert photograph.name in failed.error.message
    assert fine.status == "completed"


async def _only_run(running: Fleet) -> str:
    found = await everything(running.bootstrap, running.namespace.requests)
    return str(found[0].key.decode())


async def test_a_reference_that_a_client_made_up_costs_only_its_run(kafka: str, namespace: str, tmp_path: Path) -> None:
    async with fleet(app, lambda request: "Fine.", with_store(kafka, namespace, tmp_path)) as running:
        reference = await running.client._store.put(b'[{"role":"user","content":"secret"}]', "acme", 5.0)

        async def ask(run_id: str, tenant: str | None, named: str) -> Any:
            answer = running.client._expect(run_id)
            inbox = ReplyTo(running.client._inbox)
            request = RunRequest(run_id, "archivist", messages_ref=named, tenant=tenant, reply_to=inbox)
            await running.client._request(request, "interactive")
            return await asyncio.wait_for(answer, ANSWER_S)

        own = await ask("own", "acme", reference)
        stranger = await ask("stranger", "other", reference)
        huge = await ask("huge", "acme", f"{reference.partition(';')[0]};999999999999")
    assert own.status == "completed"
    assert (stranger.status, stranger.error.code) == ("failed", "internal")
    assert (huge.status, huge.error.code) == ("failed", "invalid_request")
    assert "ANABRANCH_STORE_MAX_BYTES" in huge.error.message


async def test_without_a_store_a_large_thing_fails_clearly_and_alone(kafka: str, namespace: str) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if turn_of(request) == 1:
            return [tool_use("photograph", {}), tool_use("keep", {"document": "short"})]
        got["results"] = [result_text(block) for block in last_results(request).values()]
        return "Only one."

    async with fleet(app, script, settings_for(kafka, namespace)) as running:
        with pytest.raises(InvalidRequest, match="ANABRANCH_STORE"):
            await running.client.submit("archivist", LETTERS * 2)
        answer = await running.ask("archivist", within_s=ANSWER_S)
    assert (answer.status, answer.calls.failed) == ("completed", 1)
    assert "ANABRANCH_STORE" in got["results"][0]
    assert got["results"][1] == "5 letters kept"


async def test_a_client_without_the_store_hears_where_the_answer_lies(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    async with (
        fleet(app, lambda request: LETTERS, with_store(kafka, namespace, tmp_path)),
        app.client(settings=settings_for(kafka, namespace)) as poor,
    ):
        run = await poor.submit("archivist", "hi")
        with pytest.raises(StoreError, match=r"sha256:.*ANABRANCH_STORE"):
            await asyncio.wait_for(run.output(), ANSWER_S)
