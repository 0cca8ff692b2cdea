"""Fetch sessions (KIP-227): the broker remembers what is read, a request names what has changed. PURE.

And the answer names only what has something new. So what a fetch costs, here and there, follows from the records and no
longer from the partitions: with 48 of them it was a third of what a worker spent on a lone run.

Responsible for: what is new in each fetch, and beginning anew whenever it is not certain what the broker remembers.
Must never: keep a broker without sessions from being read. Called by: `asking.py`, which has one for each broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from anabranch.kafka.fetch.wire import Bounds, request
from anabranch.kafka.seam import Place

LAST_EPOCH: Final = 2**31 - 1
NOTHING: Final[Mapping[Place, int]] = {}


class Session:
    """What one broker remembers of us: offsets by place. `epoch` is the next request's; 0 begins anew and ends `id`."""

    __slots__ = ("_asked", "_known", "epoch", "id")

    def __init__(self) -> None:
        self.id = self.epoch = 0
        self._known: Mapping[Place, int] = NOTHING
        self._asked: Mapping[Place, int] = NOTHING

    def begin_anew(self) -> None:
        """Also after a request that nobody answered: it may have been counted."""
        self.epoch, self._known = 0, NOTHING

    def request(self, version: int, bounds: Bounds, asked: Mapping[Place, int]) -> bytes:
        """A fetch of all of `asked`; its answer is to be told to `stands`, and that there is none to `begin_anew`."""
        self._asked, known = asked, self._known
        if asked == known:
            return request(version, bounds, (self.id, self.epoch), NOTHING, ())
        changed = {place: offset for place, offset in asked.items() if known.get(place) != offset}
        forgotten = [place for place in known if place not in asked]
        return request(version, bounds, (self.id, self.epoch), changed, forgotten)

    def stands(self, session_id: int) -> None:
        """The broker has answered: from now on it knows what was asked, unless it keeps no sessions (0)."""
        self.id = session_id
        if session_id == 0:
            self.begin_anew()
        else:
            self.epoch, self._known = self.epoch % LAST_EPOCH + 1, self._asked
