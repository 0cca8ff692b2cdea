"""What users test their agents with: a local server that speaks the Messages API from a script.

    async with ScriptedModel([tool_use("get_order", {"order_id": 7}), "It has shipped."]) as server:
        client = AsyncAnthropic(api_key="test", base_url=server.base_url)

It exports names and does nothing else. It must never be imported by the runtime: only tests, examples and
benchmarks need it.
"""

from anabranch.testing.quota import Metered, RateLimits
from anabranch.testing.replies import (
    Answer,
    Reply,
    code_execution,
    code_result,
    last_results,
    prompt_of,
    result_text,
    text,
    thinking,
    tool_use,
    turn_of,
)
from anabranch.testing.server import Script, ScriptedModel

__all__ = [
    "Answer",
    "Metered",
    "RateLimits",
    "Reply",
    "Script",
    "ScriptedModel",
    "code_execution",
    "code_result",
    "last_results",
    "prompt_of",
    "result_text",
    "text",
    "thinking",
    "tool_use",
    "turn_of",
]
