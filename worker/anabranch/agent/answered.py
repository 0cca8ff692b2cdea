"""The runs that are answered, and remembered for a while, so that whoever asks again gets the same answer.

Responsible for: their order, and how many there may be. Must never: hold a run or an answer itself; the fold and the
publisher do. Called by: `owner.py`.
"""

from __future__ import annotations

from typing import Final

from anabranch import messages as m
from anabranch.bodies import dump

REMEMBERED: Final = 2000
"""How many answered runs an owner remembers."""
ANSWERED_BYTES: Final = 2_000
"""What one takes in memory beside its request and its answer, about."""
REMEMBERED_BYTES: Final = 8 * 1024 * 1024
"""How much memory they may take: their requests and answers may be large."""

Life = tuple[str, str]


class Answered:
    """See the module."""

    def __init__(self) -> None:
        self._weights: dict[Life, int] = {}  # the oldest first
        self._bytes = 0

    def add(self, life: Life, request: m.RunRequest, answer_bytes: int) -> None:
        """It is the youngest now, also if it was known."""
        self.forget(life)
        self._weights[life] = weight = ANSWERED_BYTES + _weight(request) + answer_bytes
        self._bytes += weight

    def forget(self, life: Life) -> None:
        self._bytes -= self._weights.pop(life, 0)

    @property
    def surplus(self) -> Life | None:
        """One that is to be forgotten, if there are too many; a single one may be as large as it is."""
        most = REMEMBERED if self._bytes <= REMEMBERED_BYTES else 1
        return next(iter(self._weights)) if len(self._weights) > most else None


def _weight(request: m.RunRequest) -> int:
    """How many bytes a request has, about."""
    if isinstance(request.input, str) and request.metadata is None:
        return len(request.input)
    return len(dump(request))
