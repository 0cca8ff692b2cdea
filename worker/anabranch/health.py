"""Whether a process lives, has started, and is ready: what `/livez`, `/startupz` and `/readyz` say. PURE.

The loop writes, the threads of `probes.py` read: each value is replaced in one step. Liveness is the loop's heartbeat
alone, looked at from outside of it, for a loop that is blocked cannot say so; whatever else is wrong, Kafka included, a
restart would not mend. `watch.py` calls `beat` and `see`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer, and why."""

    good: bool
    text: str


@dataclass(slots=True)
class Health:
    """One role. `unready` is why it does no work at present; "" if it does."""

    name: str
    unready: str = "it is starting"
    started: bool = False
    draining: bool = False

    def see(self, is_settled: bool, unready: str) -> None:
        """How it stands now. It has started once its first assignment was taken over."""
        self.started = self.started or is_settled
        self.unready = unready

    def drain(self) -> None:
        """From here on it takes nothing more."""
        self.draining = True

    @property
    def is_ready(self) -> bool:
        return self.started and not self.draining and not self.unready


@dataclass(slots=True)
class Process:
    """All roles of a process: it is ready, and has started, when all `expected` ones are.

    `beaten_at` is when its loop ran last, by any steady clock; it counts as blocked after `stalled_s`.
    """

    stalled_s: float
    beaten_at: float
    expected: int = 1
    roles: list[Health] = field(default_factory=list)

    def beat(self, now: float) -> None:
        self.beaten_at = now

    def live(self, now: float) -> Verdict:
        still_s = now - self.beaten_at
        if still_s < self.stalled_s:
            return Verdict(True, "the event loop runs")
        return Verdict(
            False, f"the event loop has stood still for {still_s:.1f} s (ANABRANCH_STALLED_S: {self.stalled_s:g})"
        )

    def started(self) -> Verdict:
        return self._all(lambda role: "" if role.started else role.unready)

    def ready(self, now: float) -> Verdict:
        """What the roles said last counts only while the loop runs."""
        if not (live := self.live(now)).good:
            return live
        return self._all(lambda role: "it is draining" if role.draining else role.unready)

    def _all(self, why_not: Callable[[Health], str]) -> Verdict:
        found = [(role.name, why_not(role)) for role in self.roles.copy()]
        lines = [f"{name}: {why or 'ok'}" for name, why in found]
        missing = self.expected - len(found)
        if missing > 0:
            lines.append("starting: Kafka has not been joined yet")
        return Verdict(missing <= 0 and not any(why for _, why in found), "\n".join(lines))
