"""Starts a real Apache Kafka for tests, the benchmark and demonstrations; stops, restarts and kills it.

Responsible for: one broker on 127.0.0.1 that is ready when `launch` returns and gone when its owner is.
Must never: leave a broker or a folder behind, or touch a Kafka that it did not start.
Called by: `tests/conftest.py`; tests that break the broker; and as a program, `python -m tests.support.kafka`, which
prints `bootstrap=127.0.0.1:PORT` and runs until its standard input is closed, or SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.support.kafka_admin import answers
from tests.support.kafka_sources import KafkaFailed, KafkaUnavailable, Node, Source, find_source
from tests.support.process import GuardedProcess, free_ports, is_listening, tail

READY_DEADLINE_S = 180.0
PORT_TAKEN = re.compile("address already in use|port is already allocated", re.IGNORECASE)  # Java's words, Docker's
BOOTSTRAP_VARIABLE = "ANABRANCH_TEST_BOOTSTRAP"


class Broker:
    """A Kafka of our own, one node. Its methods block: from a coroutine, use `asyncio.to_thread`.

    `stop` and `kill` keep data and port, so that `start` goes on where it was; `close` ends it for good.
    """

    def __init__(self, source: Source, guarded: bool = False, node: Node | None = None) -> None:
        """Fetches and formats; does not start. Raises KafkaFailed."""
        source.fetch()
        self._source = source
        self._node = node or new_node(guarded)
        self._log = self._node.home / "broker.log"
        self._process: GuardedProcess | None = None
        try:
            source.format(self._node)
        except BaseException:
            self.close()
            raise

    @property
    def bootstrap(self) -> str:
        """`host:port`, the same after a restart."""
        return f"127.0.0.1:{self._node.port}"

    @property
    def guarded(self) -> str:
        """`host:port` where clients log in (see `Node`), of a broker that was launched with `guarded`."""
        assert self._node.guarded_port is not None, "not launched with a guarded listener"
        return f"127.0.0.1:{self._node.guarded_port}"

    @property
    def pid(self) -> int:
        """Of the process that has the broker's among its children. Raises KafkaFailed if none runs."""
        if self._process is None:
            raise KafkaFailed("Kafka was not started, or has been closed")
        return self._process.pid

    def is_running(self) -> bool:
        """Whether its process is there (a method, so that a type checker does not take the answer for lasting)."""
        return self._process is not None and self._process.is_running()

    def start(self) -> None:
        """Start it, if it is not running, and wait until it serves. Raises KafkaFailed with the end of its log."""
        self.begin()
        self._wait_until_it_serves()

    def begin(self) -> None:
        """Start it, if it is not running, and do not wait: one of several serves only when others do."""
        if not self.is_running():
            self.kill()  # lets go of one that ended by itself
            self._process = GuardedProcess(self._source.command(self._node), self._log)

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while not (is_listening(self._node.port) and answers(self.bootstrap)):
            if not self.is_running():
                raise KafkaFailed(f"Kafka ended while it started. The end of its log:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                late = f"Kafka does not serve {self.bootstrap} after {READY_DEADLINE_S:g} s"
                raise KafkaFailed(f"{late}. The end of its log:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Shut it down in order, as an operator would."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def freeze(self) -> None:
        """Let it stand still, as a machine does that nobody reaches any more: its connections stay."""
        if self._process is not None:
            self._process.freeze()

    def thaw(self) -> None:
        """Let it go on where it was."""
        if self._process is not None:
            self._process.thaw()

    def close(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        self._source.remove(self._node)
        shutil.rmtree(self._node.home, ignore_errors=True)

    def logged(self) -> str:
        """All that the broker logged."""
        return self._log.read_text(errors="replace")

    def log_tail(self) -> str:
        """The end of what the broker logged."""
        return tail(self._log)

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def new_node(guarded: bool = False) -> Node:
    """A folder, and ports that are free."""
    port, controller_port, guarded_port = free_ports(3)
    home = Path(tempfile.mkdtemp(prefix="anabranch-kafka-"))
    return Node(home, port, controller_port, guarded_port if guarded else None)


def launch(guarded: bool = False) -> Broker:
    """A broker that serves; close it. Raises KafkaUnavailable, or KafkaFailed with the end of its log.

    With `guarded` it has a second address, where clients log in and access control lists hold.
    """
    source = find_source()
    return started(lambda: Broker(source, guarded))


def started(make: Callable[[], Broker]) -> Broker:
    """A broker that serves, made anew once if its ports are gone by then."""
    for _ in range(2):
        broker = make()
        try:
            broker.start()
        except BaseException as error:
            broker.close()
            if not PORT_TAKEN.search(str(error)):  # else another process was quicker to take the port: choose again
                raise
        else:
            return broker
    raise KafkaFailed("two times in a row another process took the ports that were free for Kafka; try again")


def main() -> int:
    """Serve until standard input is closed, or SIGINT or SIGTERM; the status is 1 if there is no Kafka to serve."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it starts in the background ignore the first
        signal.signal(number, signal.default_int_handler)
    try:
        if external := os.environ.get(BOOTSTRAP_VARIABLE):
            _announce(external)
            _until_closed().wait()
            return 0
        with launch() as broker:
            return _serve(broker)
    except KeyboardInterrupt:
        return 0
    except (KafkaFailed, KafkaUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _serve(broker: Broker) -> int:
    _announce(broker.bootstrap)
    closed = _until_closed()
    while not closed.wait(0.5):
        if not broker.is_running():
            raise KafkaFailed(f"Kafka ended by itself. The end of its log:\n{broker.log_tail()}")
    return 0


def _announce(bootstrap: str) -> None:
    sys.stdout.write(f"bootstrap={bootstrap}\n")
    sys.stdout.flush()


def _until_closed() -> threading.Event:
    """An event that is set when standard input ends."""
    closed = threading.Event()

    def read() -> None:
        # The descriptor itself: a thread inside of `sys.stdin` would hold its lock while the interpreter exits.
        while os.read(0, 1024):
            pass
        closed.set()

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return closed


if __name__ == "__main__":
    sys.exit(main())
