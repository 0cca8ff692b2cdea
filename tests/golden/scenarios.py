"""Logs that were written by hand, event by event: between them every type of event, and every rule of the fold.

Responsible for: what is in the golden logs of these names. They are recorded once; a change here changes no recorded
file, so add a scenario rather than alter one. Called by `python -m tests.golden NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

import orjson

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import cleaning, fold
from anabranch.agent.reply.referring import referring as stored
from anabranch.agent.state import Partition
from anabranch.codec import Outgoing, cloud_event, decode, encode
from anabranch.contract import examples as contract_examples
from tests.support import builders as b

Entry = tuple[e.Event | Outgoing, float]
"""An event, or a record that is none of ours, and the broker's time in epoch seconds."""


def records(name: str) -> list[b.Read]:
    """The log of a scenario, from offset 0 on, or from where cleaning has moved its beginning to."""
    whole = [_record(entry, offset, at) for offset, (entry, at) in enumerate(SCENARIOS[name]())]
    return whole[BEGINS.get(name, 0) :]


def _record(entry: e.Event | Outgoing, offset: int, at: float) -> b.Read:
    sent = entry if isinstance(entry, Outgoing) else encode(entry, b.LOG, 0, "w")
    return b.as_read(sent, offset, at)


def _one_after_another(*events: e.Event | Outgoing, start: float = 1.0) -> Iterator[Entry]:
    for index, event in enumerate(events):
        yield event, start + index


def _opened(run_id: str, offset: int, **fields: object) -> e.RunRequested:
    """A run that opens with the request at `offset`, each request being followed by the next."""
    opens = b.opening(request=b.request(run_id=run_id), **fields)
    return b.requested(run_id, after=offset, offset=offset, opens=opens)


def contract() -> Iterable[Entry]:
    """One of each event, as the contract shows them."""
    return _one_after_another(*contract_examples.EVENTS, start=contract_examples.AT)


def answered() -> Iterable[Entry]:
    """Two batches, a reply that was discarded, copies and latecomers, and an answer."""
    plan = (b.planned(0), b.planned(1), b.planned(2, rejected="there is no tool 'x'"))
    usage = m.Usage(10, 20, 3, 4, 0.25)
    return _one_after_another(
        b.requested(opens=b.opening(request=b.request(tenant="acme", metadata={"k": [1, None]}), requested_at=0.5)),
        b.discarded(),
        b.discarded(),
        b.calls(*plan, usage=usage),
        b.calls(*plan, attempt="late", usage=usage),
        b.returned(1, body=b.result("second", started_at=5.25, finished_at=6.5, tries=2, worker="w")),
        b.returned(1, body=b.result("a copy")),
        b.returned(0, "error", body=b.result([{"type": "text", "text": "Ärger"}])),
        b.calls(b.planned(0, 2), turn=2, usage=usage),
        b.returned(0, turn=2, body=b'{"content":"1.10","exact":123456789012345678901234567890}'),
        b.replied("pause", 3),
        b.replied("final", 4, body=b.message([b.text("all "), b.text("done")]), usage=usage),
        b.returned(0, turn=2),
    )


def levels() -> Iterable[Entry]:
    """Calls that come after others, one whose predecessor fails, deadlines that are past and that are not."""
    first, second, third = b.call_id(0), b.call_id(1), b.call_id(2)
    plan = (
        b.planned(0, deadline_s=50.0),
        b.planned(1, tool="u", after=(first,)),
        b.planned(2, tool="v", deadline_s=5.0),
        b.planned(3, tool="x", after=(second, third)),
    )
    yield from _one_after_another(_opened("r", 0), b.calls(*plan), b.call_expired(1), b.call_expired(2))
    yield b.returned(0), 6.0
    yield b.call_expired(2), 6.9
    yield b.call_expired(2), 7.1
    yield b.returned(2), 8.0
    yield b.returned(1), 9.0


def handed_off() -> Iterable[Entry]:
    """Model calls and tool calls that others went on with, dispatches, losses; it ends in the middle."""
    plan = (b.planned(0), b.planned(1, delivery="at_most_once"), b.planned(2, delivery="at_most_once"), b.planned(3))
    return _one_after_another(
        _opened("r", 0),
        b.model_handed_off(1, "w1"),
        b.model_handed_off(1, "w2"),
        e.PartitionReleased(1),
        b.calls(*plan),  # 4
        b.dispatched("mine", 1),
        b.dispatched("another's", 1),
        b.dispatched("mine", 2),
        b.calls_handed_off(b.call_id(0), b.call_id(1), worker="t1"),  # 8
        b.lost(7),
        b.calls_handed_off(b.call_id(0), worker="t2"),  # 10
        b.lost(8),
        b.lost(10),
        b.lost(10),
        b.lost(8, 1),
        b.calls_handed_off(b.call_id(0), b.call_id(3), "s/1.att/0", worker="t3"),
        e.PartitionReleased(9),
        e.PartitionReleased(3),
        _opened("s", 1),
        replace(b.model_handed_off(1, "w1"), run_id="s", life="1"),
        b.model_handed_off(2, "w1"),
    )


