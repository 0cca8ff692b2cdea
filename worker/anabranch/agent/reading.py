"""A record of the run log becomes an event, or a dead letter: who wrote it, what it says, and where it lies is checked.

Must never: fold, or let a record that cannot be read hold the partition up. Called by: `owner.py`, for each record that
it has not known since its acknowledgement.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import Final

from anabranch import log_events as e
from anabranch.about import about_record, place_of
from anabranch.agent.station import Station
from anabranch.bodies import without_given
from anabranch.codec import Record, decode, header
from anabranch.errors import WireError
from anabranch.topics import partition_of

log = logging.getLogger(__name__)

Runs = Container[str | None]
_UNHEARD: Final = (
    "; so its call has no result yet, and waits for its deadline: a result has ce_runid, ce_life and ce_callid as its "
    "call has them, and lies where reply says"
)


def event_in(record: Record, station: Station, partition: int, known: Runs, done: int) -> e.Event | None:
    """None if it cannot be read: that is told, unless it lies below `done`. What is of `known` runs is in its place."""
    try:
        station.signer.check(record)
        event = decode(record)
        if getattr(event, "run_id", None) not in known:
            _check_place(event, station, partition, record.offset)
        return event
    except WireError as error:
        if record.offset >= done:
            unheard = _UNHEARD if header(record.headers, "ce_type") == "tool.returned" else ""
            why = without_given(str(error)) + unheard
            log.error("%s cannot be read: %s", place_of(record), why, extra=about_record(record, str(error)))
            station.send_dead_letter(record, "unreadable", f"{error}{unheard}")
        return None


def _check_place(event: e.Event, station: Station, partition: int, offset: int) -> None:
    """A copy on a wrong partition could open its run there, and skip a request. A note may be of any run.

    Whoever gave a partition up can have published nothing that came later: it was of another log, which this one has
    taken the place of.
    """
    if type(event) is e.PartitionReleased:
        if event.done > offset:
            raise WireError(f"all below {event.done} is said to be published, which lies behind it")
        return
    run_id = None if isinstance(event, e.RequestNoted) else getattr(event, "run_id", None)
    if run_id is not None and (own := partition_of(run_id, station.partitions)) != partition:
        raise WireError(f"run {run_id!r} belongs to partition {own}: it was written to the wrong one")
