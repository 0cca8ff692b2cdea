"""Runs one command, and sees to it that the command does not outlive the process that asked for it.

Responsible for: starting the command; ending it when told so, or when the owner is gone, however the owner ended
(SIGKILL included: its end of our standard input is then closed by the operating system).
Must never: import anything but the standard library, outlive the command, or clean up while the owner lives.
Called by: `tests.support.process`, as a program: `python guard.py SPEC`, where SPEC is JSON
`{command, owner, on_kill, when_orphaned, remove}`. Lines on standard input are orders: `stop`, `kill`, `freeze`
and `thaw`.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

POLL_S = 0.2
GONE = "gone"


def main(spec: dict[str, Any]) -> int:
    """Run the command of `spec` until it ends; returns its exit status (128 + N if signal N ended it)."""
    signal.signal(signal.SIGTERM, _leave)
    child = subprocess.Popen(spec["command"], stdin=subprocess.DEVNULL, preexec_fn=_dies_with_us())
    try:
        _watch(child, spec)
    finally:
        _kill(child, spec)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _watch(child: subprocess.Popen[bytes], spec: dict[str, Any]) -> None:
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    while child.poll() is None:
        order = _next_order(orders, spec["owner"])
        if order == "stop":
            child.terminate()
        elif order == "freeze":
            child.send_signal(signal.SIGSTOP)
        elif order == "thaw":
            child.send_signal(signal.SIGCONT)
        elif order == "kill":
            return
        elif order == GONE:
            _kill(child, spec)
            _clean_up(spec)
            return


def _listen(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line.strip())
    orders.put(GONE)


def _next_order(orders: queue.SimpleQueue[str], owner: int) -> str | None:
    try:
        return orders.get(timeout=POLL_S)
    except queue.Empty:
        # A forked child of the owner may still hold our standard input open: so the parent is asked after as well.
        return GONE if os.name == "posix" and os.getppid() != owner else None


def _kill(child: subprocess.Popen[bytes], spec: dict[str, Any]) -> None:
    if child.poll() is None:
        for command in spec["on_kill"]:
            subprocess.run(command, check=False, capture_output=True)
        child.kill()
    child.wait()


def _clean_up(spec: dict[str, Any]) -> None:
    for command in spec["when_orphaned"]:
        subprocess.run(command, check=False, capture_output=True)
    if spec["remove"]:
        shutil.rmtree(spec["remove"], ignore_errors=True)


def _dies_with_us() -> Callable[[], None] | None:
    """On Linux the kernel ends the command even if this guard is killed; elsewhere nothing can."""
    if sys.platform != "linux":
        return None
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