def ended() -> Iterable[Entry]:
    """Every way in which a run ends."""
    few, cheap = e.RunLimits(1), e.RunLimits(20, 0.1)
    abort = b.planned(0, run_id="aborted", on_error="abort")
    refused = b.planned(0, run_id="refused", on_error="abort", rejected="no such tool")
    amo = b.planned(0, run_id="unknown", delivery="at_most_once", deadline_s=1.0)
    opened = ["stopped", "failed", "turns", "spent", "cancelled", "asked", "expired", "aborted", "refused", "unknown"]
    limits = {"turns": few, "spent": cheap}
    for offset, run_id in enumerate(opened):
        yield _opened(run_id, offset, limits=limits.get(run_id, e.RunLimits(20))), 1.0
    yield b.replied("stopped", run_id="stopped", life="0"), 2.0
    yield b.failed(run_id="failed", life="1"), 2.0
    yield b.calls(b.planned(run_id="turns"), run_id="turns", life="2"), 2.0
    spent = m.Usage(cost_usd=0.2)
    yield b.calls(b.planned(run_id="spent"), run_id="spent", life="3", usage=spent), 2.0
    yield b.cancelled(run_id="cancelled"), 2.0
    yield b.noted("cancelled", "asked", after=10, offset=10), 2.0
    yield e.RunExpired("expired", "6", "not yet"), 999.0
    yield e.RunExpired("expired", "6", ""), 1000.5
    yield b.calls(abort, run_id="aborted", life="7"), 3.0
    yield b.returned(0, "timeout", run_id="aborted", life="7"), 4.0
    yield b.calls(refused, run_id="refused", life="8"), 4.0
    yield b.calls(amo, run_id="unknown", life="9"), 5.0
    yield e.CallDispatched("unknown", "9", amo.call_id, "tok"), 5.5
    yield e.CallExpired("unknown", "9", amo.call_id, "too late"), 7.0


def requests() -> Iterable[Entry]:
    """Requests in and out of order, noted for every reason, and a run id that comes again."""
    error = m.RunError("invalid_request", "agent: is missing")
    return _one_after_another(
        b.requested(after=5, offset=7, opens=b.opening(request=b.request(reply_to=m.ReplyTo(3)))),
        b.requested("late", after=5, offset=6),
        b.noted("rejected", "bad", after=8, offset=8, error=error, reply_to=m.ReplyTo(1)),
        b.noted("moved", "far", after=9, offset=9),
        b.noted("duplicate", after=10, offset=10, reply_to=m.ReplyTo(4)),
        b.noted("duplicate", after=11, offset=11, reply_to=m.ReplyTo(3)),
        b.noted("duplicate", after=11, offset=11, reply_to=m.ReplyTo(5)),
        b.replied(life="7"),
        b.noted("duplicate", after=12, offset=12, reply_to=m.ReplyTo(6)),
        b.requested("again", after=13, offset=13),
        b.cancelled(run_id="again"),
        b.requested("again", after=14, offset=14),
        b.replied(run_id="again", life="13"),
        b.cancelled(run_id="nobody"),
        b.noted("cancelled", "nobody", after=15, offset=20),
    )


def future() -> Iterable[Entry]:
    """Types that are not known, and records that cannot be read."""
    return _one_after_another(
        _opened("r", 0),
        _opened("s", 1),
        b.calls(),
        cloud_event(b.LOG, "run.levitated", "w9", "r", b'{"height":3}', [("ce_runid", "r"), ("ce_life", "0")]),
        b.returned(),
        b.cancelled(),
        cloud_event(b.LOG, "run.levitated", "w9", "s", b"{}", [("ce_runid", "s"), ("ce_life", "99")]),
        cloud_event(b.LOG, "partition.painted", "w9", None, b"{}"),
        cloud_event(b.LOG, "model.replied", "w9", "s", b"{}", [("ce_runid", "s"), ("ce_life", "1")]),
        Outgoing(b.LOG, b"s", b"no headers at all"),
        Outgoing(b.LOG, None, None),
        b.model_handed_off(1, "w1", life="1"),
    )


