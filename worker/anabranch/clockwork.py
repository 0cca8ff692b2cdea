"""What is not pure: the time, ids, chance, and what this process is called. A simulation puts in its own.

Responsible for: that value, and the real one. Must never: wait. Called by: both roles, and those who start them.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from anabranch.values import frozen

_DRAWN: Final = 256
"""How many ids are drawn at once."""


def steady_time() -> float:
    """The running loop's: it is never set back."""
    return asyncio.get_running_loop().time()


@frozen()
class Clockwork:
    """`now` is the time in epoch seconds; `process` what this process is called."""

    now: Callable[[], float]
    new_id: Callable[[], str]
    chance: random.Random
    process: str = "process"
    steady: Callable[[], float] = steady_time
    """A time that is never set back, in seconds: the loop's."""

    def new_worker_id(self, role: str) -> str:
        return f"{role}-{self.process}-{self.new_id()[:6]}"


def real_clockwork() -> Clockwork:
    """That of this machine, in a running loop."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:60]
    process, steady = f"{host}-{os.getpid()}", asyncio.get_running_loop().time
    return Clockwork(time.time, partial(next, _ids()), random.Random(), process, steady)


def _ids() -> Iterator[str]:
    """64 bits each, which nobody can guess. The system is asked for many at once: for one it takes about as long."""
    while True:
        drawn = secrets.token_hex(8 * _DRAWN)
        yield from (drawn[at : at + 16] for at in range(0, len(drawn), 16))
