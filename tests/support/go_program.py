"""Programs that Go builds for the tests, once, into `build/tools`.

Responsible for: building what `tests/tools` pins. Must never: fetch another version.
Called by: `collector.py`, `bucket.py`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.need import need_tool, unavailable

ROOT = Path(__file__).resolve().parents[2]
GO = "https://go.dev/dl, version 1.25 or later"
TOOLS = ROOT / "tests" / "tools"


def built(name: str, module: Path = TOOLS, package: str = ".") -> Path:
    """The program of `package`, as the go.mod in `module` has it. Go builds it anew only if something has changed."""
    binary = ROOT / "build" / "tools" / name
    command = [need_tool("go", GO), "build", "-buildvcs=false", "-o", str(binary), package]
    done = subprocess.run(command, cwd=module, capture_output=True, text=True, check=False)
    if done.returncode and "requires go >=" in done.stderr:
        unavailable(f"this test needs a newer Go ({GO}): {done.stderr.strip()}")
    assert not done.returncode, f"{name} cannot be built:\n{done.stdout}{done.stderr}"
    return binary
