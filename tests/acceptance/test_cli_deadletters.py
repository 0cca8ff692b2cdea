"""Dead letters as an operator meets them: listed, shown, and sent again.

Responsible for: `dlq list`, `dlq show` and `dlq replay` on a real Kafka.
Must never: need a worker; a dead letter is a record like any.
Called by: pytest.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.cli import Terminal

from anabranch.codec import Outgoing
from anabranch.config import KafkaSettings
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.seam import Place
from anabranch.topics import Namespace


@pytest.fixture
def terminal(tmp_path: Path, kafka: str, namespace: str) -> Terminal:
    return Terminal.at(tmp_path, kafka, namespace)


async def bury(terminal: Terminal, origin: str, value: bytes) -> None:
    """Write a dead letter."""
    names = Namespace(terminal.env["ANABRANCH_NAMESPACE"])
    headers = (("x", b"y"), ("ce_reason", b"invalid_request: no"), ("ce_origin", origin.encode()))
    async with broker_of(terminal).appender() as appender:
        await appender.append(Outgoing(names.dead_letters, b"run-1", value, headers))


def broker_of(terminal: Terminal) -> KafkaBroker:
    return KafkaBroker(KafkaSettings(bootstrap=terminal.env["ANABRANCH_BOOTSTRAP"]))


async def test_a_dead_letter_is_listed_shown_and_replayed_as_it_came(terminal: Terminal) -> None:
    assert (await terminal.run("topics", "apply", "app.py")).status == 0
    requests = Namespace(terminal.env["ANABRANCH_NAMESPACE"]).requests
    origin = f"{requests}/2/7"
    await bury(terminal, origin, b"not json \x1b[31m")

    [letter] = (await terminal.run("dlq", "list", "--json")).json()
    assert (letter["origin"], letter["reason"], letter["key"]) == (origin, "invalid_request: no", "run-1")
    shown = await terminal.run("dlq", "show", origin)
    assert "not json ?[31m" in shown.out  # what came from elsewhere does not steer the terminal

    replayed = await terminal.run("dlq", "replay", origin)
    assert replayed.out == f"{origin} replayed as {requests}/2/0\n", replayed.err
    async with broker_of(terminal).reader([Place(requests, 2)], "begin") as reader:
        [record] = await reader.read(10)
    assert (record.key, record.value, tuple(record.headers)) == (b"run-1", b"not json \x1b[31m", (("x", b"y"),))


async def test_what_was_cut_and_what_is_not_there_is_not_replayed(terminal: Terminal) -> None:
    assert (await terminal.run("topics", "apply", "app.py")).status == 0
    origin = f"{Namespace(terminal.env['ANABRANCH_NAMESPACE']).requests}/0/0"
    await bury(terminal, origin, b"z" * 65_536)
    cut = await terminal.run("dlq", "replay", origin)
    assert (cut.status, cut.out) == (1, "")
    assert "only its first 65536 bytes were kept" in cut.err
    absent = await terminal.run("dlq", "replay", "elsewhere/0/0")
    assert absent.status == 1
    assert "there is no dead letter elsewhere/0/0" in absent.err
