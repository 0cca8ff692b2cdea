"""What the registry makes of records that contradict each other.

Responsible for: `registry.py`. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support import builders as b

from anabranch.bodies import dump
from anabranch.codec import Record, cloud_event
from anabranch.registry import Registry
from anabranch.specs import LimitSpec


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
