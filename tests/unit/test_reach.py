"""What an owner's successor has to read, and what it need not do again.

Responsible for: `agent/reach.py`, with an appender under the test's control.
Must never: run a broker or a model.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk

from anabranch import log_events as e
from anabranch.agent.commit import Commit
from anabranch.agent.state import Nexts
from anabranch.codec import cloud_event
from anabranch.kafka.sent import Acked


async def test_low_is_the_oldest_event_that_somebody_needs() -> None:
    desk = Desk().begin()
    assert desk.owner.commit(True) == Commit(0, 0, 0)
    desk.write(b.noted("moved", "x"), b.requested(after=1, offset=4), b.noted("rejected", "bad", after=5, offset=5))
    assert desk.owner.commit(True) == Commit(1, 2, 1)
    await desk.sent.ack()
    assert desk.owner.commit(True) == Commit(1, 3, 1)
    desk.write(b.replied(life="4"))
    assert desk.owner.commit(True) == Commit(1, 3, 1)
    await desk.sent.ack()
    assert desk.owner.commit(True) == Commit(4, 4, 6)


async def test_without_metadata_low_stays_with_the_last_event_that_tells_the_next_request() -> None:
    desk = Desk().begin().write(b.noted("moved", "x"), b.noted("moved", "y", after=1, offset=1), e.PartitionReleased(0))
    assert desk.owner.commit(False) == Commit(1, 3, 2)


async def test_nothing_is_committed_while_silent() -> None:
    desk = Desk()
    desk.log.write(b.requested())
    assert desk.begin().owner.commit(True) is None


async def test_a_commit_whose_records_are_gone_lets_the_log_tell_the_next_request() -> None:
    desk = Desk()
    desk.log.write(b.requested(after=8, offset=8))
    record = desk.log.records[0]
    desk.log.records[0] = replace(record, offset=50)
    desk.owner.begin(Commit(10, 0, 3), 50, 51, Nexts(0, 0))
    desk.owner.fold(desk.log.records)
    assert desk.owner.state.next_request == 9
    assert list(desk.owner.state.runs) == ["r"]


# --- parked runs ----------------------------------------------------------------------------------------------


def levitate(desk: Desk) -> None:
    """An event of a later version is appended."""
    pairs = [("ce_runid", b.RUN), ("ce_life", b.LIFE)]
    desk.log.take(cloud_event(NAMESPACE.log, "run.levitated", "w", b.RUN, b"{}", pairs, 0))


async def test_what_a_parked_run_has_not_published_is_not_done() -> None:
    """Whoever knows the event goes on with the run, and has to publish it then."""
    desk = Desk().begin()
    desk.log.write(b.requested(), b.calls())
    levitate(desk)
    desk.read()
    assert desk.called == []
    assert desk.commit() == Commit(0, 1, 0)


async def test_what_a_parked_run_has_published_is_done() -> None:
    desk = Desk().begin().write(b.requested(), b.calls())
    levitate(desk)
    desk.read()
    await desk.sent.ack()
    assert desk.commit() == Commit(0, 3, 0)


async def test_a_defect_that_shows_at_an_acknowledgement_ends_the_worker() -> None:
    desk = Desk().begin()

    def defective(event: e.Event, size: int, acked: Acked) -> None:
        raise RuntimeError("a defect")

    desk.station.heard[0] = defective
    sent = desk.station.append(0, b.replied())
    sent.succeed(Acked(0, 1))
    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.wait_for(desk.station.fate.come(), 5)
