"""What a worker process takes of this machine, and what its log complains of.

Responsible for: memory and open files from `/proc` (nothing where there is none), and telling harmless lines of a log
from those that no worker should write, whatever happens to it.
Must never: judge how much is too much (`checker.py`). Called by: `fleet.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

WARM_S: Final = 8.0
"""After this long a worker under load has opened what it needs."""
LAST: Final = 5
"""The smallest of so many last samples counts: what a moment takes is no leak."""
DEFECTS: Final = re.compile(
    "was destroyed but it is pending|never retrieved|never awaited|Unclosed |unhandled exception|ResourceWarning"
    "|Traceback"
)
RECORD: Final = re.compile(r"^(?=\d{4}-\d\d-\d\dT)", re.MULTILINE)
MOST_COMPLAINTS: Final = 5


@dataclass(slots=True)
class Vitals:
    """Samples of memory (bytes) and open files of one process, since it was warm."""

    pid: int
    bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def sample(self) -> None:
        """Nothing if the process is gone, or the system does not tell."""
        process = Path("/proc") / str(self.pid)
        try:
            pages = int((process / "statm").read_text().split()[1])
            files = sum(1 for _ in (process / "fd").iterdir())
        except (OSError, IndexError):
            return
        self.bytes.append(pages * 4096)
        self.files.append(files)

    @property
    def grown_bytes(self) -> int | None:
        return _grown(self.bytes)

    @property
    def grown_files(self) -> int | None:
        return _grown(self.files)


def _grown(samples: list[int]) -> int | None:
    """From the highest of the first samples to the lowest of the last ones; None if there are too few."""
    return min(samples[-LAST:]) - max(samples[:LAST]) if len(samples) > 2 * LAST else None


def complaints(log: str) -> tuple[str, ...]:
    """The records of a worker's log that speak of a defect, a few of them, cut.

    Those of aiokafka's own tasks are left out: a commit that we no longer wait for is shielded there, so that nobody
    can retrieve its exception.
    """
    bad = [record.splitlines() for record in RECORD.split(log) if DEFECTS.search(record)]
    return tuple(f"{lines[0]} ... {lines[-1]}"[:600] for lines in bad if "aiokafka" not in lines[0])[:MOST_COMPLAINTS]
