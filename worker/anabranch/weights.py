"""Which lane is next, where both wait for the same thing. PURE.

The interactive lane has so many turns for each of the bulk lane; where only one waits, it has all. So neither
starves. The lines for the model, for a place in a tool worker and for a limit ask.
"""

from __future__ import annotations

from typing import Final

from anabranch.fields import Lane

WEIGHT: Final = 4
"""How many turns the interactive lane has for each of the bulk lane, unless somebody sets it."""


class Weights:
    """`interactive` is how many turns that lane has for each of the bulk lane."""

    def __init__(self, interactive: int) -> None:
        self._weight, self._taken = interactive, 0

    def copy(self) -> Weights:
        """One that has got as far."""
        made = Weights(self._weight)
        made._taken = self._taken
        return made

    def next(self, interactive: bool, bulk: bool) -> Lane | None:
        """The lane whose turn it is, of those that wait."""
        if interactive and bulk:
            return "bulk" if self._taken >= self._weight else "interactive"
        return "interactive" if interactive else "bulk" if bulk else None

    def took(self, lane: Lane, other_waits: bool) -> None:
        """It had its turn."""
        self._taken = self._taken + 1 if lane == "interactive" and other_waits else 0
