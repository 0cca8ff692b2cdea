"""What an owner says of a record of the log that it cannot read.

Responsible for: `agent/reading.py`. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import pytest
from tests.support import builders as b
from tests.support.desk import NAMESPACE, Desk

from anabranch.codec import cloud_event, header


@pytest.mark.parametrize("lacks", ["ce_runid", "ce_life", "ce_callid"])
async def test_a_result_that_names_no_call_is_a_dead_letter_that_says_what_waits(
    lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk().begin().write(b.requested(), b.calls())
    named = {"ce_runid": "r", "ce_life": b.LIFE, "ce_callid": b.call_id()}
    headers = [(name, value) for name, value in named.items() if name != lacks]
    desk.log.take(cloud_event(b.LOG, "tool.returned", "x", "r", b.result(), headers, partition=0))
    desk.read()
    (letter,) = desk.sent.to(NAMESPACE.dead_letters)
    told = f"header {lacks} is missing; so its call has no result yet, and waits for its deadline"
    assert told in (header(letter.headers, "ce_reason") or "")
    assert told in caplog.text


async def test_of_another_event_it_is_said_what_is_wrong_and_no_more() -> None:
    desk = Desk().begin()
    desk.log.take(cloud_event(b.LOG, "model.replied", "x", "r", b"", partition=0))
    desk.read()
    (letter,) = desk.sent.to(NAMESPACE.dead_letters)
    assert header(letter.headers, "ce_reason") == "header ce_runid is missing"
