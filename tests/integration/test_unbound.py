"""Newer models take back nothing of what they thought once something before it has changed: the run goes on without.

Responsible for: what `agent/model/anthropic_model.py` does when the API refuses a thinking block for that, over the
wire.
Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import builders as b

from anabranch.agent.model.anthropic_model import AnthropicModel
from anabranch.agent.model.seam import Hopeless
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.offer import Offer
from anabranch.config import AnthropicSettings
from anabranch.testing import Answer, ScriptedModel, text, thinking, tool_use, turn_of


def script(request: dict[str, Any]) -> Answer:
    return [thinking("hm"), tool_use("t", {}, "tu10")] if turn_of(request) == 1 else [text("Done.")]


async def asked(model: AnthropicModel, *bodies: bytes) -> list[bytes]:
    return [(await model.reply(body, lambda event: None, lambda left: None)).body for body in bodies]


def second(first: bytes, **tool: Any) -> bytes:
    """The second request of a run whose first reply was `first`, with the tool as it then is."""
    return request_body(b.run_after(b.calls(body=first), b.returned()), Offer(b.agent(), [b.tool(**tool)]))


@pytest.mark.parametrize(("change", "asks"), [({}, 2), ({"description": "says more since a deploy"}, 3)])
async def test_a_tool_that_changes_while_a_run_thinks_does_not_end_it(change: Any, asks: int) -> None:
    async with ScriptedModel(script, models=["m"], binds_thinking=True) as server:
        settings = AnthropicSettings(api_key="test", base_url=server.base_url)
        async with AnthropicModel.opened(settings, 5.0) as model:
            (first,) = await asked(model, request_body(b.run_after(), Offer(b.agent(), [b.tool()])))
            (last,) = await asked(model, second(first, **change))
        assert b"Done." in last
        assert server.calls == asks
        assert ["thinking" in str(request["messages"][1]) for request in server.requests[1:]] == [True, False][
            : asks - 1
        ]


async def test_another_refusal_is_one() -> None:
    async with ScriptedModel(script, models=["another"]) as server:
        settings = AnthropicSettings(api_key="test", base_url=server.base_url)
        async with AnthropicModel.opened(settings, 5.0) as model:
            with pytest.raises(Hopeless):
                await asked(model, request_body(b.run_after(), Offer(b.agent(), [b.tool()])))
        assert server.calls == 1
