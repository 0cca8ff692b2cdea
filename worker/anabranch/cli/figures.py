"""Times and sums as people read them. PURE, but for `moment`, which knows today's date and where the user is.

Called by the commands, and by all that shows a run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anabranch.messages import Usage


def span(seconds: float) -> str:
    """A duration for people: `0.41 s`, `12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02} min"


def ago(seconds: float) -> str:
    """A duration in at most two figures and a unit: `3 s`, `12 min`, `5 h`, `3 d`."""
    seconds = max(0.0, seconds)
    for limit, unit, size in ((90.0, "s", 1), (5400.0, "min", 60), (129_600.0, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def moment(at: float, *, brief: bool = False) -> str:
    """Epoch seconds in the user's time zone; `brief` leaves out today's date."""
    when = datetime.fromtimestamp(at, UTC).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return when.strftime("%H:%M:%S" if brief and when.date() == today else "%Y-%m-%d %H:%M:%S")


def dollars(cost: float | None) -> str:
    """A cost in a table."""
    return "unknown" if cost is None else f"${cost:,.4f}"


def cost(used: Usage) -> str:
    """The same in a sentence."""
    return "cost unknown" if used.cost_usd is None else dollars(used.cost_usd)


def tokens(used: Usage) -> str:
    """What was read and written."""
    return f"{used.prompt_tokens:,} tokens in, {used.output_tokens:,} out"
