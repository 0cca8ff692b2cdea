"""What the registry makes of records that contradict each other.

Responsible for: `registry.py`, and what `agent_role.py` warns of. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support import builders as b

from anabranch.agent_role import warn_of_unknown
from anabranch.bodies import dump
from anabranch.codec import Record, cloud_event
from anabranch.registry import Registry, is_alive
from anabranch.specs import LimitSpec, WorkerInfo


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
