"""Where a peer does its job: what the benchmark tells it, in one variable of the environment.

Responsible for: the value, and its way through the environment, which a peer's own workers inherit.
Must never: import anything but the standard library.
Called by: `__main__.py`, which writes it; the jobs and their workers, which read it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "ANABRANCH_BENCH_PLACE"


@dataclass(frozen=True, slots=True)
class Place:
    """`home` is an empty folder, `tools` where its programs were installed, `bootstrap` a Kafka, or empty."""

    home: str
    tools: str
    namespace: str
    bootstrap: str
    variant: str

    @classmethod
    def here(cls) -> Place:
        """What this process was told."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        """What tells it to a process."""
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def redis_socket(self) -> str:
        """Where the peer's own Redis listens, if it starts one."""
        return str(Path(self.home, "redis.sock"))
