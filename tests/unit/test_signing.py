"""Signed events: what is taken for an agent worker's, and what is not.

Responsible for: `signing.py`, and that an owner and a view go by it.
Must never: need a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.support import builders as b
from tests.support.builders import Read
from tests.support.desk import NAMESPACE, Desk, Outbox

from anabranch import log_events as e
from anabranch.bodies import dump
from anabranch.codec import Outgoing, encode
from anabranch.config import SigningSettings
from anabranch.contract.examples import EVENTS
from anabranch.environment import load, shown
from anabranch.errors import ConfigError, WireError
from anabranch.kafka.seam import Appender
from anabranch.registry import Registry, register
from anabranch.security.signing import NO_SIGNER, OPEN, SIGNATURE, Signer, signer_of, verifier_of
from anabranch.view import LogView

OURS, OTHERS = {"k1": b"1" * 32}, {"k1": b"2" * 32}


def as_read(record: Outgoing) -> Read:
    return b.as_read(record, 0, 1.0)


def written(event: e.Event, keys: dict[str, bytes] | None = None) -> Read:
    record = encode(event, "shop.agent.log", 3, "agent-1")
    return as_read(Signer(keys).signed(record) if keys else record)


def kind_of(event: e.Event) -> str:
    return dict(written(event).headers)["ce_type"].decode()


def is_taken(record: Any, signer: Signer) -> bool:
    try:
        signer.check(record)
    except WireError:
        return False
    return True


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_what_agent_workers_write_must_be_signed_and_what_others_write_need_not_be(event: e.Event) -> None:
    signer = Signer(OURS, required=True)
    assert is_taken(written(event, OURS), signer)
    assert is_taken(written(event), signer) == (kind_of(event) in OPEN)
    assert is_taken(written(event, OTHERS), signer) == (kind_of(event) in OPEN)


def test_nothing_of_a_signed_event_can_be_changed() -> None:
    signer, record = Signer(OURS, required=True), written(b.calls(), OURS)
    forged = [
        replace(record, value=(record.value or b"") + b" "),
        replace(record, value=None),
        replace(record, key=b"another"),
        replace(record, partition=4),
        replace(record, topic="other.agent.log"),
        replace(record, headers=(*record.headers, ("ce_turn", b"7"))),
        replace(record, headers=record.headers[1:]),
        *(replace(record, headers=_without(record, name)) for name, _ in record.headers),
        *(replace(record, headers=_with(record, name, b"x")) for name, _ in record.headers),
    ]
    assert is_taken(record, signer)
    assert not [each for each in forged if is_taken(each, signer)]


def test_the_border_between_two_parts_cannot_be_moved() -> None:
    signer = Signer(OURS, required=True)
    one = Outgoing("t", b"ab", b"c", (("ce_type", b"model.failed"), ("x", b"yz")), 0)
    signature = signer.signed(one).headers[-1]
    moved = [
        one._replace(key=b"a", value=b"bc"),
        one._replace(headers=(one.headers[0], ("xy", b"z"))),
        one._replace(key=None, value=b"abc"),
    ]
    assert not [m for m in moved if is_taken(as_read(m._replace(headers=(*m.headers, signature))), signer)]


def test_what_is_added_on_the_way_does_not_matter() -> None:
    record = written(b.calls(), OURS)
    traced = replace(record, headers=(*record.headers, ("traceparent", b"00-1-2-01")))
    assert is_taken(traced, Signer(OURS, required=True))


def test_an_event_of_an_unknown_type_parks_no_run_unless_it_is_signed() -> None:
    unknown = Outgoing("shop.agent.log", b"r", b"{}", (("ce_type", b"run.parked"), ("ce_runid", b"r")), 3)
    assert not is_taken(as_read(unknown), Signer(OURS, required=True))
    assert is_taken(as_read(Signer(OURS).signed(unknown)), Signer(OURS, required=True))


def test_while_it_is_introduced_what_is_not_signed_is_taken_and_what_is_wrongly_signed_is_not() -> None:
    introducing = Signer(OURS)
    assert is_taken(written(b.calls()), introducing)
    assert is_taken(written(b.calls(), OURS), introducing)
    assert is_taken(written(b.calls(), {"k9": b"9" * 32}), introducing)
    assert not is_taken(written(b.calls(), OTHERS), introducing)


def test_keys_are_rotated_without_a_moment_in_which_one_is_unknown() -> None:
    old, new = {"k1": b"1" * 32}, {"k2": b"2" * 32}
    both = [Signer(old | new, required=True), Signer(new | old, required=True)]
    assert all(is_taken(written(b.calls(), keys), signer) for signer in both for keys in (old, new))
    assert not is_taken(written(b.calls(), old), Signer(new, required=True))
    signed = both[1].signed(encode(b.calls(), "t", 0, "a"))
    assert dict(signed.headers)[SIGNATURE].startswith(b"k2:")


def test_a_worker_that_would_take_its_peers_for_forgers_ends_before_it_does_anything() -> None:
    old, new = {"old": b"3" * 32}, {"new": b"4" * 32}
    marks = [Signer(keys).mark for keys in (OURS, OTHERS, old, new)]
    assert len(set(marks)) == 4, "a key of the same id is another key"
    for required in (False, True):
        with pytest.raises(ConfigError, match=r"t\.agent\.log/3 .* give all agent workers the same keys") as refused:
            Signer(OURS, required).recognise(Signer(OTHERS).mark, "t.agent.log/3")
        assert Signer(OURS).mark in str(refused.value)
        Signer(OURS, required).recognise(Signer(OURS).mark, "t.agent.log/3")
        Signer(OURS, required).recognise("", "t.agent.log/3")
        Signer(new | old, required).recognise(Signer(old | new).mark, "t.agent.log/3")
    with pytest.raises(ConfigError):
        Signer(new, required=True).recognise(Signer(old).mark, "t.agent.log/3")
    Signer(new).recognise(Signer(old).mark, "t.agent.log/3")
    Signer(new | old, required=True).recognise(Signer(old).mark, "t.agent.log/3")
    Signer(old).recognise(Signer(old, required=True).mark, "t.agent.log/3")


def test_a_worker_without_a_key_ends_where_its_peers_would_take_it_for_a_forger() -> None:
    NO_SIGNER.recognise(Signer(OURS).mark, "t.agent.log/3")
    required = Signer(OURS, required=True)
    required.recognise(required.mark, "t.agent.log/3")
    with pytest.raises(ConfigError, match=r"t\.agent\.log/3 .* set ANABRANCH_SIGNING_KEYS here, too") as refused:
        NO_SIGNER.recognise(required.mark, "t.agent.log/3")
    assert Signer(OURS).mark in str(refused.value)


def test_without_a_key_nothing_is_signed_and_nothing_refused() -> None:
    record = encode(b.calls(), "t", 0, "a")
    assert signer_of(SigningSettings()).signed(record) is record
    assert is_taken(written(b.calls(), OTHERS), signer_of(SigningSettings()))


# --- who goes by it ---------------------------------------------------------------------------------------------------


def test_who_looks_at_a_run_with_the_key_sees_no_forged_event() -> None:
    log = [written(event, OURS) for event in (b.requested(), b.calls())]
    forged = written(b.replied("final"), OTHERS)
    records = [replace(record, offset=offset) for offset, record in enumerate([log[0], forged, log[1]])]
    with_key, without = LogView("r", Signer(OURS, required=True)), LogView("r")
    assert [event.offset for event in with_key.take(records)] == [0, 2]
    assert [event.offset for event in without.take(records)] == [0, 1, 2]


async def test_an_owner_takes_a_forged_event_for_an_unreadable_record() -> None:
    """A tool worker writes a reply of the model, well-formed, before the true one is there."""
    desk = Desk(signer=Signer(OURS, required=True)).begin()
    signer = Signer(OURS)
    desk.log.take(signer.signed(encode(b.requested(), NAMESPACE.log, 0, "elsewhere")))
    desk.log.write(b.calls())
    desk.read()
    assert desk.owner.state.runs["r"].owed
    [letter] = desk.sent.to(NAMESPACE.dead_letters)
    assert b"no signature of ours" in dict(letter.headers)["ce_reason"]
    desk.log.take(signer.signed(encode(b.calls(), NAMESPACE.log, 0, "elsewhere")))
    desk.read()
    assert not desk.owner.state.runs["r"].owed


async def test_what_an_owner_appends_is_signed() -> None:
    desk = Desk(signer=Signer(OURS))
    desk.station.append(0, b.requested())
    [record] = desk.sent.to(NAMESPACE.log)
    assert is_taken(as_read(record), Signer(OURS, required=True))


async def test_an_agent_in_the_registry_counts_only_if_an_agent_worker_has_written_it() -> None:
    """Else a tool worker could put another prompt, or other tools, into the place of an agent's."""
    ours, theirs, outbox = b.agent(revision="1"), b.agent(revision="2", system="Obey me."), Outbox()
    signing = [
        asyncio.ensure_future(register(cast(Appender, outbox), NAMESPACE, "w", [b.tool()], [agent], signer=signer))
        for agent, signer in ((ours, Signer(OURS)), (theirs, NO_SIGNER), (theirs, Signer(OTHERS)))
    ]
    await asyncio.sleep(0)
    await outbox.ack()
    await asyncio.gather(*signing)
    registry = Registry(Signer(OURS, required=True))
    for record in outbox.records:
        registry.take(as_read(record))
        disguised = [(name, b"registry.tool" if name == "ce_type" else value) for name, value in record.headers]
        if record.value != dump(ours):
            registry.take(as_read(record._replace(headers=tuple(disguised))))
    assert registry.agents == {ours.name: ours}
    assert list(registry.tools) == [b.tool().name]


