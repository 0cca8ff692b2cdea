"""Sealed runs on a real Kafka: what was said is nowhere to be read, all goes on as ever, and a tenant can be forgotten.

Responsible for: every byte of every topic and of the store after runs that say a secret wherever one can be said; a
hand-over in the middle; other tenants; a key that is deleted. Must never: look into seals themselves
(tests/unit/test_sealed_runs).
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.raw import everything
from tests.support.wait import until

from anabranch import App, Forgotten
from anabranch.cli import anabranch
from anabranch.config import AgentSettings, SealingSettings, Settings, StoreSettings
from anabranch.errors import SealError
from anabranch.events import Text
from anabranch.keys import StoredKeys, stored_keys
from anabranch.messages import RunResponse
from anabranch.testing import Answer, Reply, last_results, prompt_of, result_text, text, tool_use, turn_of

SECRET = "Rosebud-4111-1111"
MASTER = f"m1:{base64.b64encode(b'm' * 32).decode()}"
ANSWER_S = 60.0
app = App("sealed")
got: dict[str, Any] = {}


@pytest.fixture(autouse=True)
async def _closed() -> None:
    got.clear()
    got["gate"], got["asked"] = asyncio.Event(), []


@app.tool(queue="io", serial_key="card", timeout=60)
async def look_up(card: str) -> list[Any]:
    """Looks a card up."""
    got["card"] = card
    return [text(f"the owner of {card}"), text("padding " * 500)]


@app.tool(queue="io", timeout=60)
async def fail(card: str, amount: int = 0) -> str:
    """Fails."""
    raise ValueError(f"no such card: {card}")


@app.tool(queue="io", timeout=60)
async def wait() -> str:
    """Waits until the test says so."""
    got["waits"] = True
    await got["gate"].wait()
    return f"waited for {SECRET}"


app.agent("clerk", model="scripted", tools=["look_up", "fail", "wait"])


def script(request: dict[str, Any]) -> Answer:
    """Says the secret in all that a model may say: texts, arguments, an error, a reply that breaks off."""
    got["asked"].append(request)
    match turn_of(request), prompt_of(request).split()[0]:
        case 1, "refuse":
            return Reply.error(400, message=f"messages.0: {SECRET} is not allowed")
        case 1, "wait":
            return [tool_use("wait", {})]
        case 1, _ if len(got["asked"]) == 1:
            return Reply.error(529, message=f"too much of {SECRET}")
        case 1, _ if len(got["asked"]) == 2:
            return Reply(content=[text(f"I begin with {SECRET}"), text("more")], cut_after=4)
        case 1, _:
            asked = {"card": SECRET}
            wrong = {"card": SECRET, "amount": SECRET}
            return [text(f"Let me see: {SECRET}"), *(tool_use(*c) for c in CALLS(asked, wrong))]
        case _:
            got["results"] = [result_text(block) for block in last_results(request).values()]
            return f"{SECRET} is known."


def CALLS(asked: dict[str, Any], wrong: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("look_up", asked), ("fail", asked), ("fail", wrong), ("wait", {})]


def sealed(settings: Settings, folder: Path, keys: str = "keys") -> Settings:
    """With keys and a store in `folder`, and a log that is cleaned at every occasion."""
    return replace(
        settings,
        sealing=SealingSettings((folder / keys).as_uri(), MASTER),
        storage=StoreSettings(store=(folder / "objects").as_uri(), store_inline_bytes=2048),
        agent=replace(settings.agent, clean_bytes=1, snapshot_age_s=0.1),
    )


def keys_of(running: Fleet) -> StoredKeys:
    found = stored_keys(running.settings.sealing, running.namespace.name)
    assert found is not None
    return found


async def said(running: Fleet) -> dict[str, bytes]:
    """Every byte of every topic of the namespace, headers and keys as well."""
    spaces = running.namespace
    topics = [spec.name for spec in spaces.specs(["io"], 1)]
    found = {}
    for topic in topics:
        records = await everything(running.bootstrap, topic)
        parts = [p for r in records for p in (r.key, r.value, *(v for header in r.headers for v in header))]
        found[topic] = b"\n".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return found


async def test_a_secret_is_nowhere_to_be_read_and_the_run_goes_on_through_a_takeover(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    settings = sealed(settings_for(kafka, namespace), tmp_path)
    async with fleet(app, script, settings, refusals=True) as running:
        run = await running.client.submit(
            "clerk", f"who owns {SECRET}? " * 20, tenant="acme", metadata={"card": SECRET}, stream=True
        )
        hearing = asyncio.create_task(heard(run))
        await until(lambda: "waits" in got, ANSWER_S, "the tool waits")
        first = running.agents[0]
        await running.add_agent()
        await running.stop(first)
        got["gate"].set()
        answer = await asyncio.wait_for(run, ANSWER_S)
        refused = await running.ask("clerk", f"refuse {SECRET}", tenant="acme")
        unknown = await running.ask("nobody", f"hello {SECRET}", tenant="acme")
        spoken = await asyncio.wait_for(hearing, ANSWER_S)
        topics = await said(running)
    assert (answer.status, answer.output, answer.metadata) == ("completed", f"{SECRET} is known.", {"card": SECRET})
    assert got["card"] == SECRET
    assert [SECRET in result for result in got["results"]] == [True] * 4
    assert SECRET in spoken
    assert (refused.error.code, SECRET in refused.error.message) == ("model_rejected", True) if refused.error else False
    assert unknown.error is not None
    assert unknown.error.code == "unknown_agent"
    assert_nowhere(topics, tmp_path)
    assert b"run.snapshot" in topics[f"{namespace}.agent.log"]
    assert b"acme" in topics[f"{namespace}.dead.letters"]
    assert b"text_sealed" in topics[f"{namespace}.agent.stream"]


async def heard(run: Any) -> str:
    return "".join([event.text async for event in run.events() if isinstance(event, Text)])


def assert_nowhere(topics: dict[str, bytes], folder: Path) -> None:
    """Neither as it is nor as base64, wherever in it it begins."""
    forms = [form for shift in range(3) for form in [base64.b64encode(b" " * shift + SECRET.encode())[4:-4]]]
    objects = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(objects) > 3, "nothing lies in the store"
    for name, data in {**topics, **objects}.items():
        assert data or name.endswith("bulk"), f"nothing lies in {name}"
        for form in (SECRET.encode(), *forms):
            assert form not in data, f"{name}: {data[max(0, data.index(form) - 300) :][:600]!r}"


async def test_what_is_sealed_for_a_tenant_opens_for_no_other(kafka: str, namespace: str, tmp_path: Path) -> None:
    settings = sealed(settings_for(kafka, namespace), tmp_path)
    strangers = sealed(settings_for(kafka, namespace), tmp_path, "others")
    async with fleet(app, script, settings) as running:
        got["asked"] += [{}, {}]
        got["gate"].set()
        run = await running.client.submit("clerk", "hello", tenant="acme")
        raw: RunResponse = await asyncio.wait_for(run._answer, ANSWER_S)
        assert raw.output is None
        assert (await running.client.whole(raw, "acme")).output == f"{SECRET} is known."
        with pytest.raises(SealError):
            await running.client.whole(raw, "umbrella")
        async with app.client(settings=strangers) as stranger:
            with pytest.raises(SealError, match="has no key"):
                await stranger.whole(raw, "acme")


async def test_a_tenant_whose_key_is_deleted_is_forgotten_and_no_other_is(
    kafka: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.keys.KEPT_S", 0.0)
    settings = sealed(settings_for(kafka, namespace), tmp_path)
    async with fleet(app, script, settings) as running:
        got["asked"] += [{}, {}]
        acme = await running.client.submit("clerk", "wait", tenant="acme", run_id="acme-1")
        before = await running.client.submit("clerk", "hello", tenant="acme", run_id="acme-0")
        other = await running.client.submit("clerk", "wait", tenant="umbrella")
        await until(lambda: len(got["asked"]) == 5, ANSWER_S, "all have asked the model")
        await keys_of(running).forget("acme")
        got["gate"].set()
        forgotten = await asyncio.wait_for(acme, ANSWER_S)
        assert (await asyncio.wait_for(other, ANSWER_S)).output == f"{SECRET} is known."
        assert (await asyncio.wait_for(before, ANSWER_S)).status == "failed"
        with pytest.raises(Forgotten):
            await running.client.submit("clerk", "hello", tenant="acme")
        assert (await running.ask("clerk", "hello", tenant="umbrella")).status == "completed"
        shown = await asyncio.to_thread(show, running, "acme-1")
    assert forgotten.error is not None
    assert (forgotten.status, forgotten.error.code) == ("failed", "forgotten")
    assert "forgotten" in shown


def show(running: Fleet, run_id: str) -> str:
    found = CliRunner().invoke(anabranch, ["runs", "show", run_id], env=environment(running))
    assert found.exit_code == 0, found.output
    return re.sub(r"\s+", " ", found.output)


def environment(running: Fleet) -> dict[str, str]:
    sealing = running.settings.sealing
    return {
        "ANABRANCH_BOOTSTRAP": running.bootstrap, "ANABRANCH_NAMESPACE": running.namespace.name,
        "ANABRANCH_KEYS": sealing.keys or "", "ANABRANCH_KEYS_MASTER": sealing.keys_master or "",
    }  # fmt: skip


async def test_keys_come_to_a_running_fleet_one_program_after_the_other(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    """Workers first: what clients without keys ask is not sealed, and goes on as it was."""
    settings = sealed(settings_for(kafka, namespace), tmp_path)
    got["asked"] += [{}, {}]
    async with (
        fleet(app, script, settings),
        app.client(settings=settings_for(kafka, namespace)) as poor,
        app.client(settings=settings) as rich,
    ):
        got["gate"].set()
        for client in (poor, rich):
            run = await client.submit("clerk", "hello", tenant="acme")
            assert await asyncio.wait_for(run.output(), ANSWER_S) == f"{SECRET} is known."


async def test_workers_without_keys_refuse_what_is_sealed_and_say_why(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    plain = replace(settings_for(kafka, namespace), agent=AgentSettings())
    async with fleet(app, script, plain), app.client(settings=sealed(plain, tmp_path)) as client:
        run = await client.submit("clerk", "hello", tenant="acme")
        answer = await asyncio.wait_for(run, ANSWER_S)
    assert answer.error is not None
    assert (answer.status, answer.error.code) == ("failed", "invalid_request")
    assert "ANABRANCH_KEYS" in answer.error.message
