"""An owner's own events count as read once the broker has said where they lie, and no sooner than what lies before.

Responsible for: `Owner.acknowledged`, and what is acted on after it: whoever hears of acknowledgements does and knows
what one who only reads does. Must never: run a broker or a model. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest import mock

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk, Log, replies
from tests.support.wait import until
from tests.unit.test_admission import admitting, good
from tests.unit.test_fold_properties import whole

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.admission.room import RUN_BYTES
from anabranch.agent.owner import HEADERS
from anabranch.agent.state import Partition
from anabranch.codec import decode
from anabranch.errors import BrokerError
from anabranch.kafka.sent import Acked

AMO = b.planned(0, delivery="at_most_once", deadline_s=60.0)


def folded(log: Log) -> Partition:
    return whole(
        [(decode(record), record.timestamp / 1000) for record in log.records], Partition(next_request=0, next_bulk=0)
    )


def replied(event: e.Event | None = None) -> Desk:
    """A run whose model has replied; the reply lies in the log and is not read."""
    desk = Desk().begin().write(b.requested())
    replies(desk, event or b.calls())
    return desk.land()


# --- what counts as read ---------------------------------------------------------------------------------


async def test_an_event_of_ours_counts_when_it_is_acknowledged() -> None:
    desk = replied().hear()
    assert desk.called == [b.call_id()]
    assert desk.owner.state.position == desk.log.end == 2


async def test_what_counted_at_its_acknowledgement_is_not_folded_again_when_it_is_read() -> None:
    desk = Desk().begin().write(b.requested())
    desk.jobs.due[0].append(b.discarded())
    with mock.patch.object(fold, "apply", wraps=fold.apply) as apply:
        desk.land().hear()
        desk.owner.fold(desk.log.records)
    assert apply.call_count == 1
    assert b.run_of(desk.owner.state).discarded.input_tokens == 5
    assert desk.owner.state == folded(desk.log)


async def test_an_acknowledgement_that_comes_after_the_record_was_read_changes_nothing() -> None:
    desk = replied().read()
    before = list(desk.called)
    desk.hear()
    assert desk.called == before == [b.call_id()]
    assert desk.owner._acked == {}


async def test_an_acknowledgement_ahead_waits_until_what_lies_before_has_been_read() -> None:
    desk = Desk().begin().write(b.requested())
    desk.log.write(b.requested("s", after=1, offset=1))
    replies(desk, b.calls())
    desk.land().hear()
    assert (desk.called, desk.owner.state.position) == ([], 1)
    desk.read(2)
    assert (desk.called, desk.owner.state.position) == ([b.call_id()], 3)
    assert desk.owner._acked == {}


async def test_a_record_that_is_read_is_taken_for_the_event_that_was_acknowledged_there() -> None:
    """It has the very same state as one that only reads, and nothing is left over."""
    desk = Desk().begin().write(b.requested())
    desk.log.write(b.noted("moved", "x", after=1, offset=1))
    replies(desk, b.calls())
    desk.land().hear().read()
    assert desk.owner.state == folded(desk.log)
    assert desk.owner._acked == {}


async def test_without_the_brokers_time_or_a_place_nothing_is_folded() -> None:
    desk = replied().hear(timed=False)
    assert (desk.called, desk.owner.state.position) == ([], 1)
    blind = replied()
    blind.sent.sent[-1].succeed(Acked(None))
    assert (blind.called, blind.owner.state.position) == ([], 1)
    assert blind.read().called == desk.read().called == [b.call_id()]


async def test_it_is_folded_with_the_brokers_time() -> None:
    desk = Desk().begin().write(b.requested(), at=1.0)
    replies(desk, b.calls())
    desk.land(at=7.5).hear()
    assert b.run_of(desk.owner.state).turns[0].replied_at == 7.5


async def test_a_copy_changes_nothing() -> None:
    """The acknowledgement was lost, and it is the copy's that is heard."""
    desk = Desk().begin().write(b.requested())
    replies(desk, b.calls())
    desk.log.take(desk.sent.records[-1])  # this one's is lost
    desk.land().hear()
    assert (desk.called, desk.owner.state.position) == ([], 1)
    desk.read()
    assert desk.called == [b.call_id()]
    assert desk.owner.state == folded(desk.log)


