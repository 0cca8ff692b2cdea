"""The commits of an agent worker's partitions: where whoever owns one next begins to read.

Responsible for: when there is a commit, and which have been confirmed. Must never: take over, give up, or say how far a
partition is; its owner does (`reach.py`), and `commit.py` knows how that stands in the group's offsets. Called by:
`worker.py`, which has one, and runs it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from anabranch.agent.owner import Owner
from anabranch.agent.station import Station
from anabranch.errors import BrokerError
from anabranch.kafka.membership import Membership
from anabranch.kafka.seam import Committed, Place
from anabranch.tasks import happens

log = logging.getLogger(__name__)


class Commits:
    """See the module. `owners` are the worker's own; `places` says what is assigned, or was until it is given up."""

    def __init__(
        self,
        station: Station,
        membership: Membership,
        owners: Mapping[int, Owner],
        places: Callable[[], frozenset[Place]],
        commit_s: float,
    ) -> None:
        self._station, self._membership, self._owners = station, membership, owners
        self._places, self._commit_s = places, commit_s
        self._log, namespace = station.namespace.log, station.namespace
        self._interactive, self._bulk = namespace.requests_of("interactive"), namespace.requests_of("bulk")
        self._committed: dict[Place, Committed] = {}
        self._at_once = asyncio.Event()
        self._metadata_kept: bool | None = None

    async def run(self) -> None:
        """Commit for ever: every so often, and at once when an owner waits for it."""
        while True:
            await happens(self._at_once, self._commit_s)  # or it is time for the next one
            self._at_once.clear()
            if not self._membership.stopping:
                await self._commit()
                for owner in self._owners.values():
                    owner.clean(self._station.settings.snapshot_age_s)

    def soon(self) -> None:
        """Somebody waits for a commit."""
        self._at_once.set()

    async def _commit(self) -> None:
        offsets = {p: at for p, at in self.due().items() if self._committed.get(p) != at}
        for place in offsets:  # until it is confirmed, either may stand there
            self._committed.pop(place, None)
        if offsets and await self._membership.subscription.commit(offsets):
            self._committed.update(offsets)
            for place, at in offsets.items():
                if place.topic == self._log and place.partition in self._owners:
                    self._owners[place.partition].committed(at.offset)
            if self._metadata_kept is None:
                await self._find_out_about_metadata()

    def due(self) -> dict[Place, Committed]:
        """What may be committed now."""
        offsets: dict[Place, Committed] = {}
        for partition, owner in self._owners.items():
            commit = owner.commit(bool(self._metadata_kept))
            if commit is not None:
                offsets[Place(self._log, partition)] = commit.write()
                reached = Committed(owner.state.next_request or 0, self._station.signer.mark)
                offsets[Place(self._interactive, partition)] = reached
                if (bulk := Place(self._bulk, partition)) in self._places():
                    offsets[bulk] = commit.write_bulk()
        return offsets

    def forget(self) -> None:
        """The assignment is over, and with it all that was confirmed."""
        self._committed.clear()

    async def _find_out_about_metadata(self) -> None:
        """A broker that keeps none gives back an empty text; one that does not answer is asked at the next commit."""
        places = [place for place in self._committed if place.topic == self._log]
        try:
            found = await self._membership.subscription.committed(places)
        except BrokerError as error:
            log.warning("whether this broker keeps commit metadata is not known yet: %s", error)
            return
        self._metadata_kept = any(at.metadata for at in found.values())
        if not self._metadata_kept:
            log.info("this broker keeps no commit metadata: restarts repeat more")
