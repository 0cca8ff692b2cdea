"""The script of the model that all subjects call over HTTP: three calls, then the answer.

Called by: `python -m anabranch.testing tests.bench.peers.model:model`.
"""

from __future__ import annotations

from typing import Any

from anabranch.testing import Answer, prompt_of, tool_use, turn_of
from tests.bench import workload


def model(request: dict[str, Any]) -> Answer:
    """The reply to a request, by its turn; how long the tools take stands in the prompt."""
    if turn_of(request) > 1:
        return workload.ANSWER
    inputs = {"wait_ms": workload.tool_ms_of(prompt_of(request).encode()), "note": workload.NOTE}
    return [tool_use("look_up", inputs) for _ in range(workload.CALLS)]
