"""Both ends of what is sealed: clients that ask, and tool workers that are called.

Responsible for: what `client_seals.py`, `tools/large.py` and `tools/serving.py` make of sealed fields.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import builders as b
from tests.support.sealing import Keys, opened, sealed, sealing

from anabranch import messages as m
from anabranch.bodies import dump, read, read_request
from anabranch.client_seals import ClientSeals
from anabranch.errors import Forgotten, InvalidRequest, SealError, StoreError
from anabranch.log_events import ToolResult
from anabranch.messages import RunRequest, ToolCall
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.store import NO_STORE
from anabranch.tools import large as tools_large

SECRET = "4111-1111"
MESSAGES = [{"role": "user", "content": f"my card is {SECRET}"}]


# --- clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"input": f"my card is {SECRET}"}, {"messages": MESSAGES}])
async def test_a_client_seals_what_it_asks(given: dict[str, Any]) -> None:
    request = RunRequest("r", "a", tenant="acme", metadata={"card": SECRET}, **given)
    sent = await ClientSeals(sealing(Keys())).request(request)
    assert SECRET.encode() not in dump(sent)
    assert read_request(dump(sent)) == sent
    assert opened("messages", sent.messages_sealed or "") == MESSAGES
    assert opened("metadata", sent.metadata_sealed or "") == {"card": SECRET}


async def test_a_client_of_a_forgotten_tenant_asks_for_nothing() -> None:
    keys = Keys()
    keys.forgotten.add("acme")
    with pytest.raises(Forgotten):
        await ClientSeals(sealing(keys)).request(RunRequest("r", "a", input="hi", tenant="acme"))


def test_sealed_metadata_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="metadata_sealed"):
        read_request(dump(RunRequest("r", "a", input="hi", metadata_sealed="k1;" + "A" * 10_000)))


# --- tool workers ------------------------------------------------------------------------------------------------


def call(**fields: Any) -> ToolCall:
    given: dict[str, Any] = {
        "call_id": "r/1.a/0",
        "run_id": "r",
        "agent": "a",
        "tool": "t",
        "dispatch": 1,
        "tenant": "acme",
    }
    given |= {"deadline": 10.0, "idempotency_key": "k", "reply": m.ReplyTopic(b.LOG, 0)}
    return ToolCall(**{**given, **fields})


async def test_a_tool_worker_opens_its_input_and_seals_its_result() -> None:
    one, keys = call(input_sealed=sealed("input", {"card": SECRET})), sealing(Keys())
    assert await tools_large.input_of(NO_STORE, one, 0.0, keys) == {"card": SECRET}
    told = read(ToolResult, await tools_large.body_of(NO_STORE, ToolResult(SECRET, 1.0, 2.0, 1, "w"), one, 0.0, keys))
    assert (told.content, told.started_at, told.worker) == (None, 1.0, "w")
    assert opened("result", told.content_sealed or "") == SECRET


async def test_the_result_of_a_call_that_is_not_sealed_is_not() -> None:
    """It could not be read by an agent worker without keys."""
    told = await tools_large.body_of(NO_STORE, ToolResult("fine"), call(input={}), 0.0, sealing(Keys()))
    assert read(ToolResult, told) == ToolResult("fine")


@pytest.mark.parametrize("keys", [NO_SEALING, sealing(Keys())])
async def test_an_input_that_does_not_open_is_refused(keys: Sealing) -> None:
    with pytest.raises(SealError):
        await tools_large.input_of(NO_STORE, call(input_sealed=sealed("result", {})), 0.0, keys)
    with pytest.raises(StoreError):
        await tools_large.body_of(NO_STORE, ToolResult("x"), call(input_sealed="k1;AAAA"), 0.0, NO_SEALING)
