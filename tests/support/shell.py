"""Runs the commands as a user does: a process, its output, its exit status.

Responsible for: starting `anabranch` and other scripts beside the test's own loop, and leaving none behind.
Called by: acceptance tests.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    status: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """The test's own, without settings of ours or of a model."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ANABRANCH_", "ANTHROPIC_"))}
    return {**own, **more}


async def anabranch(*arguments: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run `anabranch` with `arguments` to its end."""
    return await script("-m", "anabranch.cli", *arguments, stdin=stdin, env=env)


async def script(*arguments: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run Python with `arguments` to its end."""
    async with started(*arguments, env=env) as process:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(stdin.encode() if stdin is not None else None)
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def started(*arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """Python with `arguments`, in a group of its own; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=ROOT, env=env or environment(),
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def on_a_terminal(*arguments: str, env: Mapping[str, str]) -> tuple[int, str]:
    """Run `anabranch` with `arguments` on a terminal of 100 columns; returns its status and all that it wrote, one
    picture after the other, without colours.
    """
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (30, 100))
    written: list[bytes] = []
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: written.append(_read(ours)))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "anabranch.cli", *arguments, stdin=its, stdout=its, stderr=its, cwd=ROOT,
            env={**env, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE_S):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        await asyncio.sleep(0)
    finally:
        loop.remove_reader(ours)
        os.close(its)
    written.append(_read(ours))
    os.close(ours)
    return status, _ESCAPES.sub("", b"".join(written).decode())


def _read(terminal: int) -> bytes:
    """What there is; nothing once the other side is closed, of which Linux tells by an error."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""
