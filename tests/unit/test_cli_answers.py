"""What the commands show of an answer that is not in the log: fetched where the store is, or why it was not.

Responsible for: `cli/sealed.py` and what `cli/portrait.py` makes of it. Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from typing import cast

import orjson
from obstore.store import MemoryStore
from tests.support import builders as b

from anabranch.agent.referring import referring
from anabranch.agent.state import Run
from anabranch.cli.frame import Frame
from anabranch.cli.portrait import words_in
from anabranch.cli.sealed import told
from anabranch.config import StoreSettings
from anabranch.store import NO_STORE, Store

BLOCKS = [b.text("a long answer")]


class Desk:
    """A command whose settings name a store, or none."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store(self) -> Store:
        return self._store


async def shown(run: Run, store: Store) -> str | None:
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
