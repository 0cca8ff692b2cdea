"""Programs for Node.js that check what we ship, each in a folder with a lock file.

Responsible for: installing what the lock file says, once. Must never: change the lock file.
Called by: tests of the AsyncAPI document and of the chart.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.need import need_tool

HOW = "https://nodejs.org, version 20 or later"


def node_for(folder: Path) -> str:
    """The path of Node.js, with what `folder` needs installed as its lock file says."""
    path, npm = need_tool("node", HOW), need_tool("npm", HOW)
    lock = folder / "package-lock.json"
    installed = folder / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = subprocess.run([npm, "ci"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"`npm ci` failed in {folder}:\n{done.stdout}{done.stderr}", pytrace=False)
    return path