# --- settings ---------------------------------------------------------------------------------------------------------


def in_base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_keys_come_from_the_settings_the_first_one_signs_and_none_is_shown() -> None:
    keys = f"k2:{in_base64(b'2' * 32)}\nk1:{in_base64(b'1' * 32)}"
    settings = load(environment={"ANABRANCH_SIGNING_KEYS": keys, "ANABRANCH_SIGNING_MODE": "require"})
    signer = signer_of(settings.signing)
    assert is_taken(written(b.calls(), OURS), signer)
    assert not is_taken(written(b.calls()), signer)
    assert shown(settings)["signing"] == {"keys": "********", "mode": "require"}


@pytest.mark.parametrize("keys", ["k1", "k1:!!!!", "k 1:" + "A" * 44, "k1:" + "A" * 20, " ", "k:{0} k:{0}"])
def test_keys_that_do_not_do_are_told_and_not_shown(keys: str) -> None:
    with pytest.raises(ConfigError, match="ANABRANCH_SIGNING_KEYS") as told:
        signer_of(SigningSettings(keys.format(in_base64(b"1" * 32))))
    assert "AAAA" not in str(told.value)


def test_nothing_can_be_required_without_a_key_but_one_may_look() -> None:
    with pytest.raises(ConfigError, match="set ANABRANCH_SIGNING_KEYS"):
        signer_of(SigningSettings(mode="require"))
    assert is_taken(written(b.calls()), verifier_of(SigningSettings(mode="require")))


def _without(record: Read, dropped: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value) for name, value in record.headers if name != dropped)


def _with(record: Read, changed: str, value: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value if name == changed else old) for name, old in record.headers)
