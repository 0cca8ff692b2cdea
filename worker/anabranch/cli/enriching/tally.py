"""What `enrich` counts, and what it says of it: arithmetic, and tables of `rich`.

Responsible for: the figures of a running enrichment, its pace, the time left, and the summary at the end. It is
given the time, and never takes it. Called by `enrich` and by the demonstration.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from anabranch.cli.figures import dollars, span
from anabranch.messages import RunResponse
from anabranch.wording import counted

PACE_S: Final = 10.0
"""Over how long the pace is taken, in seconds: long enough to be calm, short enough to be true."""


@dataclass(slots=True)
class Tally:
    """Counts of records; `total` is None if nobody knows. Seconds in `_s`, tokens, US dollars.

    `there` were completed before; `completed` and `failed` ended now; `bad` were no records; of what `unpriced` cost
    nobody knows all.
    """

    total: int | None = None
    there: int = 0
    completed: int = 0
    failed: int = 0
    bad: int = 0
    running: int = 0
    turns: int = 0
    calls: int = 0
    failed_calls: int = 0
    widest: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    sequential_s: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def ran(self) -> int:
        return self.completed + self.failed

    @property
    def over(self) -> int:
        """Records that nothing more will be done about."""
        return self.there + self.ran + self.bad

    @property
    def flawless(self) -> bool:
        return self.failed == 0 and self.bad == 0

    def add(self, response: RunResponse) -> None:
        """Count an answer."""
        if response.status == "completed":
            self.completed += 1
        else:
            self.failed += 1
            code = response.error.code if response.error is not None else response.status
            self.errors[code] = self.errors.get(code, 0) + 1
        usage, calls, timing = response.usage, response.calls, response.timing
        self.turns += response.turns
        self.calls += calls.total
        self.failed_calls += calls.failed
        self.widest = max(self.widest, calls.widest)
        self.input_tokens += usage.prompt_tokens
        self.output_tokens += usage.output_tokens
        self.cost_usd += (usage.cost_usd or 0.0) + (usage.discarded.cost_usd or 0.0)
        self.unpriced += usage.cost_usd is None or usage.discarded.cost_usd is None
        self.sequential_s += timing.model_s + timing.tools_sequential_s


class Pace:
    """Records a second, of late."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def take(self, now: float, ran: int) -> float:
        """The pace at `now` (seconds), when `ran` records have ended."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - PACE_S:
            self._samples.popleft()
        then, before = self._samples[0]
        if now - self._samples[-1][0] >= PACE_S / 40:
            self._samples.append((now, ran))
        return (ran - before) / (now - then) if now > then else 0.0


def left(tally: Tally, pace: float) -> float | None:
    """Seconds until the end at this pace; None if nobody can know."""
    if tally.total is None or pace <= 0:
        return None
    return max(0, tally.total - tally.over) / pace


def line(tally: Tally, pace: float) -> str:
    """Where it stands, in one line, for logs."""
    of = "" if tally.total is None else f" of {tally.total:,}"
    parts = [f"{tally.there + tally.completed:,}{of} done", f"{tally.failed:,} failed", f"{tally.running:,} running"]
    if tally.bad:
        parts.append(f"{tally.bad:,} skipped")
    parts.append(f"{pace:.1f} records/s")
    rest = left(tally, pace)
    return ", ".join(parts if rest is None else [*parts, f"{span(rest)} left"])


def facts(tally: Tally, wall_s: float) -> list[tuple[str, str]]:
    """The summary: names and values, in the order in which they are told."""
    rows = [("completed", f"{tally.completed:,}" + (f" (and {tally.there:,} before)" if tally.there else ""))]
    rows.append(("failed", f"{tally.failed:,}" + _why(tally.errors)))
    rows.append(("skipped", f"{tally.bad:,}" + (" (bad lines)" if tally.bad else "")))
    if not tally.turns:  # nothing ran, or no model was asked
        return rows
    calls = f"{tally.calls:,}" + (f" ({tally.failed_calls:,} failed)" if tally.failed_calls else "")
    rows += [("turns", f"{tally.turns:,}"), ("tool calls", calls), ("widest batch", f"{tally.widest:,} at once")]
    rows.append(("tokens", f"{tally.input_tokens:,} in, {tally.output_tokens:,} out"))
    if tally.cost_usd or tally.unpriced:
        rows.append(("cost", _cost(tally)))
    rows.append(("wall time", f"{span(wall_s)} ({tally.ran / max(wall_s, 1e-9):.1f} records/s)"))
    times = round(tally.sequential_s / wall_s) if wall_s > 0 else 0
    return [*rows, ("one after another", span(tally.sequential_s) + (f", {times} times as long" if times > 1 else ""))]


def _cost(tally: Tally) -> str:
    """The sum of what is known, and of how many runs it is not."""
    if not tally.cost_usd:
        return "unknown"
    beside = f", and of {counted(tally.unpriced, 'run')} it is not known" if tally.unpriced else ""
    return f"{dollars(tally.cost_usd)}{beside}"


def _why(errors: dict[str, int]) -> str:
    ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{code}: {count:,}' for code, count in ranked)})" if ranked else ""


def as_json(tally: Tally, wall_s: float) -> dict[str, Any]:
    """The summary for scripts."""
    names = [name for name in Tally.__slots__ if name not in ("running",)]
    return {**{name: getattr(tally, name) for name in names}, "wall_s": round(wall_s, 3)}
