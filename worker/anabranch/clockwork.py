"""What is not pure: the time, ids, chance, and what this process is called. A simulation puts in its own.

Responsible for: that value, and the real one; telling when it is far from the broker's. Must never: wait.
Called by: both roles, and those who start them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from anabranch.values import frozen

log = logging.getLogger(__name__)

SKEW_S: Final = 5.0
"""How far a clock may be from the broker's before it is said."""
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


class Skew:
    """How far this machine's clock is from the broker's: said when that begins to matter, and when it is over."""

    def __init__(self) -> None:
        self._is_off = False

    def compare(self, before: float, at: float, after: float) -> None:
        """The broker's clock said `at` between what ours said `before` and `after`; all in epoch seconds."""
        ahead, behind = before - at, at - after
        is_off = max(ahead, behind) > SKEW_S
        if is_off and not self._is_off:
            how = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
            log.warning(
                "the clock of this machine is %s that of the Kafka broker: deadlines are kept wrongly, and Kafka "
                "refuses records of a clock that is an hour ahead. Set it (NTP), or the broker's",
                how,
            )
        elif self._is_off and not is_off:
            log.info("the clock of this machine agrees with that of the Kafka broker again")
        self._is_off = is_off
