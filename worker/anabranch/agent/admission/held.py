"""What the open runs of one partition take in memory, about, and the room that is left for more.

Responsible for: the count, in the partition's room, which is within the whole worker's. Must never: decide who gets
room; `Admission` does. Called by: `agent/owner.py`, `admission.py`, `agent/telemetry/sampling.py`.
"""

from __future__ import annotations

from typing import Final

from anabranch.agent.admission.room import Room
from anabranch.agent.state import Life, Run
from anabranch.fields import lane_of

RUN_BYTES: Final = 12_000
"""What an open run takes in memory beside its bodies, with three calls out, about: many small ones need room, too."""


class Held:
    """See the module. `open_bytes` are those of the bodies alone."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._sizes: dict[Life, int] = {}
        self.open_bytes = 0

    @property
    def bytes(self) -> int:
        return self.open_bytes + RUN_BYTES * len(self._sizes)

    @property
    def runs(self) -> int:
        return len(self._sizes)

    def account(self, run: Run) -> None:
        """It may have grown, or ended."""
        life, sizes = (run.run_id, run.life), self._sizes
        before, beside = sizes.get(life), 0
        if run.ending is None:
            change = run.size - (before or 0)
            if before is None:
                beside = RUN_BYTES
            elif not change:
                return
            sizes[life] = run.size
        elif before is not None:
            del sizes[life]
            change, beside = -before, -RUN_BYTES
        else:
            return
        self.open_bytes += change
        self.room.change(change + beside, lane_of(run.life))

    def clear(self) -> None:
        """Give the room back."""
        for life, size in self._sizes.items():
            self.room.change(-(size + RUN_BYTES), lane_of(life[1]))
        self._sizes.clear()
        self.open_bytes = 0
