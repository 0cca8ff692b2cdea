"""`anabranch run` and `anabranch runs`, as processes, on a real Kafka with workers that run in the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.shell import Ended, anabranch, environment, on_a_terminal, started

from anabranch import App
from anabranch.testing import Reply, prompt_of, text, tool_use, turn_of

FINAL = json.dumps({"sum": 3})


def an_app(gate: asyncio.Event) -> App:
    app = App("commands")

    @app.tool(queue="io")
    async def add(a: int, b: int) -> int:
        """Add."""
        await asyncio.sleep(0.05)
        return a + b

    @app.tool(queue="io")
    async def fail() -> int:
        """Fail."""
        raise LookupError("nothing here")

    @app.tool(queue="io", timeout=30)
    async def wait() -> str:
        """Wait."""
        await gate.wait()
        return "waited"

    app.agent("adder", model="scripted", tools=["add", "fail"])
    app.agent("waiter", model="scripted", tools=["wait"])
    app.agent("speaker", model="scripted", tools=["add"])
    app.agent("hasty", model="scripted", tools=["add"], max_turns=1)
    return app


def script(request: Any) -> Any:
    if prompt_of(request).startswith("speak"):
        said = [[text("Let me add."), tool_use("add", {"a": 1, "b": 2})], [text("Slowly\n" + "spoken words " * 8)]]
        return Reply(content=said[turn_of(request) - 1], chunk_s=0.4 if prompt_of(request) == "speak slowly" else 0.02)
    if turn_of(request) > 1:
        return [text(FINAL)]
    if any(tool["name"] == "wait" for tool in request["tools"]):
        return [tool_use("wait", {})]
    return [text("adding"), tool_use("add", {"a": 1, "b": 2}), tool_use("fail", {})]


class World:
    """The fleet, its Kafka, and the commands pointed at it."""

    def __init__(self, running: Fleet, gate: asyncio.Event) -> None:
        self.fleet, self.gate = running, gate
        kafka, worker = running.settings.kafka, running.settings.worker
        self.env = environment(ANABRANCH_BOOTSTRAP=kafka.bootstrap, ANABRANCH_NAMESPACE=str(worker.namespace))

    async def run(self, *arguments: str, stdin: str | None = None) -> Ended:
        return await anabranch(*arguments, stdin=stdin, env=self.env)

    async def json(self, *arguments: str) -> Any:
        ended = await self.run(*arguments, "--json")
        assert ended.status == 0, ended.stderr
        return json.loads(ended.stdout)


@asynccontextmanager
async def world(kafka: str, namespace: str) -> AsyncIterator[World]:
    gate = asyncio.Event()

    async def speaking(request: Any) -> Any:
        if prompt_of(request) == "speak later":
            await gate.wait()
        return script(request)

    async with fleet(an_app(gate), speaking, settings_for(kafka, namespace)) as running:
        yield World(running, gate)
        gate.set()


async def test_a_run_shows_its_steps_and_prints_its_answer_and_can_be_looked_at_later(
    kafka: str, namespace: str
) -> None:
    async with world(kafka, namespace) as w:
        ended = await w.run("run", "adder", "-", "--run-id", "r-1", "--tenant", "acme", stdin="What is 1 + 2?")
        assert (ended.status, ended.stdout) == (0, f"{FINAL}\n")
        for step in ("admitted after", "2 calls: add, fail", "add: ok in", "fail: error", "nothing here", "its answer"):
            assert step in ended.stderr

        shown, replayed, watched = await asyncio.gather(
            *(w.run("runs", command, "r-1") for command in ("show", "replay", "watch"))
        )
        assert (shown.status, replayed.status, watched.status) == (0, 0, 0)
        for word in ("r-1", "completed", "turn 1", "✓ add", "✗ fail", "turn 2", "2 turns · 2 calls · 1 failed", FINAL):
            assert word in shown.stdout
        for line in ("run.requested", "→ the run opens", "a batch of 2 opens", "the batch is complete", "is completed"):
            assert line in replayed.stdout
        assert watched.stdout.splitlines()[-1] == FINAL

        data, [listed], none = await asyncio.gather(
            w.json("runs", "show", "r-1"),
            w.json("runs", "list", "--status", "completed", "--agent", "adder"),
            w.json("runs", "list", "--status", "failed"),
        )
        calls = {row["name"]: row for row in data["rows"] if row["kind"] == "call"}
        assert calls["add"]["run_s"] >= 0.05
        assert data["response"]["calls"] == {"total": 2, "failed": 1, "batches": 1, "widest": 2}
        assert (listed["run_id"], listed["calls"], listed["tenant"]) == ("r-1", 2, "acme")
        assert none == []


async def test_on_a_terminal_the_words_appear_as_they_are_spoken_and_the_answer_once(
    kafka: str, namespace: str
) -> None:
    async with world(kafka, namespace) as w:
        status, shown = await on_a_terminal("run", "speaker", "speak slowly", "--run-id", "s-1", env=w.env)
        at = {mark: shown.find(mark) for mark in ("Let me add.", '→ add {"a": 1, "b": 2}', "Slowly", "completed")}
        assert status == 0
        assert -1 < at["Let me add."] < at['→ add {"a": 1, "b": 2}'] < at["Slowly"] < at["completed"], shown
        growing = [shown.count("spoken words " * count) for count in (1, 4, 8)]
        assert growing[0] > growing[2] >= 1
        assert shown[at["completed"] :].count("Slowly") == 1

        options = ("--no-stream", "--quiet")
        silent = await asyncio.gather(*(on_a_terminal("run", "speaker", "speak", each, env=w.env) for each in options))
        assert [shown.count("Slowly") for _, shown in silent] == [1, 1]


async def test_elsewhere_the_words_come_line_by_line_to_those_who_ask(kafka: str, namespace: str) -> None:
    async with world(kafka, namespace) as w:
        asked, plain = await asyncio.gather(
            w.run("run", "speaker", "speak", "--stream", "--run-id", "s-2"), w.run("run", "speaker", "speak")
        )
        await w.fleet.client.submit("speaker", "speak later", stream=True, run_id="s-3")
        async with started("-m", "anabranch.cli", "runs", "watch", "s-3", env=w.env) as watcher, asyncio.timeout(60):
            assert watcher.stdout is not None
            assert b"admitted" in await watcher.stdout.readline()
            w.gate.set()
            watched, _ = await watcher.communicate()
        for told in (asked.stderr, watched.decode()):
            said = [line.partition("│ ")[2] for line in told.splitlines() if "│" in line]
            assert said == ["Let me add.", "→ add", "Slowly", "spoken words " * 8]
        assert "│" not in plain.stderr
        assert asked.stdout == plain.stdout == "Slowly\n" + "spoken words " * 8 + "\n"


async def test_a_run_that_does_not_complete_exits_1_with_the_reason_on_stderr(kafka: str, namespace: str) -> None:
    async with world(kafka, namespace) as w:
        hasty, nobody = await asyncio.gather(w.run("run", "hasty", "go"), w.run("run", "nobody", "go", "--quiet"))
        assert hasty.status == nobody.status == 1
        assert "failed: max_turns" in hasty.stderr
        assert nobody.stderr.startswith("failed: unknown_agent")
        assert nobody.stdout == ""


async def test_an_open_run_is_watched_joined_and_cancelled(kafka: str, namespace: str) -> None:
    async with world(kafka, namespace) as w:
        await w.fleet.client.submit("waiter", "go", run_id="open")
        watching = started("-m", "anabranch.cli", "runs", "watch", "open", env=w.env)
        joining = started("-m", "anabranch.cli", "run", "waiter", "go", "--run-id", "open", env=w.env)
        async with watching as watcher, joining as joiner:
            assert watcher.stdout is not None
            assert joiner.stderr is not None
            async with asyncio.timeout(30):
                while b"wait" not in await watcher.stdout.readline():
                    pass
                while b"wait" not in await joiner.stderr.readline():
                    pass
            assert [run["status"] for run in await w.json("runs", "list")] == ["running"]
            assert "running" in (await w.run("runs", "show", "open")).stdout

            cancelled = await w.run("runs", "cancel", "open", "--reason", "not wanted")
            assert (cancelled.status, cancelled.stderr) == (0, "run open is cancelled\n")
            async with asyncio.timeout(30):
                out, _ = await watcher.communicate()
                _, err = await joiner.communicate()
        assert (watcher.returncode, joiner.returncode) == (1, 1)
        assert b"cancelled: not wanted" in out
        assert b"cancelled: not wanted" in err
        again = await w.run("runs", "cancel", "open")
        assert again.status == 1
        assert "has ended already: cancelled" in again.stderr


async def test_an_unknown_run_is_a_failure_that_says_so(kafka: str, namespace: str) -> None:
    async with fleet(App("none"), script, settings_for(kafka, namespace), agents=0) as running:
        w = World(running, asyncio.Event())
        commands = ("show", "watch", "cancel", "replay")
        for ended in await asyncio.gather(*(w.run("runs", command, "nope") for command in commands)):
            assert ended.status == 1
            assert "there is no run 'nope'" in ended.stderr


async def test_a_request_that_nobody_has_taken_yet_is_known_and_can_be_cancelled(kafka: str, namespace: str) -> None:
    async with fleet(App("none"), script, settings_for(kafka, namespace), agents=0) as running:
        w = World(running, asyncio.Event())
        await running.client.submit("adder", "go", run_id="early")
        shown = await w.run("runs", "show", "early")
        assert (shown.status, "waits to be admitted" in shown.stderr) == (1, True)
        cancelled = await w.run("runs", "cancel", "early")
        assert (cancelled.status, "will be cancelled" in cancelled.stderr) == (0, True)
