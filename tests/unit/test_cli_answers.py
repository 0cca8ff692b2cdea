"""What the commands show of an answer that is not in the log: fetched where the store is, or why it was not.

Responsible for: `cli/sealed.py` and what `cli/portrait.py` makes of it. Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from typing import cast

import orjson
from obstore.store import MemoryStore
from tests.support import builders as b

from anabranch import references
from anabranch.agent.referring import referring
from anabranch.agent.state import Run
from anabranch.cli.frame import Frame
from anabranch.cli.portrait import words_in
from anabranch.cli.sealed import told
from anabranch.config import StoreSettings
from anabranch.errors import ConfigError
from anabranch.store import NO_STORE, Store

BLOCKS = [b.text("a long answer")]


class Desk:
    """A command whose settings name a store, or none; None: they name one that cannot be used here."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

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
    assert (lost or "").startswith(f"(in the store: {reference} is not in the store (")


async def test_a_store_that_cannot_be_used_here_hides_no_more_than_what_lies_in_it() -> None:
    assert await shown(b.run_after(b.replied("final", body=b.message(BLOCKS, "end_turn"))), None) == "a long answer"
    far = referring(b.message([], "end_turn"), references.name_of(b"far"), {})
    assert await shown(b.run_after(b.replied("final", body=far)), None) == (
        "(in the store: the store file:///srv cannot be used: permission denied)"
    )
