"""A worker's process gives large buffers back, whatever lies between them.

Responsible for: `memory.py`, in a process of its own. Must never: change the process of the tests. Called by: pytest.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
from anabranch import memory

def held_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

if sys.argv[1] == "settled":
    memory.settle()
del (large := [bytearray(20_000_000)])[:]  # a fetch: glibc would keep buffers of this size in its heap from now on
before, fetches, runs = held_mb(), [], []
for _ in range(40):
    fetches.append(bytearray(1_000_000))
    runs.append(bytes(20_000))
del fetches
print(held_mb() - before)
"""


def grown_mb(how: str) -> float:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return float(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's allocator that has to be told")
def test_what_was_fetched_leaves_no_holes_between_what_stays() -> None:
    assert grown_mb("settled") < 10
    if grown_mb("as it is") < 10:
        pytest.skip("this C library leaves none anyway")
