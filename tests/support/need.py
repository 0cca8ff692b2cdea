"""Tests that need a tool which the package itself does not: skipped where it is missing, failed on CI.

Responsible for: the one rule of what a missing tool means.
Must never: hide a tool that is there but does not work; that is for the test to show.
Called by: `tests/conftest.py`, tests that build or run something in another language.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def unavailable(message: str) -> NoReturn:
    """Skip the test with `message`; under `CI=true`, where nothing is skipped for want of a tool, fail it."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def need_tool(name: str, how: str) -> str:
    """The path of the program `name`; `how` says how to install it ("apt install golang", say)."""
    path = shutil.which(name)
    if path is None:
        unavailable(f"this test needs `{name}`, which is not on the PATH. Install it: {how}")
    return path
