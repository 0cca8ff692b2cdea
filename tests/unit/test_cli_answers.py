"""What the commands show of an answer that is not in the log: fetched where the store is, or why it was not.

Responsible for: `cli/picture/sealed.py` and what `cli/picture/portrait.py` makes of it. Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
import pytest
from obstore.store import MemoryStore
from tests.support import builders as b
from tests.support.sealing import Keys, sealed, sealing
from tests.support.virtual import now, virtually

from anabranch import log_events as e
from anabranch import references
from anabranch.agent.reply.referring import referring
from anabranch.agent.state import Run
from anabranch.cli.frame import Frame
from anabranch.cli.picture.portrait import words_in
from anabranch.cli.picture.sealed import Told, told
from anabranch.config import StoreSettings
from anabranch.errors import ConfigError
from anabranch.messages import RunError
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.security.seals import Key
from anabranch.store import NO_STORE, Store

BLOCKS = [b.text("a long answer")]


class Desk:
    """A command whose settings name a store, or none; None: they name one that cannot be used here."""

    def __init__(self, store: Store | None, sealing: Sealing = NO_SEALING) -> None:
        self._store, self._sealing = store, sealing

    def sealing(self) -> Sealing:
        return self._sealing

    def store(self) -> Store:
        if self._store is None:
            raise ConfigError("the store file:///srv cannot be used: permission denied")
        return self._store


async def shown(run: Run, store: Store | None) -> str | None:
    found = await told(cast(Frame, Desk(store)), run)
    assert found is not None
    return words_in(found)


async def test_an_answer_in_the_store_is_shown_to_who_has_the_store() -> None:
    shop = Store(MemoryStore(), "t", StoreSettings())
    reference = await shop.put(orjson.dumps(BLOCKS), None, 5.0)
    run = b.run_after(b.replied("final", body=referring(b.message([], "end_turn"), reference, {})))
    assert await shown(run, shop) == "a long answer"
    assert await shown(run, NO_STORE) == (
        f"(in the store: {reference} lies in a store, and none is set here (ANABRANCH_STORE))"
    )
    lost = await shown(run, Store(MemoryStore(), "t", StoreSettings()))
    assert (lost or "").startswith(f"(in the store: {reference} is not in the store, as t/shared/")


async def test_a_store_that_cannot_be_used_here_hides_no_more_than_what_lies_in_it() -> None:
    assert await shown(b.run_after(b.replied("final", body=b.message(BLOCKS, "end_turn"))), None) == "a long answer"
    far = referring(b.message([], "end_turn"), references.name_of(b"far"), {})
    assert await shown(b.run_after(b.replied("final", body=far)), None) == (
        "(in the store: the store file:///srv cannot be used: permission denied)"
    )


class Unreachable:
    """In the place of obstore's store: one that refuses after `takes_s`."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s

    async def get_async(self, path: str) -> Any:
        await asyncio.sleep(self.takes_s)
        raise OSError("connection refused")


@pytest.mark.parametrize("takes_s", [0.0, 3.0, 3600.0])
def test_nobody_waits_long_for_a_store_that_cannot_be_reached(takes_s: float) -> None:
    far = referring(b.message([], "end_turn"), references.name_of(b"far"), {})
    run = b.run_after(b.replied("final", body=far))

    async def looking() -> tuple[str | None, float]:
        return await shown(run, Store(Unreachable(takes_s), "t", StoreSettings())), now()

    said, took_s = virtually(looking)
    assert (said or "").startswith("(in the store: ")
    assert took_s <= 10


def test_nobody_waits_long_for_keys_that_cannot_be_had() -> None:
    class Away(Keys):
        async def named(self, tenant: str | None, key_id: str) -> Key:
            await asyncio.sleep(3600)
            raise AssertionError

    failed = e.ModelFailed("r", b.LIFE, 1, "m", RunError("model_rejected", "(sealed)", sealed("error", "no")))
    run = b.run_after(failed)

    async def looking() -> tuple[Told | None, float]:
        return await told(cast(Frame, Desk(None, sealing(Away()))), run), now()

    found, took_s = virtually(looking)
    assert found is not None
    assert words_in(found) == "(sealed: keys and store did not answer within 10 s)"
    assert took_s <= 10
