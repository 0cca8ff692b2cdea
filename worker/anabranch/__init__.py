"""Anabranch: LLM agents on Kafka.

What a user of the library imports is here. Importing it must stay cheap: no Kafka client and no model client
comes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.app import Agent, App, Call, Limit, RateLimited, Retryable, Tool
    from anabranch.content import ResultError, image, text
    from anabranch.declarations.schema import ArgumentsError
    from anabranch.errors import (
        AnabranchError,
        AppNotFound,
        BrokerError,
        ConfigError,
        DefinitionError,
        Forbidden,
        Forgotten,
        InvalidRequest,
        RunFailed,
        StoreError,
        TooLarge,
        TopicsError,
        WireError,
    )

    __version__: str

__all__ = [
    "Agent",
    "AnabranchError",
    "App",
    "AppNotFound",
    "ArgumentsError",
    "BrokerError",
    "Call",
    "ConfigError",
    "DefinitionError",
    "Forbidden",
    "Forgotten",
    "InvalidRequest",
    "Limit",
    "RateLimited",
    "ResultError",
    "Retryable",
    "RunFailed",
    "StoreError",
    "TooLarge",
    "Tool",
    "TopicsError",
    "WireError",
    "__version__",
    "image",
    "text",
]

_HOMES = {
    "anabranch.app": ("Agent", "App", "Call", "Limit", "RateLimited", "Retryable", "Tool"),
    "anabranch.content": ("ResultError", "image", "text"),
    "anabranch.declarations.schema": ("ArgumentsError",),
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: `anabranch --help` needs none of them, and they cost 200 ms."""
    from importlib import import_module, metadata

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        value: Any = metadata.version("anabranch")
    else:
        home = next((home for home, names in _HOMES.items() if name in names), "anabranch.errors")
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