# --- when none counts ---------------------------------------------------------------------------------------


def silent(desk: Desk) -> None:
    desk.owner.suspend()
    desk.log.write(b.noted("moved", "x", after=1, offset=1))
    desk.owner.resume(desk.log.end)


def suspended(desk: Desk) -> None:
    desk.owner.suspend()


def giving_up(desk: Desk) -> None:
    desk.owner.give_up()


@pytest.mark.parametrize("state", [silent, suspended, giving_up])
async def test_none_counts_while(state: Callable[[Desk], None]) -> None:
    desk = replied()
    state(desk)
    desk.hear()
    assert (desk.called, desk.owner.state.position, desk.owner._acked) == ([], 1, {})


async def test_one_that_was_kept_does_not_outlive_the_assignment() -> None:
    desk = Desk().begin().write(b.requested())
    desk.log.write(b.requested("s", after=1, offset=1))
    replies(desk, b.calls())
    desk.land().hear()
    desk.owner.suspend()
    desk.owner.resume(desk.log.end)
    desk.read(2)
    assert (desk.called, desk.owner.state.position) == ([], 2)
    assert desk.read().called == [b.call_id()]


async def test_an_owner_that_was_dropped_hears_nothing() -> None:
    desk = replied()
    desk.owner.drop()
    desk.hear()
    assert desk.owner.state.position == 1


async def test_a_defect_while_acting_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when the event is read: nobody would act on it again."""
    desk = replied()
    monkeypatch.setattr(desk.owner, "_act", mock.Mock(side_effect=RuntimeError("a defect")))
    desk.hear()
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(1.0):
            await desk.station.fate.come()


async def test_an_append_that_failed_is_heard_by_no_owner() -> None:
    desk = replied()
    await desk.sent.fail(BrokerError("no such topic"), NAMESPACE.log)
    assert desk.owner.state.position == 1


# --- what follows -----------------------------------------------------------------------------------------------


async def test_a_call_of_at_most_once_is_published_when_its_dispatch_is_acknowledged() -> None:
    desk = replied(b.calls(AMO)).hear()
    assert desk.called == []
    desk.land().hear()
    assert desk.called == [b.call_id()]
    assert desk.read().called == [b.call_id()]


async def test_another_token_that_lies_before_ours_wins() -> None:
    desk = replied(b.calls(AMO)).hear()
    desk.log.write(b.dispatched("theirs"))
    desk.land().hear()
    assert desk.called == []
    assert desk.read().called == []


async def test_the_next_model_call_waits_for_no_reading() -> None:
    desk = replied(b.replied("pause")).hear()
    assert [job.prepare() is not None for job in desk.jobs.due] == [True]


async def test_an_admitted_run_takes_room_once() -> None:
    desk = Desk().begin()
    async with admitting(desk) as admission:
        admission.feed([good(0), good(1)])
        await until(lambda: len(desk.sent.to(NAMESPACE.log)) == 2, what="both are taken up")
        desk.land().hear()
        assert list(admission._links) == []
        held = sum(len(record.value or b"") + RUN_BYTES for record in desk.sent.to(NAMESPACE.log))
        assert desk.station.room.used == desk.owner.held.bytes == held
        desk.read()
        admission.folded()
        assert desk.station.room.used == desk.owner.held.bytes == held
        assert len(desk.jobs.due) == 2


async def test_the_log_is_measured_alike() -> None:
    desk = replied().hear().read()
    total = sum(len(record.value or b"") + HEADERS for record in desk.log.records)
    assert desk.owner._cleaner.size.total == total
