"""What `anabranch tools` says of the limits in force.

Responsible for: the rows of `cli/registered.py`. Must never: need a broker. Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.cli.registered import _tool
from anabranch.specs import LimitSpec, ToolSpec

TOOL = ToolSpec("ask", "io", "Ask.", {}, limit="crm")


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (None, "crm"),
        (LimitSpec("crm", "io", 50.0), "crm 50/s"),
        (LimitSpec("crm", "io", 1 / 60, 3), "crm 1/min, 3 at once"),
        (LimitSpec("crm", "io", 1 / 86_400, per="tenant"), "crm 1/d, per tenant"),
    ],
)
def test_a_tool_is_listed_with_the_limit_in_force(limit: LimitSpec | None, shown: str) -> None:
    assert shown in _tool(TOOL, limit)
