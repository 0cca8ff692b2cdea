"""The command line as a user has it: processes of `anabranch`, their output, and an App for them to run.

Responsible for: starting commands with an environment of their own, waiting for what they say, and leaving none behind.
Must never: call into the package; what is tested is what a user sees.
Called by: acceptance tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.wait import until

DEADLINE_S = 30.0

APP = '''
"""Tools that add, wait and hang."""
import asyncio
import time

from anabranch import App

app = App("cli")


@app.tool(queue="io")
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@app.tool(queue="slow", timeout=600)
async def wait() -> str:
    """Wait for long."""
    await asyncio.sleep(600)
    return "waited"


@app.tool(queue="stuck", timeout=600)
def hang() -> str:
    """Block a thread for long."""
    time.sleep(600)
    return "hung"


app.agent("caller", model="scripted", system="Call the tool.", tools=["add", "wait", "hang"])
'''
SCRIPT = '''
"""Calls the tool that the prompt names, and then says so."""
from anabranch.testing import prompt_of, tool_use, turn_of


def model(request):
    name = prompt_of(request)
    if turn_of(request) == 1:
        return [tool_use(name, {"a": 1, "b": 2} if name == "add" else {})]
    return f"{name} is done"
'''


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A command that goes on until it is asked to stop."""

    def __init__(self, arguments: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        number = len(list(folder.glob("*.err")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "anabranch.cli", *arguments],
                env=_environment(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    async def says(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until `text` is in its output. Raises AssertionError if it ends without, or does not say it in time."""

        def said() -> bool:
            ended = self.has_ended
            if text in self.out + self.err:
                return True
            assert not ended, f"it ended without saying {text!r}:\n{self.out}{self.err}"
            return False

        await until(said, deadline_s, f"the command says {text!r}")

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    async def ends(self, deadline_s: float = DEADLINE_S) -> Finished:
        """Wait until it has ended by itself."""
        await until(lambda: self.has_ended, deadline_s, f"the command ends; it said:\n{self.err}")
        return Finished(self._process.returncode, self.out, self.err)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Terminal:
    """A folder with an App (`app.py`) and a script for the model (`script.py`), and an environment."""

    folder: Path
    env: Mapping[str, str]

    @classmethod
    def at(cls, folder: Path, bootstrap: str, namespace: str, **env: str) -> Terminal:
        (folder / "app.py").write_text(APP)
        (folder / "script.py").write_text(SCRIPT)
        kafka = {"ANABRANCH_BOOTSTRAP": bootstrap, "ANABRANCH_NAMESPACE": namespace, "ANABRANCH_PARTITIONS": "4"}
        return cls(folder, {**kafka, "ANABRANCH_COMMIT_S": "0.2", "ANABRANCH_HEARTBEAT_S": "1", **env})

    async def run(self, *arguments: str, deadline_s: float = DEADLINE_S) -> Finished:
        """Run a command to its end."""
        async with self.start(*arguments) as command:
            return await command.ends(deadline_s)

    @asynccontextmanager
    async def start(self, *arguments: str) -> AsyncIterator[Running]:
        """Start a command; it is killed at the end of the block if it has not ended."""
        command = Running(arguments, self.env, self.folder)
        try:
            yield command
        finally:
            command.kill()


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """What is given, and nothing of ours from the environment of the tests."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("ANABRANCH_", "ANTHROPIC_"))}
    return {**rest, **env}
