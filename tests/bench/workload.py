"""What a run of the benchmark says: the same texts go through Anabranch and through the floor.

Responsible for: texts and their sizes, and the time that a tool takes, which travels in the prompt.
Must never: know who carries them. PURE.
Called by: `app.py`, `floor.py`, `anabranch_run.py`.
"""

from __future__ import annotations

import re
from typing import Final

CALLS: Final = 3
"""How many calls a run makes, all in one turn."""

NOTE: Final = "a note that the model gives the tool ".ljust(120, ".")
RESULT: Final = "what the tool has found ".ljust(400, ".")
ANSWER: Final = "what the model makes of three results ".ljust(200, ".")

_DELAY: Final = re.compile(rb"Wait (\d+) ms")


def prompt(tool_ms: int) -> str:
    """The input of a run whose tools take `tool_ms` milliseconds each."""
    return f"Wait {tool_ms} ms, {CALLS} times in parallel, and say what you have found. ".ljust(200, ".")


def tool_ms_of(text: bytes) -> int:
    """What the prompt somewhere in `text` says. Raises ValueError if there is none."""
    found = _DELAY.search(text)
    if found is None:
        raise ValueError(f"no prompt of the benchmark: {text[:200]!r}")
    return int(found[1])
