"""How a worker's process uses memory: what Python and the C library are told before it serves.

Responsible for: settings of the whole process. Must never: be called in a process that is not a worker's own; it is
harmless there, but not ours to decide. Called by: `runtime.py`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from typing import Final

log = logging.getLogger(__name__)

COLLECT_AFTER: Final = (150_000, 20, 100)
"""Python's own (700, 10, 10) spends a fifth of a busy worker's time on looking through runs that are still open."""
APART_BYTES: Final = 128 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def settle() -> None:
    """Look less often for what Python cannot free at once, and give large buffers back to the system.

    glibc raises the size from which a buffer has pages of its own whenever such a buffer is freed. From then on fetches
    of some megabytes lie between the runs that stay, and leave holes: ten thousand open runs took three times their
    bytes. A size that was set once stays; other C libraries have no such call.
    """
    gc.freeze()  # what was made up to here stays
    gc.set_threshold(*COLLECT_AFTER)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_M_MMAP_THRESHOLD, APART_BYTES) and mallopt(_M_TRIM_THRESHOLD, APART_BYTES)):
        log.debug("this C library has no mallopt: open runs may take more memory than elsewhere")
