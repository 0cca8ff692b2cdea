"""Ends what a job has left running: a program that was killed cannot end its own helpers.

They are told by the place in their environment, which is a different one for each job, and nobody else's.

Responsible for: that nothing of a job outlives it.
Must never: touch a process that was started by anybody else.
Called by: `__main__.py`, when a job has ended.
"""

from __future__ import annotations

import psutil

from tests.bench.peers.place import VARIABLE, Place

GONE_S = 5.0


def end_leftovers(place: Place) -> list[int]:
    """Kill all that runs at `place`; returns the process ids, once they are gone."""
    [value] = place.environment().values()
    found = [process for process in psutil.process_iter() if _place_of(process) == value]
    for process in found:
        process.kill()
    psutil.wait_procs(found, GONE_S)
    return [process.pid for process in found]


def _place_of(process: psutil.Process) -> str | None:
    try:
        place: str | None = process.environ().get(VARIABLE)
    except psutil.Error:
        return None  # it has ended, or is somebody else's
    return place
