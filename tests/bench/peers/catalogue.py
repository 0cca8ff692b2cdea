"""Who is measured, in this order.

Called by: `__main__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.peers.environments import Environment, environment


@dataclass(frozen=True, slots=True)
class Peer:
    """A subject: its folder, whether its job needs a Kafka, and which variant of the job it is."""

    name: str
    folder: str
    kafka: bool = False
    variant: str = ""

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return f"tests.bench.peers.{self.folder}.job"

    def environment(self) -> Environment | None:
        """Installed; None if it is our own. Raises CannotBeHad."""
        folder = Path(__file__).with_name(self.folder)
        return environment(folder) if (folder / "requirements.txt").exists() else None


PEERS: Final = (
    Peer("anabranch", "anabranch", kafka=True),
    Peer("gather", "gather"),
    Peer("gather, streamed", "gather", variant="streamed"),
    Peer("langgraph", "langgraph"),
    Peer("taskiq", "taskiq", kafka=True),
    Peer("celery", "celery"),
    Peer("restate", "restate"),
    Peer("temporal", "temporal"),
    Peer("calfkit", "calfkit", kafka=True),
)
