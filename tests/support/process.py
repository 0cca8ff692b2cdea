"""Server processes for tests that cannot outlive the process that started them, and free ports for them.

Responsible for: starting a command behind `guard.py`, ending it gently or at once, keeping its output in a file.
Must never: leave a process behind, or know what the command is.
Called by: `tests.support.kafka`, `tests.support.tansu`.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
# Below the ranges from which systems take ports for outgoing connections: a stopped broker finds its port free again.
PORTS = range(20000, 32000)
TAIL_BYTES = 4000


@dataclass(frozen=True)
class Command:
    """What to run, and what else ends it: a container, say, is not ended by killing the client that watches it.

    `on_kill` runs before the command is killed; `when_orphaned` runs if the owner vanished, and then `remove`, a
    folder, is deleted.
    """

    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    on_kill: Sequence[Sequence[str]] = ()
    when_orphaned: Sequence[Sequence[str]] = ()
    remove: Path | None = None


class GuardedProcess:
    """A running command, with its output appended to the file `log`."""

    def __init__(self, command: Command, log: Path) -> None:
        spec = {
            "command": list(command.argv),
            "owner": os.getpid(),
            "on_kill": [list(argv) for argv in command.on_kill],
            "when_orphaned": [list(argv) for argv in command.when_orphaned],
            "remove": str(command.remove or ""),
        }
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(command.env or {})},
                start_new_session=True,  # Ctrl-C in the terminal is for the owner, who then ends us in order
            )

    @property
    def pid(self) -> int:
        """Of the guard, whose child the command is."""
        return self._guard.pid

    def is_running(self) -> bool:
        """Whether the command has not ended yet."""
        return self._guard.poll() is None

    def stop(self, deadline_s: float = 30) -> None:
        """Ask the command to end, and kill it if it has not ended after `deadline_s`."""
        self._order("stop")
        try:
            self._guard.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def freeze(self) -> None:
        """Stop the command in its tracks, as a hypervisor would that pauses a machine (SIGSTOP, so not on Windows)."""
        self._order("freeze")

    def thaw(self) -> None:
        """Let it go on where it was."""
        self._order("thaw")

    def kill(self) -> None:
        """End the command at once, as a crash would; returns when it is gone."""
        self._order("kill")
        self._guard.wait()
        self._close()

    def _order(self, order: str) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(f"{order}\n".encode())
            self._guard.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended already, which is what the order wants

    def _close(self) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.close()
        except BrokenPipeError:
            return  # an order that the dead guard never read


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listened on a moment ago."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports between {PORTS.start} and {PORTS.stop} on 127.0.0.1")


def is_listening(port: int) -> bool:
    """Whether something accepts connections at `port` of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tail(log: Path) -> str:
    """The end of a log file, for an error message."""
    if not log.exists():
        return "(no log was written)"
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
