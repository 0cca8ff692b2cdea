"""A tool whose module takes a while to import in a process of the worker's, and writes meanwhile, as those do that
load a model.

Must never: take that while in the process of the tests. Called by: the tests of `tools/executor.py`.
"""

from __future__ import annotations

import os
import sys
import time

if "pytest" not in sys.modules:
    time.sleep(1.0)
    os.write(1, b"it is loaded\n")


def answer() -> str:
    """Say that it is there."""
    return "there"
