"""`anabranch enrich`, as a process, on a real Kafka with workers that run in the test."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.shell import Ended, anabranch, environment, started
from tests.support.wait import until

from anabranch import App
from anabranch.testing import prompt_of, text


class World:
    """A model that answers with its prompt, unless it is told to fail or to wait."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.failing: set[str] = set()
        self.env: dict[str, str] = {}
        self.latency_s = 0.0

    def script(self, request: Any) -> Any:
        prompt = prompt_of(request)
        self.prompts.append(prompt)
        return [text(f"no JSON: {prompt}" if prompt in self.failing else json.dumps({"of": prompt}))]

    async def enrich(self, *arguments: object, stdin: str | None = None) -> Ended:
        return await anabranch("enrich", *map(str, arguments), stdin=stdin, env=self.env)


@asynccontextmanager
async def world(kafka: str, namespace: str) -> AsyncIterator[tuple[World, Fleet]]:
    app, w = App("echo"), World()
    app.agent("echo", model="scripted")
    async with fleet(app, w.script, settings_for(kafka, namespace)) as running:
        w.env = environment(ANABRANCH_BOOTSTRAP=kafka, ANABRANCH_NAMESPACE=namespace)
        yield w, running


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_a_jsonl_file_is_enriched_and_the_same_command_does_only_what_is_left(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"n": "a"}\nnonsense\n{"n": "b"}\n{"m": 1}\n{"n": "c"}\n')
    async with world(kafka, namespace) as (w, _):
        w.failing.add("Say c")
        command = (source, "--agent", "echo", "--out", out, "--template", "Say {n}", "--ordered")
        ended = await w.enrich(*command)
        assert ended.status == 1  # bad lines
        assert "line 2: it is not JSON" in ended.stderr
        assert "line 4: it has no field 'n'" in ended.stderr
        assert ended.stdout == ""
        lines = read(out)
        assert [(line["record"], line["output"]) for line in lines] == [
            ({"n": "a"}, {"of": "Say a"}),
            ({"n": "b"}, {"of": "Say b"}),
            ({"n": "c"}, "no JSON: Say c"),
        ]
        assert {line["status"] for line in lines} == {"completed"}
        assert sorted(w.prompts) == ["Say a", "Say b", "Say c"]

        out.write_bytes(out.read_bytes()[:-30])  # as a crash would leave it
        source.write_text('{"n": "a"}\n\n{"n": "b"}\n\n{"n": "c"}\n{"n": "d"}\n')
        ended = await w.enrich(*command, "--json")
        assert ended.status == 0, ended.stderr
        assert json.loads(ended.stdout)["there"] == 2
        assert [line["record"]["n"] for line in read(out)] == ["a", "b", "c", "d"]
        assert set(w.prompts[3:]) <= {"Say c", "Say d"}


async def test_a_csv_from_stdin_is_enriched_and_failures_are_lines_with_an_error(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    async with world(kafka, namespace) as (w, _):
        command = ("-", "--format", "csv", "--agent", "nobody", "--out", out)
        ended = await w.enrich(*command, stdin="n,m\n1,2\n3\n4,5\n")
        assert ended.status == 1
        assert "line 3: it has 1 column" in ended.stderr
        assert "unknown_agent: 2" in ended.stderr
        lines = read(out)
        assert {line["status"] for line in lines} == {"failed"}
        assert {line["error"]["code"] for line in lines} == {"unknown_agent"}
        assert [line["output"] for line in lines] == [None, None]


async def test_ctrl_c_waits_for_what_runs_and_the_same_command_goes_on(
    kafka: str, namespace: str, tmp_path: Path
) -> None:
    source, out, count = tmp_path / "in.jsonl", tmp_path / "out.jsonl", 400
    source.write_text("".join(f'{{"n": {n}}}\n' for n in range(count)))
    arguments = ["enrich", str(source), "--agent", "echo", "--out", str(out), "--concurrency", "4"]
    async with world(kafka, namespace) as (w, _):
        async with started("-m", "anabranch.cli", *arguments, env=w.env) as process:
            await until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 5, 30, "some lines are written")
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                _, stderr = await process.communicate()
        assert process.returncode == 130, stderr.decode()
        assert b"Stopping: waiting up to" in stderr
        assert b"To go on: the same command" in stderr
        before = read(out)
        assert 5 <= len(before) < count
        assert {line["status"] for line in before} == {"completed"}

        ended = await w.enrich(*arguments[1:])
        assert ended.status == 0, ended.stderr
        assert sorted(line["record"]["n"] for line in read(out)) == list(range(count))
        assert len(w.prompts) == count  # nothing was paid for twice


async def test_a_second_ctrl_c_ends_it_at_once(kafka: str, namespace: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"n": 1}\n')
    settings = settings_for(kafka, namespace)
    async with fleet(App("idle"), [], settings, agents=0):
        env = environment(ANABRANCH_BOOTSTRAP=kafka, ANABRANCH_NAMESPACE=namespace)
        arguments = ["enrich", str(source), "--agent", "echo", "--out", str(out)]
        async with started("-m", "anabranch.cli", *arguments, env=env) as process:
            await until(out.exists, 30)
            assert process.stderr is not None
            process.send_signal(signal.SIGINT)
            assert b"Stopping: waiting" in await asyncio.wait_for(process.stderr.readline(), 30)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                _, stderr = await process.communicate()
        assert process.returncode == 130
        assert b"Stopping at once" in stderr
        assert b"1 run was not waited for" in stderr


async def test_wrong_usage_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("{}")
    env = environment(ANABRANCH_NAMESPACE="x")
    common = ["--agent", "a", "--out", str(tmp_path / "out.jsonl")]
    unknown, both, tenant = await asyncio.gather(
        anabranch("enrich", str(source), *common, env=env),
        anabranch("enrich", "-", *common, "--template", "x", "--template-file", str(source), env=env),
        anabranch("enrich", "-", *common, "--tenant", "a b", env=env),
    )
    assert [unknown.status, both.status, tenant.status] == [2, 2, 2]
    assert "give --format" in unknown.stderr
    assert "not both" in both.stderr
    assert not (tmp_path / "out.jsonl").exists()
