"""The demo's child processes: started, watched, and gone when the demo is, however it ends.

Responsible for: one log file a child, noticing the first that dies, ending all in order. On Linux the kernel ends them
even if the demo is killed. Children have sessions of their own: Ctrl-C in the terminal is for the demo, which drains.
Must never: know what the children are. Called by `demo.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from anabranch.errors import AnabranchError

DRAIN_S: Final = 5.0
"""How long a child may take to end after each signal before the next one."""
TAIL_LINES: Final = 15
# Asks Linux to end the child with the thread that started it, and becomes the command. The check: the demo may be gone
# before the child could ask.
_DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildDied(AnabranchError):
    """A child ended by itself; the message says which, how, and what it said last."""


@dataclass(frozen=True)
class Child:
    """One process with its log."""

    name: str
    process: Process
    log: Path

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"


class Children:
    """All children: `async with Children(folder, cwd) as children`. They end with the block, the last one first."""

    def __init__(self, folder: Path, cwd: Path) -> None:
        self._folder, self._cwd = folder, cwd
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._terminate()
        finally:
            for child in self._children:  # whatever happened above
                if child.process.returncode is None:
                    child.process.kill()
                await child.process.wait()

    async def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Child:
        """Start `command`, its first item an absolute path; its output goes to `<name>.log`."""
        log = self._folder / f"{name}.log"
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=output, stderr=STDOUT, cwd=self._cwd, env=env, start_new_session=True
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    async def died(self) -> None:
        """Wait until one of them ends, and raise `ChildDied`."""
        waiting = {asyncio.ensure_future(child.process.wait()): child for child in self._children}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waiting:
                wait.cancel()
        child, status = next((waiting[wait], wait.result()) for wait in done)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        raise ChildDied(f"the {child.name} process died ({how}). The end of {child.log}:\n{child.tail()}")

    async def _terminate(self) -> None:
        """The youngest first: workers before what they need. A second signal makes a worker hurry."""
        for group in (self._children[1:], self._children[:1]):
            for _ in range(2):
                running = [child for child in group if child.process.returncode is None]
                for child in running:
                    child.process.terminate()
                if running:
                    await asyncio.wait([asyncio.ensure_future(c.process.wait()) for c in running], timeout=DRAIN_S)