def snapshots() -> Iterable[Entry]:
    """A run said again in two parts, in the middle of a batch; copies, and snapshots that do not count."""
    plan = (b.planned(0, 2), b.planned(1, 2, delivery="at_most_once"), b.planned(2, 2, after=[b.call_id(0, 2)]))
    usage = m.Usage(10, 20, 3, 4, 0.25)
    opens = b.opening(request=b.request(metadata={"k": [1, None]}, reply_to=m.ReplyTo(2)), limits=e.RunLimits(9, 5.0))
    before = list(
        _one_after_another(
            b.requested(opens=opens),
            b.noted("duplicate", after=1, offset=1, reply_to=m.ReplyTo(4)),
            b.discarded(),
            b.replied("pause", body=b.message([b.text("wait for the brücke")], "pause_turn"), usage=usage),
            b.replied("calls", 2, plan=(*plan, b.planned(3, 2)), usage=usage),
            e.CallDispatched("r", "0", b.call_id(1, 2), "tok"),
            b.returned(0, "error", turn=2, body=b.result("bröken", tries=3)),
            b.calls_handed_off(b.call_id(1, 2), b.call_id(3, 2)),
        )
    )
    said = list(_in_two_parts(before))
    yield from before
    other = [replace(part, author="w2") for part in said]
    said_again = [encode(part, b.LOG, 0, part.author) for part in (*said, said[1], *other)]
    yield from _one_after_another(*said_again, start=20.0)
    yield b.returned(3, turn=2), 30.0
    yield from _one_after_another(*(encode(part, b.LOG, 0, "w3") for part in said), start=31.0)  # void by now
    yield e.CallLost("r", "0", b.call_id(1, 2), 7), 40.0
    yield b.discarded(), 41.0
    yield b.requested("s", after=2, offset=2), 42.0


def _in_two_parts(entries: Iterable[Entry]) -> Iterator[e.RunSnapshot]:
    """The run `r` after these, said again as if it were long."""
    state = Partition()
    for offset, (entry, at) in enumerate(entries):
        fold.apply(state, decode(_record(entry, offset, at)), offset, at)
    (whole,) = cleaning.snapshots(state, [state.runs["r"]], "w")
    pieces = orjson.loads(whole.body)["pieces"]
    for part, some in enumerate((pieces[:2], pieces[2:]), 1):
        yield replace(whole, part=part, parts=2, body=orjson.dumps({"pieces": some}))


def referring() -> Iterable[Entry]:
    """Messages, a reply, an argument, a result and an answer that lie in the store; one run has ended, one is open."""
    lies = [f"sha256:{number:064x};{number}00000" for number in range(1, 6)]
    request = b.request(input=None, messages_ref=lies[0], tenant="acme")
    plan = (b.planned(0), b.planned(1))
    head = b.message([], "tool_use")
    asks = stored(head, lies[1], {"tu10": {"city": "Köln"}, "tu11": lies[2]})
    final = stored(b.message([], "end_turn"), lies[4], {})
    open_run = b.opening(request=replace(request, run_id="s"))
    return _one_after_another(
        b.requested(opens=b.opening(request=request)),
        b.replied("calls", plan=plan, body=asks),
        b.returned(0, body=orjson.dumps({"content_ref": lies[3], "started_at": 2.5, "finished_at": 2.75})),
        b.returned(1),
        b.replied("final", 2, body=final),
        b.requested("s", after=1, offset=1, opens=open_run),
        b.replied("calls", plan=[b.planned(0, run_id="s")], body=asks, run_id="s", life="1"),
    )


def lanes() -> Iterable[Entry]:
    """Both lanes, in and out of order, a run that both ask for, and cancels before and after their requests."""
    opens = [b.opening(request=b.request(run_id=run_id)) for run_id in ("slow", "quick", "kept", "dropped", "later")]
    return _one_after_another(
        b.requested("slow", after=4, offset=2, lane="bulk", after_bulk=2, opens=opens[0]),
        b.requested("quick", after=4, offset=4, after_bulk=2, opens=opens[1]),
        b.requested("quick", after=4, offset=4, after_bulk=3, opens=opens[1]),
        b.noted("duplicate", "slow", after=5, offset=5, after_bulk=3, reply_to=m.ReplyTo(1)),
        b.cancelled(9, 7, run_id="dropped"),
        b.cancelled(3, 2, run_id="slow"),
        b.requested("kept", after=6, offset=3, lane="bulk", after_bulk=3, opens=opens[2]),
        b.requested("dropped", after=6, offset=4, lane="bulk", after_bulk=4, opens=opens[3]),
        b.noted("cancelled", "dropped", after=6, offset=9, after_bulk=5),
        b.noted(
            "rejected", "bad", after=10, offset=6, lane="bulk", after_bulk=5, error=m.RunError("invalid_request", "?")
        ),
        b.noted("cancelled", "dropped", after=10, offset=7, lane="bulk", after_bulk=7),
        b.cancelled(8, 20, run_id="later"),
        b.replied(run_id="quick", life="4"),
        b.replied(run_id="slow", life="4"),
        b.replied(run_id="kept", life="bulk.3"),
    )


SCENARIOS: Final[dict[str, Callable[[], Iterable[Entry]]]] = {
    "contract": contract,
    "answered": answered,
    "levels": levels,
    "handed_off": handed_off,
    "ended": ended,
    "requests": requests,
    "future": future,
    "snapshots": snapshots,
    "from_snapshot": snapshots,
    "referring": referring,
    "lanes": lanes,
}
BEGINS: Final = {"from_snapshot": 8}
