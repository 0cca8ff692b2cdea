"""What a model would be told of a function of a test, were it a tool.

Must never: register it with an app. Called by: the unit tests of `schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anabranch import Call
from anabranch.declarations.schema import Description, describe


def read(function: Callable[..., Any], **namespace: Any) -> Description:
    """As the tool "order"; `namespace` are the names around its definition."""
    return describe(function, tool="order", injected=Call, namespace=namespace)
