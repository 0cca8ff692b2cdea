"""What the registry makes of records that contradict each other.

Responsible for: `registry.py`, and what `agent_role.py` warns of. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from tests.support import builders as b
from tests.support.virtual import now, virtually

from anabranch.agent_role import warn_of_unknown
from anabranch.bodies import dump
from anabranch.codec import Outgoing, Record, cloud_event
from anabranch.errors import BrokerError
from anabranch.kafka.seam import Appender
from anabranch.kafka.sent import Acked, Sent
from anabranch.registry import BURIED_S, KEEP_UP_S, Registry, is_alive, keep_up
from anabranch.security.signing import NO_SIGNER, Signer
from anabranch.specs import LimitSpec, WorkerInfo
from anabranch.tasks import alongside
from anabranch.topics import Namespace


def told(offset: int, limit: LimitSpec) -> Record:
    return b.as_read(cloud_event("t.registry", "registry.limit", "w", f"limit/{limit.name}", dump(limit)), offset)


def test_a_limit_that_two_queues_claim_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    registry.take(told(0, LimitSpec("crm", "io", 10.0)))
    registry.take(told(1, LimitSpec("crm", "io", 20.0)))
    assert caplog.messages == [], "a limit may change"
    registry.take(told(2, LimitSpec("crm", "mail", 20.0)))
    assert ["limit crm" in text and "'io'" in text and "'mail'" in text for text in caplog.messages] == [True]
    assert registry.limits["crm"].queue == "mail"


@pytest.mark.parametrize("off_s", [3000.0, -3000.0, 1.8e12], ids=["ahead", "behind", "in milliseconds"])
def test_when_a_worker_was_seen_is_for_the_broker_to_say(off_s: float) -> None:
    registry, info = Registry(now=lambda: 1000.0), WorkerInfo("w", "tool", "1", 900.0 + off_s, 960.0 + off_s, "io")
    registry.take(b.as_read(cloud_event("t.registry", "registry.worker", "w", "worker/w", dump(info)), 0, at=960.0))
    worker = registry.workers["w"]
    assert (worker.seen_at, worker.started_at) == (960.0, 900.0), "it is up for as long as by its own clock"
    assert not is_alive(worker, 1000.0)


def test_a_tool_that_waits_for_one_which_nobody_has_registered_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Registry()
    agents = [b.agent(name="one", tools=["look", "gone"]), b.agent(name="two", tools=["look"])]
    registry.add([b.tool("look", after=["ghost"])], agents)
    warn_of_unknown(agents, registry)
    assert [text for text in caplog.messages if "ghost" in text] == [
        "tool look: nobody has registered tool 'ghost', so it waits for no call of it"
    ]
    assert sum("agent one" in text and "'gone'" in text for text in caplog.messages) == 1


class Kept:
    """A registry that is kept up, and what of it is said: for so long after `records` were read. Its worker gives signs
    of life if `heard`, and a broker takes nothing for the first `refusals`.
    """

    def __init__(
        self, *records: Record, for_s: float, signer: Signer = NO_SIGNER, heard: bool = True, refusals: int = 0
    ) -> None:
        self.registry, self.heard, self.refusals = Registry(signer, now), heard, refusals
        self.said: list[Outgoing] = []
        virtually(lambda: self._keep_up(records, for_s, signer))

    async def _keep_up(self, records: tuple[Record, ...], for_s: float, signer: Signer) -> None:
        for record in records:
            self.registry.take(record)
        keeping = keep_up(self.registry, cast(Appender, self), Namespace("t"), "w", signer)
        async with alongside(keeping, "upkeep"), alongside(self._live(), "signs of life"):
            await asyncio.sleep(for_s)

    async def _live(self) -> None:
        while self.heard:
            self.registry.take(sign_of_life("w", now()))
            await asyncio.sleep(10.0)

    def append(self, record: Outgoing) -> Sent:
        """It is read back at once."""
        sent = Sent()
        if self.refusals:
            self.refusals -= 1
            sent.fail(BrokerError("not allowed"))
            return sent
        self.said.append(record)
        self.registry.take(b.as_read(record, 9, at=now()))
        sent.succeed(Acked(9))
        return sent


def entry(key: str, value: bytes | None, at: float = 0.0) -> Record:
    return b.as_read(cloud_event("t.registry", "x", "w", key, value), 0, at=at)


def sign_of_life(worker: str, at: float) -> Record:
    return entry(f"worker/{worker}", dump(WorkerInfo(worker, "tool", "1", at, at, "io")), at)


SIGNER = Signer({"k": b"0" * 32}, required=True)
AGENT = b.agent(name="one")


def test_what_junk_was_written_over_is_said_again_once_as_it_was() -> None:
    tool, limit, agent = b.tool("look"), LimitSpec("crm", "io", 10.0), f"agent/one@{AGENT.revision}"
    signed = SIGNER.signed(cloud_event("t.registry", "registry.agent", "w", agent, dump(AGENT), partition=0))
    good = [entry("tool/look", dump(tool)), told(0, limit), b.as_read(signed, 0)]
    junk = [entry(key, b"oops") for key in ("tool/look", "limit/crm", agent, "tool/unknown", "tool/\xff")]
    kept = Kept(*good, *junk, for_s=10 * KEEP_UP_S, signer=SIGNER)
    assert [record.key for record in kept.said] == [b"limit/crm", b"tool/look", agent.encode()]
    assert [record.value for record in kept.said] == [dump(limit), dump(tool), dump(AGENT)]
    assert kept.registry.agent("one") == AGENT


@pytest.mark.parametrize("last", [dump(b.tool("look")), None, b'{"of": "a newer version"}'])
def test_what_was_not_junk_or_is_mended_is_left_as_it_is(last: bytes | None) -> None:
    good = entry("tool/look", dump(b.tool("look")))
    assert Kept(good, entry("tool/look", b"oops"), entry("tool/look", last), for_s=2 * KEEP_UP_S).said == []


def test_an_earlier_revision_that_is_said_again_is_not_what_new_runs_get() -> None:
    """The last one that is said is: so the one that counts is said after it."""
    earlier, last = b.agent(name="one", revision="1"), b.agent(name="one", revision="2")
    good = [entry(f"agent/one@{agent.revision}", dump(agent)) for agent in (earlier, last)]
    kept = Kept(*good, entry("agent/one@1", b"oops"), for_s=10 * KEEP_UP_S)
    assert [record.key for record in kept.said] == [b"agent/one@1", b"agent/one@2"]
    assert kept.registry.agent("one") == last


def test_what_cannot_be_said_again_is_tried_again() -> None:
    good = entry("tool/look", dump(b.tool("look")))
    kept = Kept(good, entry("tool/look", b"oops"), for_s=10 * KEEP_UP_S, refusals=3)
    assert [record.key for record in kept.said] == [b"tool/look"]


def test_junk_over_what_nobody_knows_is_not_remembered() -> None:
    assert Kept(entry("tool/unknown", b"oops"), for_s=2 * KEEP_UP_S).registry.spoilt == set()


def test_a_worker_that_nobody_has_heard_of_for_a_day_is_buried() -> None:
    kept = Kept(sign_of_life("dead", 0.0), for_s=BURIED_S - KEEP_UP_S)
    assert kept.said == []
    kept = Kept(sign_of_life("dead", 0.0), for_s=BURIED_S + 3 * KEEP_UP_S)
    assert [(record.key, record.value) for record in kept.said] == [(b"worker/dead", None)]
    assert kept.registry.workers.keys() == {"w"}


def test_who_hears_nothing_of_himself_buries_nobody() -> None:
    """Its machine was asleep for a day, and it has yet to read who lives."""
    kept = Kept(sign_of_life("alive", 0.0), sign_of_life("w", 0.0), for_s=BURIED_S + 3 * KEEP_UP_S, heard=False)
    assert kept.said == []
