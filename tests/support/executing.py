"""Calls of tools that are executed without a worker.

Responsible for: a tool of a function, and one call of it. Must never: know Kafka or a queue. Called by: tests of the
executor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from anabranch.app import App, Tool
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.tools.executor import Execution, Executor


def tool(function: Callable[..., Any], **options: Any) -> Tool:
    app = App("t")
    app.tool(**options)(function)
    (made,) = app.tools.values()
    return made


def call(deadline: float = float("inf")) -> ToolCall:
    call_id, reply = "r/1.a/0", ReplyTopic("t.agent.log", 0)
    return ToolCall(
        call_id=call_id, run_id="r", agent="a", tool="t", dispatch=1, deadline=deadline, idempotency_key=call_id,
        reply=reply,
    )  # fmt: skip


async def run(executor: Executor, function: Callable[..., Any], arguments: Any = None, **options: Any) -> Execution:
    deadline = options.pop("call_deadline", float("inf"))
    return await executor.execute(tool(function, **options), arguments or {}, call(deadline=deadline))


def process_id() -> int:
    return os.getpid()


def sleeps_for_ever() -> None:
    time.sleep(600)
