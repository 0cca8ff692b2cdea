"""What is measured, as the measuring code sees it.

Responsible for: the one seam between `measure.py` and those who carry runs.
Must never: know Anabranch, the floor or Kafka.
Called by: `measure.py`, `anabranch_run.py`, `floor.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tests.bench.processes import Worker

ANSWER_S = 60.0
"""How long one run may take before the benchmark gives up."""


class WrongAnswer(Exception):
    """A run did not end as it should: what was measured is not worth anything."""


class Subject(Protocol):
    """Something that carries runs from this process, through the worker processes, back to this process."""

    @property
    def name(self) -> str:
        """`anabranch` or `floor`."""
        ...

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Its processes, by what the report calls them."""
        ...

    async def ask(self, tool_ms: int) -> None:
        """One run, from its submission to its answer. Raises WrongAnswer or TimeoutError."""
        ...
